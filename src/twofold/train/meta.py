"""Bilevel Meta Optimization of a restorer whose result is a fixed point (Liu et al. 2022).

In training every iterate also takes a descent step on the upper loss against the clean image. At test time the clean
image is unknown, so restoring iterates T alone (inference, docs/bmo.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from twofold.contracts import ConfigError, Sample
from twofold.losses import Loss
from twofold.restorers.fixed_point import FixedPointRestorer, Problem
from twofold.settings import Amount, Count
from twofold.solve import Harmonic, Operator, State, StepSchedule, aggregated_step, metric_of
from twofold.solve.linear import metric_norm
from twofold.solve.params import minus
from twofold.train.convergence import Convergence
from twofold.train.learner import Learner, Machine, check_finite
from twofold.train.schemes import Draw, Parts, Report, SchemeSettings


class Watched:
    """An operator that writes down the residual ‖T(u) − u‖, in its metric, of every state it is asked about."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.metric = metric_of(operator)
        self.residuals: list[Tensor] = []

    def __call__(self, u: State) -> State:
        image = self.operator(u)
        with torch.no_grad():
            self.residuals.append(metric_norm(self.metric, minus(image, u), per_sample=True).mean())
        return image


def solve(
    problem: Problem, leader: Callable[[Tensor], Tensor], *, iterations: int, mu: float, schedule: StepSchedule
) -> tuple[State, list[float]]:
    """The state after `iterations` aggregated steps, differentiable, and the mean residual at each of them.

    leader: picture → scalar, what the leader descends in the state; its gradient 1-Lipschitz. schedule: its step sizes
    s_k, in units of 1 / slope², the largest that the metric and the picture's own slope allow.
    """
    operator, u = Watched(problem.operator), problem.start
    for k in range(iterations):
        u = aggregated_step(
            operator,
            lambda v: leader(problem.image(v)),
            u,
            mu=mu,
            step=schedule(k) / problem.slope**2,
            project=problem.project,
        )
    return u, [r.item() for r in operator.residuals]


def contraction(residuals: list[float]) -> float:
    """The mean factor by which the residual fell at each of the later half of the steps; below 1 it settles.

    >>> contraction([8.0, 4.0, 1.0, 0.5, 0.25])
    0.5
    """
    first = len(residuals) // 2
    steps = len(residuals) - 1 - first
    if steps < 1 or residuals[first] <= 0:
        return float("nan")
    return float((residuals[-1] / residuals[first]) ** (1 / steps))


@dataclass
class MetaTraining:
    """w ← w − γ ∇φ_K(w), φ_K(w) = loss at the picture u_K(w), differentiated through all K aggregated steps.

    iterations: K. mu: the leader's share, 0 for plain unrolling. schedule: s_k, in units of the theory's bound; half
    the summed squared error leads. project: whether every iterate is projected onto the problem's U, in its metric.

    A step returns `restoration` (the upper loss), `lower` (half the mean squared residual of the last step),
    `gradient` (‖∇φ‖), `change` (‖w_{t+1} − w_t‖), `contraction`, and `residual/k` for every k, norms in T's metric.
    Memory grows with K: one pass of the network a step is kept.
    """

    restorer: FixedPointRestorer
    loss: Loss
    learner: Learner
    iterations: int = 10
    mu: float = 0.1
    schedule: StepSchedule = field(default=Harmonic(0.5))
    project: bool = True
    machine: Machine = field(default_factory=Machine)

    def step(self, *draws: Draw) -> dict[str, float]:
        (samples,) = draws
        facts = [self._descend(sample) for sample in samples]
        return {name: sum(fact[name] for fact in facts) / len(facts) for name in facts[0]}

    def _descend(self, sample: Sample) -> dict[str, float]:
        def leader(image: Tensor) -> Tensor:
            return 0.5 * (image.float() - sample.clean).square().sum()

        with self.machine.autocast():
            problem = self.restorer.problem(sample.observed, sample.kernel)
            if not self.project:
                problem = problem._replace(project=None)
            u, residuals = solve(problem, leader, iterations=self.iterations, mu=self.mu, schedule=self.schedule)
            restored = problem.image(u)
        loss = self.loss(restored.float(), sample.clean)
        before = [p.detach().clone() for p in self.learner.parameters]
        check_finite("loss", loss)
        gradients = torch.autograd.grad(loss, self.learner.parameters, allow_unused=True)
        self.learner.step(gradients)
        moved = sum(
            float((p.detach() - b).square().sum()) for p, b in zip(self.learner.parameters, before, strict=True)
        )
        return {
            "restoration": loss.item(),
            "lower": residuals[-1] ** 2 / 2,
            "gradient": float(torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()),
            "change": moved**0.5,
            "contraction": contraction(residuals),
            **{f"residual/{k}": residual for k, residual in enumerate(residuals)},
        }


class MetaSpec(SchemeSettings):
    """Bilevel Meta Optimization of a fixed point. iterations: K. mu: the leader's share, 0 to unroll. first: s_k is
    first / (k + 1), in units of the theory's bound. project: whether each iterate is projected onto the problem's
    bounded set, in its metric.
    """

    kind: Literal["meta"] = "meta"
    iterations: Count = 8
    mu: Annotated[float, Field(ge=0, lt=1)] = 0.1
    first: Amount = 0.5
    project: bool = True

    def build(self, parts: Parts) -> MetaTraining:
        if not isinstance(parts.restorer, FixedPointRestorer):
            raise ConfigError(f"scheme.kind: 'meta' trains a fixed point, but model.kind is {parts.model!r}")
        return MetaTraining(
            parts.restorer,
            parts.loss,
            parts.learner(parts.restorer, parts.steps),
            iterations=self.iterations,
            mu=self.mu,
            schedule=Harmonic(self.first),
            project=self.project,
            machine=parts.machine,
        )

    def reports(self, folder: Path) -> list[Report]:
        """How the fixed point settled."""
        return [Convergence(folder)]
