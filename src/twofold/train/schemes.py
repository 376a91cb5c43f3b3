"""Training schemes. A scheme holds the learned modules and does one step; the loop is the same for all.

Names as in Gao et al. 2022: θ are the guide's parameters, ω the reconstruction's; D_h carries true guidance maps,
D_tr need not. With a guide that sees only the observation, the guide's loss does not depend on ω, so Algorithm 1
trains θ exactly as if alone: the control that shows it is `Frozen`, and docs/guidance.md holds the comparison.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import EXPOSURE, ConfigError, DataError, GuidanceKind, Sample
from twofold.losses import Loss
from twofold.restorers.guided import Guided
from twofold.settings import Count, Settings, Share
from twofold.train.learner import Learner, Machine, Optimizer, Schedule, learner_of

Draw = Sequence[Sample]


class Report(Protocol):
    """What is called while a run goes on: a progress bar, a log file, TensorBoard, a test."""

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        """After each step: `done` of `until` steps, and the losses by name."""

    def validated(self, done: int, scores: dict[str, float]) -> None:
        """After each validation: scores by `set/metric`."""


class Scheme(Protocol):
    """One way of training."""

    @property
    def restorer(self) -> nn.Module:
        """What is trained, validated and saved."""

    def step(self, *draws: Draw) -> dict[str, float]:
        """Trains on the samples of one step, images `(B, C, H, W)`; returns the losses that the log shows, by name."""


@dataclass(frozen=True)
class Parts:
    """What a scheme is built from. model: the kind of the restorer's specification, for messages."""

    restorer: nn.Module
    loss: Loss
    steps: int
    model: str = ""
    optimizer: Optimizer = field(default_factory=Optimizer)
    guide_optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    machine: Machine = field(default_factory=Machine)
    seed: int = 0

    def learner(self, module: nn.Module, steps: float, optimizer: Optimizer | None = None) -> Learner:
        """Of all parameters of `module`, for so many steps."""
        whole = max(round(steps), 1)
        return learner_of(module.parameters(), optimizer or self.optimizer, self.schedule, whole, self.machine)

    def guided(self, kind: str) -> Guided:
        """The restorer, if it has a guide. Raises: ConfigError where it has none."""
        if not isinstance(self.restorer, Guided):
            raise ConfigError(f"scheme.kind: {kind!r} trains a guide, but model.kind is {self.model!r}")
        return self.restorer


@dataclass(frozen=True)
class Streams:
    """Opens streams of batches, each a function of the number of the batch.

    pairs: D_tr. causes: D_h, drawn with a seed of its own. causes_alone: D_h with the seed of D_tr, for a scheme that
    draws from nothing else.
    """

    pairs: Callable[[], Callable[[int], Sample]]
    causes: Callable[[], Callable[[int], Sample]]
    causes_alone: Callable[[], Callable[[int], Sample]]


class SchemeSettings(Settings):
    """The settings of a scheme build it, and say what each of its steps draws."""

    @abstractmethod
    def build(self, parts: Parts) -> Scheme:
        """Raises: ConfigError where the model does not fit the scheme."""

    def draws(self, streams: Streams, steps: int) -> Callable[[int], tuple[Draw, ...]]:
        """What step n of `steps` draws: by default one batch of D_tr."""
        pairs = streams.pairs()
        return lambda n: ([pairs(n)],)

    def reports(self, folder: Path) -> list[Report]:
        """Reports of its own, beside the usual ones."""
        return []


def state_of(scheme: Scheme) -> dict[str, Any]:
    """What must be kept to go on later: the state of every module and learner that the scheme holds."""
    return {name: part.state_dict() for name, part in vars(scheme).items() if hasattr(part, "state_dict")}


def load_state(scheme: Scheme, state: dict[str, Any]) -> None:
    """Puts back what `state_of` returned. Raises: ValueError, LookupError or RuntimeError where it does not fit."""
    for name, part in state.items():
        getattr(scheme, name).load_state_dict(part)


def true_guidance(sample: Sample) -> Tensor:
    """Raises: DataError where a sample carries no map."""
    if sample.guidance is None:
        raise DataError("training a guide needs true guidance maps: use synthetic data, or pairs with a guidance rule")
    return sample.guidance


