"""One loop that looks for u = T(u), and the two ways it can choose its next iterate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from twofold.solve.linear import metric_norm
from twofold.solve.operators import Operator, metric_of
from twofold.solve.params import SolveError, State, axpy, detach, minus, rebuild, tensors


class Solution(NamedTuple):
    """What a solve came to: an outcome is data, so nothing raises here when it has not converged.

    value: the state. steps: evaluations of T. residual: ‖T(u) − u‖ in T's metric, at the last iterate that was
    evaluated; the value is one step further, where a non-expansive T leaves no more than that. converged:
    whether that met the tolerance. history: the residual at every step. Shapes: `(B,)` and `(steps, B)`;
    without samples `()` and `(steps,)`.

    >>> found = iterate(lambda u: u / 2, torch.full((1, 1), 8.0), solver=KrasnoselskiiMann(1.0, steps=3, tolerance=0.0))
    >>> found.value, found.steps, found.history[:, 0]
    (tensor([[1.]]), 3, tensor([4., 2., 1.]))
    """

    value: State
    steps: int
    residual: Tensor
    converged: Tensor
    history: Tensor


class Solver(Protocol):
    """How to step. `advance` gets u, T(u), the residual and whatever it returned last time (at first None)."""

    @property
    def steps(self) -> int: ...
    @property
    def tolerance(self) -> float: ...
    def advance(self, u: State, image: State, residual: Tensor, memory: Any) -> tuple[State, Any]: ...


def iterate(operator: Operator, start: State, *, solver: Solver, per_sample: bool = True) -> Solution:
    """Runs a solver until ‖T(u) − u‖ ≤ tolerance · max(1, ‖u‖), norms in T's metric, or its steps are spent.

    per_sample: the first dimension counts samples, each of which is watched, stops and is accelerated by itself, so a
    solution does not depend on its neighbours in the batch; otherwise the state is one point, as the weights
    of a net. tolerance 0 takes every step. Differentiable like any other computation; `fixed_point` offers
    cheaper ways.

    >>> solution = iterate(lambda u: u / 2 + 1, torch.zeros(1, 1), solver=KrasnoselskiiMann(relaxation=1.0))
    >>> round(solution.value.item(), 4), solution.converged.item()
    (2.0, True)
    """
    if per_sample and (any(t.ndim == 0 for t in tensors(start)) or len({t.shape[0] for t in tensors(start)}) > 1):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(start))
        raise SolveError(
            f"the tensors of a state must share their number of samples, got {shapes}; or per_sample=False"
        )
    if solver.steps < 1:
        raise SolveError(f"expected at least one step, got {solver.steps}")
    metric = metric_of(operator)
    u, memory, active = start, None, None
    history: list[Tensor] = []
    for _ in range(solver.steps):
        image = operator(u)
        with torch.no_grad():
            residual = metric_norm(metric, minus(detach(image), detach(u)), per_sample=per_sample)
            size = metric_norm(metric, detach(u), per_sample=per_sample) if solver.tolerance > 0 else residual
            small = residual <= solver.tolerance * size.clamp_min(1)
        history.append(residual if active is None else torch.where(active, residual, history[-1]))
        fresh, memory = solver.advance(u, image, residual, memory)
        u = fresh if active is None else _where(active, fresh, u)
        if solver.tolerance > 0:
            still = ~small & residual.isfinite()
            active = still if active is None else active & still
            if not bool(active.any()):
                break
    record = torch.stack(history)
    # A sample that has stopped keeps the residual that stopped it, so the last line of the record judges every
    # sample.
    small = small if active is None else ~active & record[-1].isfinite()
    return Solution(u, len(history), record[-1], small, record)


@dataclass(frozen=True)
class KrasnoselskiiMann:
    """u ← u + relaxation (T(u) − u).

    relaxation: in (0, 1]. Below 1 it converges for every non-expansive T that has a fixed point; 1 is Picard's
    iteration, right for contractions and for operators that are averaged already, and faster there.

    >>> flip = lambda u: -u                                                        # Picard's iteration never settles
    >>> iterate(flip, torch.ones(1, 1), solver=KrasnoselskiiMann(relaxation=0.5, steps=1)).value
    tensor([[0.]])
    """

    relaxation: float = 0.5
    steps: int = 1000
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.relaxation <= 1:
            raise SolveError(f"relaxation must lie in (0, 1], got {self.relaxation}")

    def advance(self, u: State, image: State, residual: Tensor, memory: None) -> tuple[State, None]:
        return image if self.relaxation == 1 else axpy(self.relaxation, minus(image, u), u), None


@dataclass(frozen=True)
class Anderson:
    """Anderson's acceleration: the next iterate combines the last few so that their residuals nearly cancel.

    memory: how many differences are kept, each as large as the state. relaxation: as in Krasnoselskii-Mann. growth:
    where the residual has grown by more than this factor, a plain relaxed step is taken instead.

    Prefer it for smooth contractions with a factor near 1, where it needs far fewer steps. For merely non-expansive T
    there is no guarantee: take `KrasnoselskiiMann`.

    >>> slow = lambda u: 0.9 * u + 1
    >>> found = iterate(slow, torch.zeros(1, 1), solver=Anderson())                # plain iteration takes over 80 steps
    >>> round(found.value.item(), 3), found.steps
    (10.0, 3)
    """

    relaxation: float = 1.0
    steps: int = 200
    tolerance: float = 1e-5
    memory: int = 5
    growth: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.relaxation <= 1 or self.memory < 1:
            raise SolveError(f"expected relaxation in (0, 1] and memory ≥ 1, got {self.relaxation} and {self.memory}")

    def advance(
        self, u: State, image: State, residual: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]] | None
    ) -> tuple[State, list[tuple[Tensor, Tensor, Tensor]]]:
        rows = 1 if residual.ndim == 0 else len(residual)
        point = torch.cat([t.reshape(rows, -1) for t in tensors(u)], dim=1)
        gap = torch.cat([t.reshape(rows, -1) for t in tensors(minus(image, u))], dim=1)
        past = [*(memory or []), (point, gap, residual.reshape(rows, 1))][-self.memory - 1 :]
        plain = point + self.relaxation * gap
        if len(past) > 1:
            points = torch.stack([b[0] - a[0] for a, b in pairwise(past)], dim=2)
            gaps = torch.stack([b[1] - a[1] for a, b in pairwise(past)], dim=2)
            gram = gaps.mT @ gaps
            # Differences become parallel near the solution; the ridge is far below them and far above rounding.
            ridge = 10 * torch.finfo(gram.dtype).eps * gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30)
            eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
            weights = torch.linalg.solve(gram + ridge[:, None, None] * eye, gaps.mT @ gap[:, :, None])
            mixed = plain - ((points + self.relaxation * gaps) @ weights)[:, :, 0]
            plain = torch.where(past[-1][2] > self.growth * past[-2][2], plain, mixed)
        sizes = [t.numel() // rows for t in tensors(u)]
        parts = torch.split(plain, sizes, dim=1)
        return rebuild(u, [p.reshape(t.shape) for p, t in zip(parts, tensors(u), strict=True)]), past


def _where(choose: Tensor, one: State, other: State) -> State:
    """`one` for the samples that are chosen, else `other`."""
    pairs = zip(tensors(one), tensors(other), strict=True)
    return rebuild(
        one, [torch.where(choose.reshape(-1, *[1] * (a.ndim - 1)) if choose.ndim else choose, a, b) for a, b in pairs]
    )
