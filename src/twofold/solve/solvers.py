"""One loop that looks for u = T(u), and the two ways it can choose its next iterate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from twofold.solve.linear import flattened, metric_norm, unflattened
from twofold.solve.operators import Operator, metric_of
from twofold.solve.params import (
    SolveError,
    State,
    axpy,
    detach,
    minus,
    over,
    rebuild,
    require_finite,
    require_real,
    tensors,
)


class Solution(NamedTuple):
    """What a solve came to, as data; `fixed_point` raises `NotConverged` where it missed the tolerance.

    value: the state. steps: evaluations of T. residual: ‖T(u) − u‖ in T's metric at the last state that was evaluated;
    with a tolerance that is `value` itself, all samples together, without one `value` is a step further. converged:
    whether it meets the tolerance there. history: the residual at every evaluation. Shapes: `(B,)` and `(steps, B)`;
    without samples `()` and `(steps,)`.

    The distance to the fixed point is up to residual / (1 − ρ), ρ the contraction factor of T.

    >>> found = iterate(lambda u: u / 2, torch.full((1, 1), 8.0), solver=KrasnoselskiiMann(1.0, steps=3, tolerance=0.0))
    >>> found.value, found.steps, found.history[:, 0]
    (tensor([[1.]]), 3, tensor([4., 2., 1.]))
    """

    value: State
    steps: int
    residual: Tensor
    converged: Tensor
    history: Tensor


class NotConverged(SolveError):
    """A fixed-point solve that ended above its tolerance. solution: what it came to."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


class Solver(Protocol):
    """How to step, and when to stop: after `steps`, or at a residual of tolerance ‖u‖ + absolute.

    advance: (u, T(u), their distance `(B,)` or `()`, what it returned last time beside the state, at first None) → the
    next state, like u, and what it is to get next time.
    """

    @property
    def steps(self) -> int:
        """Most evaluations of T that an iterate may take."""

    @property
    def tolerance(self) -> float:
        """Of the residual, relative to ‖u‖; 0 takes every step."""

    @property
    def absolute(self) -> float:
        """Added to the relative tolerance."""

    def advance(self, u: State, image: State, residual: Tensor, memory: Any) -> tuple[State, Any]: ...


def iterate(operator: Operator, start: State, *, solver: Solver, per_sample: bool = True) -> Solution:
    """Runs a solver until ‖T(u) − u‖ ≤ tolerance ‖u‖ + absolute, norms in T's metric, or its steps are spent.

    per_sample: the first dimension counts samples. Each is accelerated by itself, takes one last step when it meets the
    tolerance and then waits, so a solution does not depend on its neighbours in the batch where T treats samples apart.
    Where it does not, a sample that waits moves on as soon as the others' steps have raised its residual: the solve
    ends at a state at which all samples meet the tolerance together. per_sample=False: the state is one point, as the
    weights of a net.

    tolerance 0 takes every step and judges nothing; else one evaluation of T more than steps judges the last state.
    Differentiable like any other computation; `fixed_point` offers cheaper ways. An outcome is data here.

    >>> solution = iterate(lambda u: u / 2 + 1, torch.zeros(1, 1), solver=KrasnoselskiiMann(relaxation=1.0))
    >>> round(solution.value.item(), 4), solution.converged.item()
    (2.0, True)
    """
    require_real(start, "start")
    require_finite(start, "start", "a solve cannot begin there")
    if per_sample and (any(t.ndim == 0 for t in tensors(start)) or len({t.shape[0] for t in tensors(start)}) > 1):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(start))
        raise SolveError(
            f"the tensors of a state must share their number of samples, got {shapes}; or per_sample=False"
        )
    metric, judged = metric_of(operator), solver.tolerance > 0
    u, memory, calm = start, None, None
    history: list[Tensor] = []
    for k in range(solver.steps + judged):
        image = operator(u)
        if k == 0:
            _require_same_shapes(start, image)
        with torch.no_grad():
            residual = metric_norm(metric, minus(detach(image), detach(u)), per_sample=per_sample)
            size = metric_norm(metric, detach(u), per_sample=per_sample) if judged else residual
            small = residual <= solver.tolerance * size + solver.absolute * judged
        history.append(residual)
        if k == solver.steps:
            break
        waits = ~residual.isfinite() if calm is None else small & calm | ~residual.isfinite()
        if judged and bool(waits.all()):
            break
        fresh, memory = solver.advance(u, image, residual, memory)
        u = _where(waits, u, fresh) if judged and bool(waits.any()) else fresh
        calm = small
    return Solution(u, len(history), history[-1], small, torch.stack(history))


