"""Searching a loss, an architecture or both, as a way of training (Zhu et al. 2022, eq. 2 to 4).

Three levels: a judge says which loss weights β are right, the loss says which architecture α is right, and ω are the
network's weights. A turn sees one batch of each half of the data, split by picture: first what is searched moves by
its hypergradient on the validation half, then ω by one step on the training half. So every search is an ordinary run
of `twofold.train.loop.fit`: logged, resumed, reproducible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twofold.contracts import ConfigError, DataError, Sample, TwofoldError
from twofold.data.crops import CropCache
from twofold.data.depth import HazyCrops
from twofold.data.sources import Mixture, PairCrops, Source, SyntheticCrops
from twofold.losses import Loss
from twofold.nets.hadamard import HadamardNet
from twofold.nets.judge import clear_loss
from twofold.search.genotype import derive, entropy
from twofold.search.loss_space import LossSpace
from twofold.search.supernet import architecture, mixtures_of, weights
from twofold.solve import Bilevel, Cost, Strategy, hypergradient
from twofold.train.schemes import Draw, Learner, Machine

What = Literal["loss", "architecture", "both"]
Parameters = dict[str, Any]  # {"loss": β by name, "architecture": α by name}, empty where not searched


def judged(judge: nn.Module) -> Loss:
    """The upper loss of a loss search: how far the judge is from calling the restored picture clear.

    The judge is frozen. The clean picture plays no part.
    """
    judge.eval().requires_grad_(False)
    return lambda restored, clean: clear_loss(judge(restored))


@dataclass
class Search:
    """Moves what is searched by its hypergradient, then ω by one step; `step` sees the batches of both halves.

    restorer: observed → restored, the supernet or, where the loss alone is searched, any network. space: the lower
    loss. what: "loss" moves β only (α stays at its start), "architecture" α only, "both" the two at once (the paper's
    ablation). upper: `judged(judge)` for the loss; None takes the lower loss on the validation half, which is for the
    architecture alone (the loss that is searched must not judge itself: it would shrink to zero). strategy:
    `OneStepUnrolled` wherever β is searched, since its first-order gradient is zero; `FirstOrder` will do for α.
    warmup: turns in which ω alone moves.

    Raises: ConfigError where a loss is searched without an upper one.
    """

    restorer: nn.Module
    space: LossSpace
    what: What
    upper: Loss | None
    strategy: Strategy
    searcher: Learner
    learner: Learner
    machine: Machine = field(default_factory=Machine)
    warmup: int = 0
    cost: Cost | None = None

    def __post_init__(self) -> None:
        if self.upper is None and self.what != "architecture":
            raise ConfigError("a loss that judges itself shrinks to zero; give `upper`, such as judged(judge)")

    def step(self, *draws: Draw) -> dict[str, float]:
        (train,), (validation,) = draws
        shown: dict[str, float] = {}
        if self.learner.schedule.last_epoch >= self.warmup:
            shown["upper"] = self._search(train, validation)
        loss = self.space(self._restored(self.restorer, train), train.clean)
        self.learner.descend(loss)
        return {"restoration": loss.item(), **shown, **facts(self.restorer, self.space)}

    def _search(self, train: Sample, validation: Sample) -> float:
        """One step of what is searched; the upper loss before it."""
        found = hypergradient(self.problem(train, validation), self.searched(), self.omega(), strategy=self.strategy)
        self.cost = found.cost
        slopes = {**found.gradient["loss"], **found.gradient["architecture"]}
        searched = {**self.searched()["loss"], **self.searched()["architecture"]}
        # A linear function has the hypergradient as its gradient: the learner then clips, averages and steps as ever.
        self.searcher.descend(torch.stack([(searched[name] * slopes[name]).sum() for name in searched]).sum())
        self.space.project()
        return found.value.item()

    def problem(self, train: Sample, validation: Sample) -> Bilevel:
        """upper(searched, ω) and lower(searched, ω), for `hypergradient`."""
        alpha = {name: value.detach() for name, value in architecture(self.restorer).items()}
        beta = {name: value.detach() for name, value in self.space.named_parameters()}

        def restored(searched: Parameters, omega: Parameters, sample: Sample) -> Tensor:
            given = {**alpha, **searched["architecture"], **omega}
            return self._restored(lambda observed: _call(self.restorer, given, observed), sample)

        def trained(searched: Parameters, omega: Parameters, sample: Sample) -> Tensor:
            image = restored(searched, omega, sample)
            return _call(self.space, {**beta, **searched["loss"]}, image, sample.clean)

        def upper(searched: Parameters, omega: Parameters) -> Tensor:
            if self.upper is None:
                return trained(searched, omega, validation)
            return self.upper(restored(searched, omega, validation), validation.clean)

        return Bilevel(upper=upper, lower=lambda searched, omega: trained(searched, omega, train))

    def searched(self) -> Parameters:
        """The parameters that are searched, by kind and name."""
        beta, alpha = dict(self.space.named_parameters()), architecture(self.restorer)
        return {
            "loss": {} if self.what == "architecture" else beta,
            "architecture": {} if self.what == "loss" else alpha,
        }

    def omega(self) -> dict[str, nn.Parameter]:
        """The weights that are trained."""
        return weights(self.restorer)

    def _restored(self, network: Callable[[Tensor], Tensor], sample: Sample) -> Tensor:
        with self.machine.autocast():
            image = network(sample.observed)
        return image.to(torch.promote_types(image.dtype, torch.float32))


def _call(module: nn.Module, parameters: Parameters, *inputs: Tensor) -> Tensor:
    result: Tensor = torch.func.functional_call(module, parameters, inputs)
    return result


def searched_parameters(what: What, network: nn.Module, space: LossSpace) -> list[nn.Parameter]:
    """What the searcher's optimizer moves."""
    beta = [] if what == "architecture" else list(space.parameters())
    return beta + ([] if what == "loss" else list(architecture(network).values()))


