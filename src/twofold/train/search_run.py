"""A whole search: its stages one after the other, and everything it hands over, in one folder."""

from __future__ import annotations

import json
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from twofold.contracts import ConfigError, Sample
from twofold.data.batches import SECOND_STREAM, Batches
from twofold.data.sources import Crops
from twofold.data.specs import build_mixture
from twofold.files import write_text
from twofold.losses import Loss
from twofold.nets.hadamard import COMBINATIONS, HadamardNet
from twofold.nets.perceptual import DirectionDistance, FeatureNetwork
from twofold.search.genotype import Genotype, derive, entropy, picture
from twofold.search.loss_space import (
    SQUEEZENET_GROUPS,
    SQUEEZENET_SCALE,
    VGG19_GROUPS,
    Clipped,
    FeatureChoice,
    LossFile,
    LossSpace,
    near_zero,
    published_terms,
)
from twofold.search.supernet import mixtures, network_weights
from twofold.settings import checked
from twofold.solve.hypergradient import FirstOrder, OneStepUnrolled
from twofold.specs import PlainSpec
from twofold.train import drawings, reading
from twofold.train import judge as judges
from twofold.train.loop import JsonLines, Report, Run, fit
from twofold.train.run import build_optimizer, feature_networks, keep_recipe, machine_of
from twofold.train.schemes import Learner, Machine
from twofold.train.search import (
    Collapsed,
    CollapseGuard,
    Search,
    What,
    facts,
    judged,
    searched_parameters,
    split_source,
)
from twofold.train.search_recipe import (
    ArchitectureSpec,
    HierarchicalSpec,
    JudgeRecipe,
    LossSpec,
    SearchRecipe,
    SupernetSpec,
)


@dataclass(frozen=True)
class Stage:
    """One search of a whole one. found: the loss that it is given where it searches the architecture alone."""

    name: str
    what: What
    steps: int
    found: LossFile | None = None


def stages(recipe: SearchRecipe) -> list[Stage]:
    """What is done, in order. Raises: ConfigError where a network without choices is to be searched."""
    spec = recipe.search
    if isinstance(recipe.net, PlainSpec) and not isinstance(spec, LossSpec):
        raise ConfigError(f"search.kind: {spec.kind!r} searches an architecture, and net.kind is plain; take supernet")
    if isinstance(spec, HierarchicalSpec):
        return [Stage("loss", "loss", spec.loss), Stage("architecture", "architecture", spec.architecture)]
    if isinstance(spec, LossSpec):
        return [Stage("loss", "loss", spec.steps)]
    if isinstance(spec, ArchitectureSpec):
        given = None if spec.loss is None else spec.loss.file()
        return [Stage("architecture", "architecture", spec.steps, given)]
    return [Stage("synchronous", "both", spec.steps)]


def needs_judge(recipe: SearchRecipe) -> bool:
    """Whether a loss is searched: an architecture alone is judged by its loss."""
    return not isinstance(recipe.search, ArchitectureSpec)


