"""A recipe becomes a run: objects are built from its strings, the loop is started, and the result is written down."""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from twofold import losses, zoo
from twofold.contracts import ConfigError
from twofold.data.batches import Shard
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
from twofold.restorers.fixed_point import FixedPointRestorer
from twofold.restorers.guided import Guided
from twofold.search.loss_space import Feature
from twofold.settings import Settings, checked, nearest, to_yaml
from twofold.solve.meta import Harmonic
from twofold.train import data as material
from twofold.train import reading, schemes
from twofold.train import recipe as recipes
from twofold.train.convergence import Convergence
from twofold.train.found import FoundLoss
from twofold.train.loop import Average, Board, JsonLines, Report, Run, fit, validated
from twofold.train.meta import MetaTraining


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


def build_schedule(settings: recipes.Schedule, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at step n of `steps`.

    >>> cosine = build_schedule(recipes.Schedule(kind="cosine", warmup=2), 10)
    >>> [round(cosine(n), 2) for n in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def factor(n: int) -> float:
        if n < settings.warmup:
            return (n + 1) / settings.warmup
        done = (n - settings.warmup) / max(steps - settings.warmup, 1)
        if settings.kind == "cosine":
            return settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if settings.kind == "multistep":
            return float(settings.factor ** sum(n >= share * steps for share in settings.milestones))
        return 1.0

    return factor


def build_optimizer(settings: recipes.Optimizer) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        lr, decay = settings.learning_rate, settings.weight_decay
        if settings.kind == "sgd":
            return torch.optim.SGD(parameters, lr, momentum=settings.momentum, weight_decay=decay)
        first, second = settings.betas
        family = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
        return family(parameters, lr, betas=(first, second), weight_decay=decay)

    return build


def build_scheme(
    recipe: recipes.Recipe, restorer: nn.Module, machine: schemes.Machine, root: Path = Path()
) -> schemes.Scheme:
    """root: of the data, where networks of a perceptual loss lie.

    Raises: ConfigError where the scheme needs a guide and the model has none.
    """
    loss, spec = build_loss(recipe.loss, root), recipe.scheme

    def learner(module: nn.Module, settings: recipes.Optimizer, steps: float) -> schemes.Learner:
        schedule = build_schedule(recipe.schedule, max(round(steps), 1))
        return schemes.Learner(
            module.parameters(), build_optimizer(settings), schedule=schedule, clip=settings.clip, machine=machine
        )

    if isinstance(spec, recipes.SupervisedSpec):
        return schemes.Supervised(restorer, loss, learner(restorer, recipe.optimizer, recipe.steps), machine)
    if isinstance(spec, recipes.MetaSpec):
        if not isinstance(restorer, FixedPointRestorer):
            raise ConfigError(f"scheme.kind: 'meta' trains a fixed point, but model.kind is {recipe.model.kind!r}")
        whole = learner(restorer, recipe.optimizer, recipe.steps)
        leads = Harmonic(spec.first)
        return MetaTraining(
            restorer, loss, whole, iterations=spec.iterations, mu=spec.mu, schedule=leads, machine=machine
        )
    if not isinstance(restorer, Guided):
        raise ConfigError(f"scheme.kind: {spec.kind!r} trains a guide, but model.kind is {recipe.model.kind!r}")
    if isinstance(spec, recipes.NaiveSpec):
        return schemes.Naive(restorer, loss, learner(restorer, recipe.optimizer, recipe.steps), machine)
    if isinstance(spec, recipes.FrozenSpec):
        first = spec.first(recipe.steps)
        theta = learner(restorer.guide, recipe.guide_optimizer, first)
        omega = learner(restorer.net, recipe.optimizer, recipe.steps - first)
        return schemes.Frozen(restorer, loss, theta, omega, first, machine)
    theta = learner(restorer.guide, recipe.guide_optimizer, recipe.steps * spec.guide_updates)
    omega = learner(restorer.net, recipe.optimizer, recipe.steps * spec.net_updates)
    return schemes.GuidedTraining(restorer, loss, theta, omega, machine, spec.steering, recipe.seed)


def machine_of(precision: str, device: str) -> tuple[schemes.Machine, torch.device, Shard]:
    """How a step is computed, on which device, and which of the ranks of `accelerate launch` this process is.

    Raises: ConfigError where the package accelerate is not installed, or for a device that torch does not know.
    """
    try:
        from accelerate import PartialState
        from accelerate.utils import reduce
    except ImportError as error:
        raise ConfigError("training needs more packages: pip install 'twofold[train]'") from error
    ranks = PartialState(cpu=device == "cpu")
    try:
        place = ranks.device if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: auto, cpu, cuda, cuda:1 …") from error
    half = partial(torch.autocast, place.type, torch.bfloat16, enabled=precision == "bf16")
    average = partial(reduce, reduction="mean") if ranks.num_processes > 1 else None
    return schemes.Machine(half, average), place, Shard(ranks.process_index, ranks.num_processes)


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
    machine, place, share = machine_of(recipe.precision, device)
    main = share.rank == 0
    keep_recipe(recipe, folder, write=main)
    torch.manual_seed(recipe.seed)
    restorer = build_restorer(recipe).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    scheme = build_scheme(recipe, restorer, machine, root)
    pairs = material.validation(recipe, root)
    batches = material.batches(recipe, root, place, share)
    average = Average.of(restorer, recipe.average) if recipe.average else None
    if main:
        reports = [*reports, JsonLines(folder / "log.jsonl"), Board(folder)]
        if isinstance(recipe.scheme, recipes.MetaSpec):
            reports = [*reports, Convergence(folder)]

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
        "device": str(place),
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