@torch.no_grad()
def facts(network: nn.Module, space: LossSpace) -> dict[str, float]:
    """What a search shows while it runs: λ by name; of a supernet the mean entropy of its choices (1: undecided), and
    the share of unit places where SC leads.
    """
    shown = {f"weight/{name}": value for name, value in zip(space.terms, space.weights().tolist(), strict=True)}
    if isinstance(network, HadamardNet) and mixtures_of(network):
        shown |= {"entropy": entropy(network), "skip_ratio": derive(network).skip_ratio}
    return shown


class Collapsed(TwofoldError):
    """A search is about to choose a network that does next to nothing. turn: when it was stopped."""

    def __init__(self, turn: int, ratio: float) -> None:
        super().__init__(
            f"after {turn} turns SC leads at {ratio:.0%} of the places: the search collapses to doing nothing, which "
            "gradient-based searches are prone to; stop earlier, lower the rate of architecture_optimizer, or take "
            "another seed"
        )
        self.turn, self.ratio = turn, ratio


@dataclass(frozen=True)
class CollapseGuard:
    """A report of `fit` that ends a search by raising `Collapsed` where the share of SC exceeds `limit`."""

    limit: float

    def turn(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        ratio = losses.get("skip_ratio", 0.0)
        if ratio > self.limit:
            raise Collapsed(done, ratio)

    def validated(self, done: int, scores: dict[str, float]) -> None:
        pass


def halves(source: Source, *, pictures: int = 0) -> tuple[Source, Source]:
    """(training, validation): the same source on every other clean picture and on the rest, a split by picture.

    Pairs whose clean pictures hold the same bytes, such as one scene at several densities of haze, stay together, also
    across the sources of a mixture. pictures: take so many clean pictures in all, evenly spread; 0 takes all.

    Raises: DataError for a source with fewer than two clean pictures, or of a kind that cannot be split.
    """
    return _halves(source, pictures, {})


def _halves(source: Source, pictures: int, sides: dict[bytes, int]) -> tuple[Source, Source]:
    """sides: the half of every scene that was met, by its digest; those of this source join it."""
    match source:
        case PairCrops():
            first, second = _split(source.clean.pictures, pictures, sides)

            def part(chosen: Sequence[int]) -> Source:
                return replace(source, observed=_only(source.observed, chosen), clean=_only(source.clean, chosen))

        case SyntheticCrops():
            first, second = _split(source.clean.pictures, pictures, sides)

            def part(chosen: Sequence[int]) -> Source:
                return replace(source, clean=_only(source.clean, chosen))

        case HazyCrops():
            first, second = _split(source.clean.pictures, pictures, sides)

            def part(chosen: Sequence[int]) -> Source:
                depths = [source.depths[i] for i in chosen]
                return replace(source, clean=_only(source.clean, chosen), depths=depths)

        case Mixture():
            share = -(-pictures // len(source.sources))
            parts = [_halves(inner, share, sides) for inner in source.sources]
            return tuple(Mixture(half, source.weights) for half in zip(*parts, strict=True))  # type: ignore[return-value]
        case _:
            raise DataError(f"a {type(source).__name__} cannot be split by picture; take pairs or clean pictures")
    return part(first), part(second)


def _split(pictures: Sequence[Tensor], limit: int, sides: dict[bytes, int]) -> tuple[list[int], list[int]]:
    """Indices of both halves, whole scenes each."""
    scenes: dict[bytes, list[int]] = {}
    for number, picture in enumerate(pictures):
        scenes.setdefault(hashlib.sha256(picture.numpy().tobytes()).digest(), []).append(number)
    for number, scene in enumerate(scenes):
        sides.setdefault(scene, number % 2)
    halved = [[numbers for scene, numbers in scenes.items() if sides[scene] == side] for side in (0, 1)]
    if not all(halved) or limit == 1:
        seen = "data.pictures asks for 1 of a source" if limit == 1 else f"got {len(scenes)} that other sources lack"
        raise DataError(f"a search takes at least 2 different clean pictures, one for each half; {seen}")
    # The limit comes after the split: a judge that sees more pictures than a search still shares its halves.
    first, second = (
        _evenly(half, limit // 2 + limit % 2 * (1 - side) if limit else 0) for side, half in enumerate(halved)
    )
    return list(chain(*first)), list(chain(*second))


def _evenly(scenes: Sequence[list[int]], limit: int) -> Sequence[list[int]]:
    """At most `limit` of them, evenly over the whole; 0 for all."""
    return [scenes[i * len(scenes) // limit] for i in range(limit)] if 0 < limit < len(scenes) else scenes


def _only(cache: CropCache, chosen: Sequence[int]) -> CropCache:
    return replace(cache, pictures=[cache.pictures[i] for i in chosen])