def build_net(recipe: SearchRecipe) -> nn.Module:
    """The supernet, or the network whose loss is searched; drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    if isinstance(recipe.net, SupernetSpec):
        return recipe.net.build(mixtures(torch.Generator().manual_seed(recipe.seed)))
    net: nn.Module = recipe.net.build().net
    return net


class PerceptualTerms(NamedTuple):
    """The two perceptual terms that go with a feature network: names, layers to choose from, scale of the first."""

    term: str
    distance: str
    groups: tuple[tuple[int, ...], ...]
    scale: float


PERCEPTUAL = {
    "squeezenet": PerceptualTerms("features-squeeze", "perceptual-squeeze", SQUEEZENET_GROUPS, SQUEEZENET_SCALE),
    "vgg19": PerceptualTerms("features-vgg19", "lpips-alexnet", VGG19_GROUPS, 1.0),
}


def build_space(
    recipe: SearchRecipe, root: Path, device: torch.device | str = "cpu", *, clipped: bool = False
) -> LossSpace:
    """The losses, every weight 1. clipped: whatever the recipe says, for a loss that only takes over what was found.

    Raises: WeightsError where the weights of the perceptual terms are not in `features` below the data root.
    """
    if recipe.loss.features is None:
        terms = published_terms()
    else:
        seen = PERCEPTUAL[recipe.loss.features]
        networks = feature_networks((seen.term, seen.distance), root, device)
        network, distance = networks[seen.term], networks[seen.distance]
        assert isinstance(network, FeatureNetwork)
        assert isinstance(distance, DirectionDistance)
        logits = near_zero(seen.groups, torch.Generator().manual_seed(recipe.seed))
        term = FeatureChoice(network, seen.groups, logits=logits, scale=seen.scale)
        terms = published_terms(features=(seen.term, term), distance=distance)
    return LossSpace(terms, constraint=Clipped() if clipped else recipe.loss.bound()).to(device)


def build_search(
    recipe: SearchRecipe, stage: Stage, net: nn.Module, space: LossSpace, upper: Loss | None, machine: Machine
) -> Search:
    """The scheme of one stage."""
    settings = recipe.loss_optimizer if stage.what == "loss" else recipe.architecture_optimizer
    one_step = OneStepUnrolled(recipe.unrolled_step)
    searched, omega = searched_parameters(stage.what, net, space), network_weights(net).values()
    return Search(
        restorer=net,
        space=space,
        what=stage.what,
        upper=None if stage.what == "architecture" else upper,
        strategy=FirstOrder() if stage.what == "architecture" and not recipe.second_order else one_step,
        searcher=Learner(searched, build_optimizer(settings), clip=settings.clip, machine=machine),
        learner=Learner(omega, build_optimizer(recipe.optimizer), clip=recipe.optimizer.clip, machine=machine),
        machine=machine,
        warmup=recipe.warmup,
    )


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

    One that is interrupted there goes on, one that is finished is not done again.

    judge: a trained one; None trains the recipe's own first, below `folder`. reports: those of a stage, by its name.

    Raises: ConfigError for a judge that is not good enough, or where `folder` holds another search; DataError where the
    data cannot be used.
    """
    machine, place, share = machine_of(recipe.precision, device)
    main = share.rank == 0
    plan = stages(recipe)
    keep_recipe(recipe, folder, write=main)
    if (folder / "search.json").exists():
        finished: dict[str, Any] = json.loads((folder / "search.json").read_text())
        return finished
    upper, admitted = None, None
    if needs_judge(recipe):
        path = judge or train_recipe_judge(recipe, root, folder / "judge", device=device, reports=reports("judge"))
        module, admitted = judges.competent(path, task=recipe.task, train=recipe.data.train)
        upper = judged(module.to(place, memory_format=torch.channels_last))  # type: ignore[call-overload]

    source = build_mixture(recipe.data.train, root, Crops(recipe.data.crop))
    seen, held = split_source(source, pictures=recipe.data.pictures)
    size, seed = recipe.data.batch, recipe.seed
    train = Batches(seen, size, seed=seed, share=share, device=place)
    validation = Batches(held, size, seed=seed + SECOND_STREAM, share=share, device=place)

    def batches(n: int) -> tuple[Sequence[Sample], ...]:
        return [train(n)], [validation(n)]

    found: LossFile | None = None
    done: dict[str, Any] = {}
    for stage in plan:
        net = build_net(recipe).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        given = stage.found or found
        space = build_space(recipe, root, place, clipped=given is not None)
        if given is not None:
            space.assume(given)
        scheme = build_search(recipe, stage, net, space, upper, machine)
        inside = folder / stage.name
        told = [*reports(stage.name), *([JsonLines(inside / "log.jsonl", every=1)] if main else [])]
        run = Run(inside, minutes=minutes, validate_every=stage.steps, main=main)
        done[stage.name] = carried_out(scheme, stage, batches, run, [*told, CollapseGuard(recipe.collapse)])
        if stage.what != "architecture":
            found = space.derive()
    genotype = derive(net) if isinstance(net, HadamardNet) and plan[-1].what != "loss" else None
    loss = found or plan[-1].found or space.derive()
    result = account(recipe, done, loss, admitted, place)
    if genotype is not None:
        result |= {
            "skip_ratio": round(genotype.skip_ratio, 4),
            "entropy": round(entropy(net), 4),
            "parameters": sum(p.numel() for p in network_of(recipe, genotype).parameters()),
        }
    if main:
        draw_features(folder / "features.png", loss, net, validation(0), root)
        hand_over(recipe, folder, plan, loss, genotype, result)
    return result