@dataclass
class Supervised:
    """The reconstruction loss alone, on everything the restorer has. For a network without guidance: plain training."""

    restorer: nn.Module
    loss: Loss
    learner: Learner
    machine: Machine = field(default_factory=Machine)

    def step(self, *draws: Draw) -> dict[str, float]:
        total = 0.0
        (samples,) = draws
        for sample in samples:
            with self.machine.autocast():
                restored = self.restorer(sample.observed, kernel=sample.kernel).image
            loss = self.loss(restored.float(), sample.clean)
            self.learner.descend(loss)
            total += loss.item() / len(samples)
        return {"restoration": total}


class SupervisedSpec(SchemeSettings):
    """See `Supervised`."""

    kind: Literal["supervised"] = "supervised"

    def build(self, parts: Parts) -> Supervised:
        return Supervised(parts.restorer, parts.loss, parts.learner(parts.restorer, parts.steps), parts.machine)


def guide_loss(restorer: Guided, sample: Sample, machine: Machine) -> Tensor:
    """g of Gao et al. 2022, eq. (6): mean squared error of the map; of the stage kind, the mean over the stages."""
    maps: list[Tensor] = []
    with machine.autocast():
        if restorer.guide.stage:

            def draw(observed: Tensor, current: Tensor) -> Tensor:
                maps.append(restorer.guide(observed, current))
                return maps[-1]

            restorer(sample.observed, guidance=draw, kernel=sample.kernel)
        else:
            maps.append(_estimated(restorer, sample.observed))
    truth = true_guidance(sample)
    return torch.stack([F.mse_loss(m.float(), truth) for m in maps]).mean()


def detached_guidance(restorer: Guided, sample: Sample) -> Tensor | Callable[[Tensor, Tensor], Tensor]:
    """The guide's map without gradient, so that f does not move θ in the second half of Algorithm 1."""
    if restorer.guide.stage:
        return lambda observed, current: restorer.guide(observed, current).detach()
    with torch.no_grad():
        return _estimated(restorer, sample.observed)


def _estimated(restorer: Guided, observed: Tensor) -> Tensor:
    estimated = restorer.estimate(observed)
    assert isinstance(estimated, Tensor), "a stage guide is called by the network"
    return estimated


def steered(
    sample: Sample, guidance: Tensor, share: float, generator: torch.Generator, kind: GuidanceKind
) -> tuple[Tensor, Tensor]:
    """Teaches what a strength means: `(guidance, target)`, a share of the samples with both scaled by the same s.

    guidance: `(B, 1, H, W)`; target: `(B, C, H, W)`. Where the map is scaled by s, the target is `observed + s (clean −
    observed)`, s in [0, 1], and a third of the steered samples have s = 0. An exposure in stops is scaled by s in [0.4,
    1.3], and the target is clean · 2^((s − 1) guidance), clipped: the brightness that so many stops give.
    """
    b = sample.clean.shape[0]
    chosen, strength = torch.rand(2, b, generator=generator)
    if kind == EXPOSURE:
        s = torch.where(chosen < share, 0.4 + 0.9 * strength, torch.ones(())).to(sample.clean.device).view(b, 1, 1, 1)
        return guidance * s, (sample.clean * ((s - 1) * guidance.float()).exp2()).clamp(max=1.0)
    s = torch.where(chosen < share, (strength * 1.5 - 0.5).clamp(min=0.0), torch.ones(()))
    s = s.to(sample.clean.device).view(b, 1, 1, 1)
    return guidance * s, sample.observed + s * (sample.clean - sample.observed)


@dataclass
class GuidedTraining:
    """Algorithm 1 of Gao et al. 2022: θ on g over D_h, then ω on f over D_tr with the guidance detached.

    The lengths of the two draws are the number of steps of each half. steering: share of the ω-samples that are steered
    (0 is the paper; only for maps that say how much of the cause there is, such as a rain region).
    """

    restorer: Guided
    loss: Loss
    guide_learner: Learner
    learner: Learner
    machine: Machine = field(default_factory=Machine)
    steering: float = 0.0
    seed: int = 0

    def step(self, *draws: Draw) -> dict[str, float]:
        known_causes, samples = draws
        g = 0.0
        for sample in known_causes:
            loss = guide_loss(self.restorer, sample, self.machine)
            self.guide_learner.descend(loss)
            g += loss.item() / len(known_causes)
        f = 0.0
        for sample in samples:
            with self.machine.autocast():
                guidance = detached_guidance(self.restorer, sample)
                target = sample.clean
                if self.steering and isinstance(guidance, Tensor):
                    generator = torch.Generator().manual_seed(self.seed + self.learner.schedule.last_epoch)
                    guidance, target = steered(sample, guidance, self.steering, generator, self.restorer.kind)
                restored = self.restorer(sample.observed, guidance=guidance, kernel=sample.kernel).image
            loss = self.loss(restored.float(), target)
            self.learner.descend(loss)
            f += loss.item() / len(samples)
        return {"restoration": f, "guidance": g}


