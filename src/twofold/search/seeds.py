"""The same search from several seeds: how much its result varies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from twofold.contracts import ConfigError
from twofold.evaluate import interval
from twofold.files import write_text
from twofold.search import plots
from twofold.search.outcome import total
from twofold.search.recipe import SearchRecipe
from twofold.search.run import search
from twofold.space.genotype import Genotype, agreement
from twofold.train.schemes import Report


def searches(
    recipe: SearchRecipe,
    root: Path,
    folder: Path,
    *,
    seeds: int,
    judge: Path | None = None,
    device: str = "auto",
    minutes: float = 5.0,
    reports: Callable[[str], Sequence[Report]] = lambda stage: (),
) -> dict[str, Any]:
    """Searches from `seeds` seeds, the recipe's and those after it, each in a folder of its own below `folder`.

    What they agree on is returned, and left there as stability.json and stability.png (the weights of every seed). All
    share one judge. For the rest see `twofold.search.run.search`, one of which this is for every seed: a finished
    one is not repeated, an interrupted one goes on.

    Raises: ConfigError for fewer than two seeds, and as `search`.
    """
    if seeds < 2:
        raise ConfigError(f"seeds: to see what two searches agree on takes at least 2, got {seeds}")
    each: dict[int, dict[str, Any]] = {}
    for seed in range(recipe.seed, recipe.seed + seeds):

        def reports_of(stage: str, seed: int = seed) -> Sequence[Report]:
            return reports(f"seed {seed}, {stage}")

        settings = recipe.model_copy(update={"seed": seed})
        each[seed] = search(
            settings, root, folder / f"seed{seed}", judge=judge, device=device, minutes=minutes, reports=reports_of
        )
    names = {name: None for facts in each.values() for name in facts["loss"]}
    weights = {name: [facts["loss"].get(name, 0.0) for facts in each.values()] for name in names}
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "seeds": list(each),
        "weights": {
            name: {"mean": fmean(found), "interval": list(interval(found) or ())} for name, found in weights.items()
        },
        "cpu_seconds": total([facts["cpu_seconds"] for facts in each.values()]),
    }
    if all("parameters" in facts for facts in each.values()):
        genotypes = [Genotype.from_json((folder / f"seed{seed}" / "genotype.json").read_text()) for seed in each]
        result["agreement"], result["chance"] = agreement(genotypes)
        result |= {name: [facts[name] for facts in each.values()] for name in ("parameters", "skip_ratio", "entropy")}
    plots.draw_weights(folder / "stability.png", {f"seed {seed}": facts["loss"] for seed, facts in each.items()})
    write_text(folder / "stability.json", json.dumps(result, indent=1) + "\n")
    return result
