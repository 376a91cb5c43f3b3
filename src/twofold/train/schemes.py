"""Ways of training a restorer. A scheme holds what is learned and does one step; the loop around it is the same for
all.

Names as in Gao et al. 2022: θ are the guide's parameters, ω the reconstruction's; D_h carries true guidance maps,
D_tr need not. With a guide that sees only the observation, the guide's loss does not depend on ω, so Algorithm 1
trains θ exactly as if alone: the control that shows it is `Frozen`, and docs/guidance.md holds the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import EXPOSURE, DataError, GuidanceKind, Sample, TwofoldError
from twofold.losses import Loss
from twofold.restorers.guided import Guided

Draw = Sequence[Sample]


class Diverged(TwofoldError, FloatingPointError):
    """The loss or its gradient is no longer a number."""


class Scheme(Protocol):
    """One way of training: `step` sees the samples of one step and returns what the log shows."""

    @property
    def restorer(self) -> nn.Module: ...

    def step(self, *draws: Draw) -> dict[str, float]: ...


@dataclass(frozen=True)
class Machine:
    """Where a step is computed: the precision, and how gradients of several ranks become one."""

    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    average: Callable[[Tensor], Tensor] | None = None  # mean over ranks; None on a single one


class Learner:
    """An optimizer with its schedule over some parameters: `descend(loss)` is one step.

    schedule: the factor on the learning rate at step n, counted from 0. clip: largest norm of the gradient, 0 for none.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        schedule: Callable[[int], float] = lambda n: 1.0,
        clip: float = 0.0,
        machine: Machine | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = optimizer(self.parameters)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.clip = clip
        self.machine = machine or Machine()

    def descend(self, loss: Tensor) -> None:
        """Raises: Diverged where loss or gradient is not finite; the parameters are then left as they were."""
        _check_finite("loss", loss)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        used = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
        if self.machine.average is not None:  # one message for all: small networks pay per message
            flat = self.machine.average(torch.cat([g.flatten() for _, g in used]))
            parts = torch.split(flat, [g.numel() for _, g in used])
            used = [(p, part.view_as(p)) for (p, _), part in zip(used, parts, strict=True)]
        for p, g in used:
            p.grad = g
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip or torch.inf)
        _check_finite("gradient", norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "schedule": {"last_epoch": self.schedule.last_epoch}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]


def _check_finite(name: str, value: Tensor) -> None:
    if not torch.isfinite(value):
        raise Diverged(
            f"the training {name} became {value.item()}; train anew with a lower learning_rate or with a clip, "
            "both under optimizer and guide_optimizer"
        )


def state_of(scheme: Scheme) -> dict[str, Any]:
    """What must be kept to go on later: the state of every module and learner that the scheme holds."""
    return {name: part.state_dict() for name, part in vars(scheme).items() if hasattr(part, "state_dict")}


def load_state(scheme: Scheme, state: dict[str, Any]) -> None:
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
    """The guide's map with ∂f/∂θ cut, as the ω-half of Algorithm 1 wants it."""
    if restorer.guide.stage:
        return lambda observed, current: restorer.guide(observed, current).detach()
    with torch.no_grad():
        return _estimated(restorer, sample.observed)


def _estimated(restorer: Guided, observed: Tensor) -> Tensor:
    estimated = restorer.estimate(observed)
    assert isinstance(estimated, Tensor), "a stage guide is asked by the network"
    return estimated


def steered(
    sample: Sample, guidance: Tensor, share: float, generator: torch.Generator, kind: GuidanceKind
) -> tuple[Tensor, Tensor]:
    """Teaches what a strength means: `(guidance, target)`, a share of the samples with both scaled by the same s.

    Where the map is scaled by s, the target is `observed + s (clean − observed)`, s in [0, 1], and a third of the
    steered samples have s = 0. An exposure in stops is scaled by s in [0.4, 1.3], and the target is clean · 2^((s − 1)
    guidance), clipped: the brightness that so many stops give.
    """
    b = sample.clean.shape[0]
    chosen, strength = torch.rand(2, b, generator=generator)
    if kind is EXPOSURE:
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