class GuidedTrainingSpec(SchemeSettings):
    """guide_updates, net_updates: of each half in one step. steering: share of samples with a random strength."""

    kind: Literal["guided"] = "guided"
    guide_updates: Count = 1
    net_updates: Count = 1
    steering: Share = 0.0

    def build(self, parts: Parts) -> GuidedTraining:
        restorer = parts.guided(self.kind)
        theta = parts.learner(restorer.guide, parts.steps * self.guide_updates, parts.guide_optimizer)
        omega = parts.learner(restorer.net, parts.steps * self.net_updates)
        return GuidedTraining(restorer, parts.loss, theta, omega, parts.machine, self.steering, parts.seed)

    def draws(self, streams: Streams, steps: int) -> Callable[[int], tuple[Draw, ...]]:
        """(D_h, D_tr)."""
        halves = (streams.causes(), self.guide_updates), (streams.pairs(), self.net_updates)
        return lambda n: tuple([half(n * k + i) for i in range(k)] for half, k in halves)


@dataclass
class Naive:
    """f + g descended jointly over D_h, nothing detached: the paper's comparison."""

    restorer: Guided
    loss: Loss
    learner: Learner
    machine: Machine = field(default_factory=Machine)

    def step(self, *draws: Draw) -> dict[str, float]:
        f = g = 0.0
        (samples,) = draws
        for sample in samples:
            with self.machine.autocast():
                restored = self.restorer(sample.observed, kernel=sample.kernel)
            restoration = self.loss(restored.image.float(), sample.clean)
            guidance = F.mse_loss(restored.guidance.float(), true_guidance(sample))
            self.learner.descend(restoration + guidance)
            f += restoration.item() / len(samples)
            g += guidance.item() / len(samples)
        return {"restoration": f, "guidance": g}


class NaiveSpec(SchemeSettings):
    """See `Naive`."""

    kind: Literal["naive"] = "naive"

    def build(self, parts: Parts) -> Naive:
        restorer = parts.guided(self.kind)
        return Naive(restorer, parts.loss, parts.learner(restorer, parts.steps), parts.machine)

    def draws(self, streams: Streams, steps: int) -> Callable[[int], tuple[Draw, ...]]:
        """(D_h)."""
        causes = streams.causes_alone()
        return lambda n: ([causes(n)],)


@dataclass
class Frozen:
    """θ first, for `pretraining` steps, then ω with θ frozen: the control for Algorithm 1."""

    restorer: Guided
    loss: Loss
    guide_learner: Learner
    learner: Learner
    pretraining: int
    machine: Machine = field(default_factory=Machine)

    def step(self, *draws: Draw) -> dict[str, float]:
        known_causes, samples = draws
        both = GuidedTraining(self.restorer, self.loss, self.guide_learner, self.learner, self.machine)
        if self.guide_learner.schedule.last_epoch < self.pretraining:
            return {"guidance": both.step(known_causes, ())["guidance"]}
        return {"restoration": both.step((), samples)["restoration"]}


class FrozenSpec(SchemeSettings):
    """pretraining: share of the steps in which the guide alone is trained."""

    kind: Literal["frozen"] = "frozen"
    pretraining: Share = 0.5

    def build(self, parts: Parts) -> Frozen:
        restorer, first = parts.guided(self.kind), self._first(parts.steps)
        theta = parts.learner(restorer.guide, first, parts.guide_optimizer)
        omega = parts.learner(restorer.net, parts.steps - first)
        return Frozen(restorer, parts.loss, theta, omega, first, parts.machine)

    def draws(self, streams: Streams, steps: int) -> Callable[[int], tuple[Draw, ...]]:
        """(D_h, nothing), then (nothing, D_tr); each half counts its own steps, and so sees what `GuidedTraining`
        shows it.
        """
        first, causes, pairs = self._first(steps), streams.causes(), streams.pairs()
        return lambda n: ([causes(n)], []) if n < first else ([], [pairs(n - first)])

    def _first(self, steps: int) -> int:
        return round(self.pretraining * steps)
