"""Runs a recipe: builds its objects, runs the loop, and writes the result."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from twofold import zoo
from twofold.contracts import ConfigError, Sample
from twofold.files import replacing, write_text
from twofold.settings import Settings, checked, to_yaml
from twofold.train import data as material
from twofold.train import reading, schemes
from twofold.train import recipe as recipes
from twofold.train.learner import Machine, machine_of
from twofold.train.loop import Board, JsonLines, Run, average_of, fit, validated
from twofold.train.schemes import Report


def build_scheme(recipe: recipes.Recipe, restorer: nn.Module, machine: Machine, root: Path = Path()) -> schemes.Scheme:
    """root: of the data; `features` below it holds the networks of perceptual losses.

    Raises: ConfigError where the model does not fit the scheme.
    """
    parts = schemes.Parts(
        restorer,
        recipe.loss.build(root / "features"),
        recipe.steps,
        recipe.model.kind,
        recipe.optimizer,
        recipe.guide_optimizer,
        recipe.schedule,
        machine,
        recipe.seed,
    )
    return recipe.scheme.build(parts)


def train(
    recipe: recipes.Recipe,
    root: Path,
    folder: Path,
    *,
    device: str = "auto",
    minutes: float = 5.0,
    stop_after: float | None = None,
    reports: Sequence[Report] = (),
) -> dict[str, Any]:
    """Trains by `recipe` on the data below `root`; leaves everything in `folder`; returns the facts of the result.

    minutes: between checkpoints. stop_after: minutes until the run stops with a checkpoint; the same call goes on.

    Raises: ConfigError if `folder` holds a run of another recipe; DataError if the data cannot be used; TimeUp at the
    end of `stop_after`.
    """
    machine = machine_of(recipe.precision, device)
    main = machine.main
    keep_recipe(recipe, folder, write=False)
    torch.manual_seed(recipe.seed)
    restorer = machine.place(build_restorer(recipe))
    scheme = build_scheme(recipe, restorer, machine, root)
    pairs = material.validation(recipe, root)
    batches = material.batches(recipe, root, machine)
    average = average_of(restorer, recipe.average) if recipe.average else None
    if main:
        reports = [*reports, JsonLines(folder / "log.jsonl"), Board(folder), *recipe.scheme.reports(folder)]

    shown = [sample for draw in batches(0) for sample in draw][-1]
    check_crop(restorer, shown)
    keep_recipe(recipe, folder, write=main)  # a start that fails leaves the folder to a corrected one
    found: dict[str, float] | None = None

    def validate(done: int, restorer: nn.Module) -> dict[str, float]:
        nonlocal found
        found = {}
        if main:
            zoo.save_restorer(folder / "model.safetensors", restorer, recipe.model)
            material.write_samples(folder / "samples" / f"{done:07d}.png", restorer, shown)
            found = material.scores(restorer, pairs, recipe)
            keep_best(folder, done, found)
        return found

    run = Run(folder, minutes=minutes, stop_after=stop_after, validate_every=recipe.validate_every, main=main)
    spent = fit(scheme, batches, until=recipe.steps, run=run, reports=reports, average=average, validate=validate)
    if found is None:  # the run was finished before
        found = validated(scheme, average, validate, recipe.steps)
    facts = {
        "recipe": recipe.name,
        "steps": recipe.steps,
        "seed": recipe.seed,
        "protocol": recipe.protocol,
        "validation": found,
        "hours": round(spent.seconds / 3600, 3),
        "device": str(machine.device),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    if main:
        write_text(folder / "result.json", json.dumps(facts, indent=2) + "\n")
    return facts


def check_crop(restorer: nn.Module, sample: Sample) -> None:
    """Raises: ConfigError where the network cannot take images of the size of the training crops."""
    height, width = sample.observed.shape[-2:]
    multiple = getattr(restorer, "multiple", 1)
    try:
        if height % multiple or width % multiple:
            raise ValueError(f"its sides must be multiples of {multiple}")
        with torch.no_grad():
            restorer(sample.observed[:1], **({} if sample.kernel is None else {"kernel": sample.kernel[:1]}))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"data.crop: the network cannot take crops of {width} x {height}: {reason}") from error


def keep_best(folder: Path, steps: int, scores: dict[str, float]) -> None:
    """Keeps the model that has the highest PSNR so far, in the mean over the validation sets, as best.safetensors.

    best.json says after how many steps, and its scores: chosen on these pictures, they flatter it a little.
    """
    found = [value for name, value in scores.items() if name.endswith("/psnr")]
    if not found:
        return
    psnr, facts = fmean(found), folder / "best.json"
    try:
        if json.loads(facts.read_text())["psnr"] >= psnr:
            return
    except (OSError, ValueError, LookupError, TypeError):
        pass  # none yet, or damaged: what is found now is the best that is known
    with replacing(folder / "best.safetensors") as temporary:
        shutil.copyfile(folder / "model.safetensors", temporary)
    write_text(facts, json.dumps({"steps": steps, "psnr": psnr, "validation": scores}, indent=2) + "\n")


def build_restorer(recipe: recipes.Recipe) -> nn.Module:
    """The network of a recipe, with random weights or those of `init`.

    Raises: ConfigError where the model's settings do not fit together, or the weights belong to another network.
    """
    try:
        restorer = recipe.model.build()
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"model: the settings do not fit together ({reason})") from error
    if recipe.init:
        start = zoo.load_restorer(recipe.init)
        try:
            restorer.load_state_dict(start.state_dict() if isinstance(start, nn.Module) else {})
        except RuntimeError as error:
            raise ConfigError(
                f"init: the weights of {recipe.init} are of another network than `model`; give the recipe the same one"
            ) from error
    return restorer


def keep_recipe(recipe: Settings, folder: Path, *, write: bool = True) -> None:
    """Writes recipe.yaml beside the run. A longer run of the same recipe may go on, its schedule stretched; anything
    else that differs is an error.
    """
    path = folder / "recipe.yaml"
    if path.exists():
        kept = checked(type(recipe), reading.tree_of(path), str(path))
        changed = [key for key, value in kept if key != "steps" and value != getattr(recipe, key)]
        done = _steps_done(folder)
        if isinstance(recipe, recipes.Recipe) and recipe.steps < done:
            raise ConfigError(f"{folder} holds a run of {done} steps, more than {recipe.steps}; name another folder")
        if changed:
            raise ConfigError(
                f"{folder} holds a run of another recipe ({', '.join(changed)} differ from {path}); "
                "name another folder with --output"
            )
    if write:
        write_text(path, to_yaml(recipe))


def _steps_done(folder: Path) -> int:
    """Of a finished run, by its result.json; 0 where there is none."""
    try:
        return int(json.loads((folder / "result.json").read_text())["steps"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0
