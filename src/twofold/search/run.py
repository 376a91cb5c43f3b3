"""A complete search: its stages in sequence, with all output in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twofold.contracts import Sample
from twofold.data.batches import SECOND_STREAM, Batches
from twofold.search.judge import verdict_of
from twofold.search.outcome import SearchOutcome
from twofold.search.recipe import SearchRecipe
from twofold.search.scheme import Collapsed, CollapseGuard, Found, Search
from twofold.train.learner import machine_of
from twofold.train.loop import JsonLines, Run, fit
from twofold.train.run import keep_recipe
from twofold.train.schemes import Report


def search(
    recipe: SearchRecipe,
    root: Path,
    folder: Path,
    *,
    judge: Path | None = None,
    device: str = "auto",
    minutes: float = 5.0,
    reports: Callable[[str], Sequence[Report]] = lambda stage: (),
) -> dict[str, Any]:
    """Searches by `recipe` on the data below `root`; leaves everything in `folder`; returns the facts.

    An interrupted search in `folder` is continued; a finished one is not repeated.

    judge: a trained one, see `twofold.search.judge.train_judge_of`; None where the architecture alone is searched.
    reports: those of a stage, by its name.

    Raises: ConfigError for a judge that is missing or not good enough, or where `folder` holds another search;
    DataError where the data cannot be used.
    """
    machine = machine_of(recipe.precision, device)
    place, share, main = machine.device, machine.shard, machine.main
    keep_recipe(recipe, folder, write=main)
    if (folder / "search.json").exists():
        finished: dict[str, Any] = json.loads((folder / "search.json").read_text())
        return finished
    upper, admitted = verdict_of(recipe, judge, place) if recipe.needs_judge else (None, None)
    seen, held = recipe.data.halves(root)
    train = Batches(seen, recipe.data.batch, seed=recipe.seed, share=share, device=place)
    validation = Batches(held, recipe.data.batch, seed=recipe.seed + SECOND_STREAM, share=share, device=place)

    def batches(n: int) -> tuple[Sequence[Sample], ...]:
        return [train(n)], [validation(n)]

    done: dict[str, dict[str, Any]] = {}
    found = Found()
    for stage in recipe.search.stages():
        scheme = Search.of_stage(recipe, stage, root, found=found, upper=upper, machine=machine)
        inside = folder / stage.name
        logs: list[Report] = [JsonLines(inside / "log.jsonl", every=1)] if main else []
        run = Run(inside, minutes=minutes, validate_every=stage.steps, main=main)
        followed = [*reports(stage.name), *logs, CollapseGuard(recipe.collapse)]
        done[stage.name] = carried_out(scheme, stage.steps, batches, run, followed)
        found = scheme.found(replace(found, loss=stage.loss or found.loss))
        if done[stage.name]["ended_early"] and stage.what != "loss":
            break  # a collapsed architecture is no start for another round
    outcome = SearchOutcome(recipe, done, scheme.restorer, found, admitted)
    return outcome.write(folder, root, validation(0)) if main else outcome.facts()


def carried_out(
    scheme: Search,
    steps: int,
    batches: Callable[[int], tuple[Sequence[Sample], ...]],
    run: Run,
    reports: Sequence[Report],
) -> dict[str, Any]:
    """Runs a stage to its end, or until it collapses; its facts. A stage finished before reports no hypergradient."""
    ended: Collapsed | None = None
    spent = None
    try:
        spent = fit(scheme, batches, until=steps, run=run, reports=reports)
    except Collapsed as collapsed:
        ended = collapsed
    return {
        "steps": steps if ended is None else ended.step,
        "seconds": None if spent is None else round(spent.seconds, 1),
        "cpu_seconds": None if spent is None else round(spent.cpu_seconds, 1),
        "ended_early": None if ended is None else str(ended),
        **({} if scheme.cost is None else {"hypergradient": scheme.cost._asdict()}),
        **{name: round(value, 6) for name, value in scheme.facts().items()},
    }