def account(
    recipe: SearchRecipe,
    stages_done: dict[str, Any],
    loss: LossFile,
    judge: judges.JudgeFacts | None,
    place: torch.device,
) -> dict[str, Any]:
    """What search.json says of a search, whatever it searched."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "recipe": recipe.name,
        "task": recipe.task,
        "kind": recipe.search.kind,
        "seed": recipe.seed,
        "stages": stages_done,
        "loss": dict(loss.weights),
        "layers": {name: list(layers) for name, layers in loss.layers.items()},
        "judge": None if judge is None else judge.model_dump(),
        "cpu_seconds": total([stage["cpu_seconds"] for stage in stages_done.values()]),
        "device": str(place),
        "peak_memory_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }


def total(parts: Sequence[float | None]) -> float | None:
    """Their sum; None where one is not known."""
    known = [part for part in parts if part is not None]
    return round(sum(known), 1) if len(known) == len(parts) else None


def carried_out(
    scheme: Search,
    stage: Stage,
    batches: Callable[[int], tuple[Sequence[Sample], ...]],
    run: Run,
    reports: Sequence[Report],
) -> dict[str, Any]:
    """Runs a stage to its end, or until it collapses; its facts. A stage finished before tells no hypergradient."""
    ended: Collapsed | None = None
    spent = None
    try:
        spent = fit(scheme, batches, until=stage.steps, run=run, reports=reports)
    except Collapsed as collapsed:
        ended = collapsed
    return {
        "steps": stage.steps if ended is None else ended.step,
        "seconds": None if spent is None else round(spent.seconds, 1),
        "cpu_seconds": None if spent is None else round(spent.cpu_seconds, 1),
        "ended_early": None if ended is None else str(ended),
        **({} if scheme.cost is None else {"hypergradient": scheme.cost._asdict()}),
        **{name: round(value, 6) for name, value in facts(scheme.restorer, scheme.space).items()},
    }


def network_of(recipe: SearchRecipe, genotype: Genotype) -> HadamardNet:
    """The found network, untrained."""
    net = recipe.net
    if not isinstance(net, SupernetSpec):
        raise ConfigError("a search of a loss alone finds no network")
    return genotype.network(width=net.width, combine=COMBINATIONS[net.combine])


@torch.no_grad()
def draw_features(path: Path, loss: LossFile, net: nn.Module, shown: Sample, root: Path) -> None:
    """What the feature layers that a loss chose see; nothing where it has none."""
    for name, layers in loss.layers.items():
        network = feature_networks((name,), root, shown.clean.device)[name]
        assert isinstance(network, FeatureNetwork)
        drawings.features(path, network, layers, shown, net.eval()(shown.observed))


def hand_over(
    recipe: SearchRecipe,
    folder: Path,
    plan: Sequence[Stage],
    loss: LossFile,
    genotype: Genotype | None,
    result: dict[str, Any],
) -> None:
    """Writes what was found and how: loss.yaml, genotype.json, pictures, traces; last search.json, which ends it."""
    loss.write(folder / "loss.yaml")
    drawings.draw_weights(folder / "weights.png", {recipe.task: loss.weights})
    if genotype is not None:
        genotype.write(folder / "genotype.json")
        picture(genotype, folder / "architecture.png")
    traces = {stage.name: drawings.traces_of(folder / stage.name / "log.jsonl") for stage in plan}
    write_text(folder / "traces.json", json.dumps(traces) + "\n")
    drawings.traces(folder / "traces.png", traces)
    write_text(folder / "search.json", json.dumps(result, indent=1) + "\n")


def train_recipe_judge(
    recipe: SearchRecipe, root: Path, folder: Path, *, device: str = "auto", reports: Sequence[Report] = ()
) -> Path:
    """The path of the judge that the recipe names, trained in `folder`; what lies there is gone on with.

    Raises: ConfigError where another one lies there.
    """
    settings = checked(JudgeRecipe, reading.tree_of(recipe.judge), recipe.judge)
    judges.train_judge(settings, root, folder, device=device, reports=reports)
    return folder / "judge.safetensors"