def require_converged(solution: Solution, solver: Solver) -> None:
    """Raises NotConverged where a sample missed the tolerance, or is not finite.

    >>> away = KrasnoselskiiMann(1.0, steps=5)
    >>> require_converged(iterate(lambda u: 3 * u + 1, torch.ones(1, 1), solver=away), away)
    Traceback (most recent call last):
    twofold.solve.solvers.NotConverged: no fixed point was found: 1 of 1 samples have ‖T(u) − u‖ up to 7.3e+02 after 6
    evaluations, wanted 1e-05 ‖u‖ + 1e-10. The residual changes by a factor of about 3.000 a step, so T expands there:
    relax it (KrasnoselskiiMann(0.5)), or change T. throw=False returns the outcome as data
    """
    finite = all(bool(t.isfinite().all()) for t in tensors(solution.value)) and bool(solution.residual.isfinite().all())
    if finite and (solver.tolerance == 0 or bool(solution.converged.all())):
        return
    good = solution.converged & solution.residual.isfinite()
    history = solution.history.detach().reshape(solution.steps, -1).double()
    worst = int(history[-1].nan_to_num(float("inf"), float("inf")).argmax())
    last = history[max(-11, -solution.steps) :, worst]
    factor = float((last[-1] / last[0]).pow(1 / max(len(last) - 1, 1))) if len(last) > 1 else float("nan")
    dtype = tensors(solution.value)[0].dtype
    if not finite:
        remedy = "T left the finite numbers: it expands, or divides by 0; relax it, or change T"
    elif factor >= 1.05:
        remedy = "so T expands there: relax it (KrasnoselskiiMann(0.5)), or change T"
    elif solver.tolerance < 10 * torch.finfo(dtype).eps:
        remedy = f"and {dtype} has too few digits for this tolerance: take float64, or a looser one"
    elif factor > 0.9999:
        remedy = "so it does not settle: relax T (KrasnoselskiiMann(0.5)), accept a looser tolerance, or change T"
    else:
        remedy = "so it settles slowly: take more steps, or Anderson"
    raise NotConverged(
        f"no fixed point was found: {int((~good).sum())} of {good.numel()} samples have ‖T(u) − u‖ up to "
        f"{float(history[-1, worst]):.1e} after {solution.steps} evaluations, wanted {solver.tolerance:.0e} ‖u‖ + "
        f"{solver.absolute:.0e}. The residual changes by a factor of about {factor:.3f} a step, {remedy}. "
        "throw=False returns the outcome as data",
        solution,
    )


def require_settings(solver: Solver) -> None:
    """Raises SolveError for steps or tolerances without meaning.

    >>> KrasnoselskiiMann(steps=0)
    Traceback (most recent call last):
    twofold.solve.params.SolveError: expected at least one step and tolerances of 0 or more, got steps=0,
    tolerance=1e-05, absolute=1e-10
    """
    if solver.steps < 1 or not (solver.tolerance >= 0 and solver.absolute >= 0):
        raise SolveError(
            f"expected at least one step and tolerances of 0 or more, got steps={solver.steps}, "
            f"tolerance={solver.tolerance}, absolute={solver.absolute}"
        )


@dataclass(frozen=True)
class KrasnoselskiiMann:
    """u ← u + relaxation (T(u) − u).

    relaxation: in (0, 1]. Below 1 it converges for every non-expansive T that has a fixed point; 1 is Picard's
    iteration, right for contractions and for operators that are averaged already, and faster there. tolerance: relative
    to ‖u‖, 0 takes every step. absolute: for fixed points at or near 0, in the unit of the state.

    >>> flip = lambda u: -u                                                        # Picard's iteration never settles
    >>> iterate(flip, torch.ones(1, 1), solver=KrasnoselskiiMann(relaxation=0.5, steps=1)).value
    tensor([[0.]])
    """

    relaxation: float = 0.5
    steps: int = 1000
    tolerance: float = 1e-5
    absolute: float = 1e-10

    def __post_init__(self) -> None:
        require_settings(self)
        if not 0 < self.relaxation <= 1:
            raise SolveError(f"relaxation must lie in (0, 1], got {self.relaxation}")

    def advance(self, u: State, image: State, residual: Tensor, memory: None) -> tuple[State, None]:
        return image if self.relaxation == 1 else axpy(self.relaxation, minus(image, u), u), None


@dataclass(frozen=True)
class Anderson:
    """Anderson's acceleration: the next iterate combines the last few so that their residuals nearly cancel.

    memory: how many differences are kept, each as large as the state. relaxation: as in Krasnoselskii-Mann. growth:
    where the residual has grown by more than this factor, a plain relaxed step is taken instead. tolerance, absolute:
    as there.

    Prefer it for smooth contractions with a factor near 1, where it needs far fewer steps. For merely non-expansive T
    there is no guarantee: take `KrasnoselskiiMann`.

    >>> slow = lambda u: 0.9 * u + 1
    >>> found = iterate(slow, torch.zeros(1, 1), solver=Anderson())                # plain iteration takes over 80 steps
    >>> round(found.value.item(), 3), found.steps
    (10.0, 4)
    """

    relaxation: float = 1.0
    steps: int = 200
    tolerance: float = 1e-5
    memory: int = 5
    growth: float = 2.0
    absolute: float = 1e-10

    def __post_init__(self) -> None:
        require_settings(self)
        if not 0 < self.relaxation <= 1 or self.memory < 1:
            raise SolveError(f"expected relaxation in (0, 1] and memory ≥ 1, got {self.relaxation} and {self.memory}")

    def advance(
        self, u: State, image: State, residual: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]] | None
    ) -> tuple[State, list[tuple[Tensor, Tensor, Tensor]]]:
        rows = 1 if residual.ndim == 0 else len(residual)
        point, gap = flattened(u, rows), flattened(minus(image, u), rows)
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
        return unflattened(u, plain), past


def _where(choose: Tensor, one: State, other: State) -> State:
    """`one` for the samples that are chosen, else `other`."""
    pairs = zip(tensors(one), tensors(other), strict=True)
    return rebuild(
        one, [torch.where(choose.reshape(-1, *[1] * (a.ndim - 1)) if choose.ndim else choose, a, b) for a, b in pairs]
    )


def _require_same_shapes(state: State, image: State) -> None:
    def same(a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape:
            raise SolveError(f"the operator returns shape {tuple(b.shape)} for a state of shape {tuple(a.shape)}")
        return a

    over(same, state, image)
