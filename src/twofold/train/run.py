"""A recipe becomes a run: objects are built from its strings, the loop is started, and the result is written down."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from twofold import losses, zoo
from twofold.contracts import ConfigError
from twofold.files import replacing, write_text
from twofold.nets.perceptual import (
    ALEXNET,
    SQUEEZENET,
    VGG16,
    VGG19,
    FeatureDistance,
    FeatureNetwork,
    load_features,
    lpips,
    perceptual_squeeze,
)
from twofold.search.loss_space import Feature
from twofold.settings import Settings, checked, nearest, to_yaml
from twofold.train import data as material
from twofold.train import reading, schemes
from twofold.train import recipe as recipes
from twofold.train.found import FoundLoss
from twofold.train.learner import Machine, machine_of
from twofold.train.loop import Average, Board, JsonLines, Run, fit, validated
from twofold.train.schemes import Report


def build_loss(settings: dict[recipes.LossName, float] | FoundLoss, root: Path = Path()) -> losses.Loss:
    """The weighted sum of named losses, or a searched loss. Perceptual ones take their networks from `features` below
    the data root when the loss is first called, and raise WeightsError where it is not there.

    Raises: ConfigError for a searched loss that does not exist.
    """
    if isinstance(settings, FoundLoss):
        file = settings.file()

        @cache
        def found(device: torch.device) -> losses.Loss:
            return file.build(feature_networks(file.needs, root, device))

        return lambda restored, clean: found(restored.device)(restored, clean)
    terms = [(_term(name, root), weight) for name, weight in settings.items()]
    return lambda restored, clean: sum((w * term(restored, clean) for term, w in terms), torch.zeros(()))


def feature_networks(needs: Sequence[str], root: Path, device: torch.device | str) -> dict[str, Feature]:
    """The networks of perceptual terms by the name of the term.

    Raises: WeightsError where the weights are not in `features` below the data root; ConfigError for an unknown term.
    """
    folder = root / "features"
    makers: dict[str, Callable[[], Feature]] = {
        "features-squeeze": lambda: load_features(SQUEEZENET, folder),
        "features-vgg19": lambda: load_features(VGG19, folder),
        "perceptual-squeeze": lambda: perceptual_squeeze(folder),
        "lpips-alexnet": lambda: lpips(ALEXNET, features=folder, heads=folder / "alex.pth"),
    }
    unknown = [name for name in needs if name not in makers]
    if unknown:
        raise ConfigError(f"loss: there are no features for {unknown[0]}; {nearest(unknown[0], list(makers))}")
    return {
        name: makers[name]().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name in needs
    }


def _term(name: recipes.LossName, root: Path) -> losses.Loss:
    makers = {"perceptual_squeeze": perceptual_squeeze, "perceptual_vgg16": perceptual_vgg16}
    if name not in makers:
        term: losses.Loss = getattr(losses, name)
        return term

    @cache
    def distance(device: torch.device) -> nn.Module:  # read when first called: a recipe builds without the weights
        made = makers[name](root / "features")
        return made.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    return lambda restored, clean: distance(restored.device)(restored, clean).mean()


def perceptual_vgg16(features: Path) -> FeatureDistance:
    """GridDehazeNet's (Liu et al. 2019): mean squared difference of relu1_2, 2_2 and 3_3 of VGG16, not normalised.

    Raises: WeightsError where the weights are missing, damaged, or of another network.
    """
    published = load_features(VGG16, features)
    plain = FeatureNetwork(published.features, mean=(0, 0, 0), deviation=(1, 1, 1), smallest=published.smallest)
    return FeatureDistance(plain, (3, 8, 15), weights=(1 / 3, 1 / 3, 1 / 3), power=2)


def build_scheme(recipe: recipes.Recipe, restorer: nn.Module, machine: Machine, root: Path = Path()) -> schemes.Scheme:
    """root: of the data, where networks of a perceptual loss lie.

    Raises: ConfigError where the model does not fit the scheme.
    """
    parts = schemes.Parts(
        restorer,
        build_loss(recipe.loss, root),
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
    reports: Sequence[Report] = (),
) -> dict[str, Any]:
    """Trains by `recipe` on the data below `root`; leaves everything in `folder`; returns the facts of the result.

    Raises: ConfigError if `folder` holds a run of another recipe; DataError if the data cannot be used.
    """
    machine = machine_of(recipe.precision, device)
    main = machine.main
    keep_recipe(recipe, folder, write=main)
    torch.manual_seed(recipe.seed)
    restorer = machine.place(build_restorer(recipe))
    scheme = build_scheme(recipe, restorer, machine, root)
    pairs = material.validation(recipe, root)
    batches = material.batches(recipe, root, machine)
    average = Average.of(restorer, recipe.average) if recipe.average else None
    if main:
        reports = [*reports, JsonLines(folder / "log.jsonl"), Board(folder), *recipe.scheme.reports(folder)]

    shown = [sample for draw in batches(0) for sample in draw][-1]
    found: dict[str, float] | None = None

    def validate(done: int) -> dict[str, float]:
        nonlocal found
        found = {}
        if main:
            zoo.save_restorer(folder / "model.safetensors", restorer, recipe.model)
            material.write_samples(folder / "samples" / f"{done:07d}.png", restorer, shown)
            found = material.scores(restorer, pairs, recipe)
            keep_best(folder, done, found)
        return found

    run = Run(folder, minutes=minutes, validate_every=recipe.validate_every, main=main)
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


def keep_best(folder: Path, steps: int, scores: dict[str, float]) -> None:
    """Keeps the model that has the highest PSNR so far, in the mean over the validation sets, as best.safetensors.

    best.json says after how many steps, and its scores: chosen on these pictures, they flatter it a little.
    """
    found = [value for name, value in scores.items() if name.endswith("/psnr")]
    if not found:
        return
    psnr, facts = fmean(found), folder / "best.json"
    if facts.exists() and json.loads(facts.read_text())["psnr"] >= psnr:
        return
    with replacing(folder / "best.safetensors") as temporary:
        shutil.copyfile(folder / "model.safetensors", temporary)
    write_text(facts, json.dumps({"steps": steps, "psnr": psnr, "validation": scores}, indent=2) + "\n")


def build_restorer(recipe: recipes.Recipe) -> nn.Module:
    """Raises: ConfigError where the model's settings do not fit together."""
    try:
        return recipe.model.build()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"model: {error}") from error


def keep_recipe(recipe: Settings, folder: Path, *, write: bool = True) -> None:
    """Writes recipe.yaml beside the run. A longer run of the same recipe may go on, its schedule stretched; anything
    else that differs is an error.
    """
    path = folder / "recipe.yaml"
    if path.exists():
        kept = checked(type(recipe), reading.tree_of(path), str(path))
        changed = [key for key, value in kept if key != "steps" and value != getattr(recipe, key)]
        if changed:
            raise ConfigError(
                f"{folder} holds a run of another recipe ({', '.join(changed)} differ from {path}); "
                "name another folder with --output"
            )
    if write:
        write_text(path, to_yaml(recipe))
