"""How a fixed-point solve is differentiated: an argument of `fixed_point`, not another solver.

===================  ========================================  ====================  =========================
adjoint              gradient                                  memory                asks for
===================  ========================================  ====================  =========================
`UnrolledAdjoint`    exact for the K steps that were taken     K steps, or K states  nothing
`TruncatedAdjoint`   of `last` further steps at the solution   `last` steps          a solution
`OneStep`            the same for one step                     one step              a fast contraction
`Implicit`           exact at the fixed point                  one step              a contraction, a solution
===================  ========================================  ====================  =========================

A solve that missed its tolerance raises in `fixed_point`, unless the outcome is wanted as data. Backward, where nothing
can be returned, a stalled adjoint raises `AdjointError`, and so does an implicit one at a point that is no fixed point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twofold.solve.adjoint_equation import AdjointError, LinearSolver, NeumannSeries, solve_adjoint
from twofold.solve.operators import Operator, metric_of
from twofold.solve.params import SolveError, State, detach, rebuild, tensors
from twofold.solve.solvers import Solution, Solver, iterate

NEUMANN = NeumannSeries()


class Adjoint(Protocol):
    """Solves u = T(u) from `start`, tensors `(B, ...)` or with per_sample=False of any shape, and arranges that the
    solution can be differentiated in whatever tensors the operator holds."""

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution: ...


@dataclass(frozen=True)
class UnrolledAdjoint:
    """Differentiates through every step that was taken.

    checkpointed: keep only the iterates and compute each step again backward: K states instead of K steps'
    activations, for one more evaluation of T a step. The start is differentiated too.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, three = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0, steps=3, tolerance=0.0)
    >>> solution = UnrolledAdjoint().solve(lambda u: u / 2 + a, torch.zeros(1, 1), three, True)      # (1 + ½ + ¼) a
    >>> torch.autograd.grad(solution.value, a)[0].item()
    1.75
    """

    checkpointed: bool = False

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution:
        step = _Checkpointed(operator) if self.checkpointed and torch.is_grad_enabled() else operator
        return iterate(step, start, solver=solver, per_sample=per_sample)


@dataclass(frozen=True)
class TruncatedAdjoint:
    """Solves without a graph, then takes `last` plain steps of T with one: Neumann's series of `last` terms.

    The gradient is biased by what a contraction of factor ρ leaves after `last` steps, ρ^last. The start gets none.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, many = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0)
    >>> solution = TruncatedAdjoint(2).solve(lambda u: u / 2 + a, torch.zeros(1, 1), many, True)     # the truth is 2
    >>> torch.autograd.grad(solution.value, a)[0].item()
    1.5
    """

    last: int

    def __post_init__(self) -> None:
        if self.last < 1:
            raise SolveError(f"expected at least one differentiated step, got {self.last}")

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution:
        with torch.no_grad():
            solution = iterate(operator, start, solver=solver, per_sample=per_sample)
        u = solution.value
        for _ in range(self.last):
            u = operator(u)
        return solution._replace(value=u, steps=solution.steps + self.last)


@dataclass(frozen=True)
class OneStep:
    """`TruncatedAdjoint(1)`: ignores how the solution moves. Cheap and biased; right where T contracts fast.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, many = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0)
    >>> solution = OneStep().solve(lambda u: u / 2 + a, torch.zeros(1, 1), many, True)        # the truth is 2
    >>> torch.autograd.grad(solution.value, a)[0].item()
    1.0
    """

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution:
        return TruncatedAdjoint(1).solve(operator, start, solver, per_sample)


@dataclass(frozen=True)
class Implicit:
    """The gradient of the fixed point itself, from v = Jᵀ v + g at the solution: memory of one step, whatever K.

    linear: how that equation is solved. Prefer `UnrolledAdjoint` where T is barely contractive or the solve stops
    early: an implicit gradient is exact at a fixed point only. require_converged: whether `backward` raises where the
    solve missed its tolerance, or had none to meet; without it the gradient there is that of a nearby problem at best.
    The start receives no gradient; no second derivative.

    Raises: AdjointError in `backward` where the equation is not solved to the tolerance of `linear`, and where the
    point is no fixed point.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, many = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0)
    >>> solution = Implicit().solve(lambda u: u / 2 + a, torch.zeros(1, 1), many, True)       # u = 2 a
    >>> round(torch.autograd.grad(solution.value, a)[0].item(), 4)
    2.0
    """

    linear: LinearSolver = NEUMANN
    require_converged: bool = True

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution:
        with torch.no_grad():
            solution = iterate(operator, detach(start), solver=solver, per_sample=per_sample)
        if not torch.is_grad_enabled():
            return solution
        at = detach(solution.value)
        stepped = operator(at)  # here the operator's own tensors enter the graph, once
        swap: Any = _SwapCotangent.apply
        accepted = not self.require_converged or bool(solution.converged.all())
        flat = swap(self.linear, operator, at, per_sample, accepted, *tensors(stepped))
        return solution._replace(value=rebuild(at, list(flat)))


class _Checkpointed:
    def __init__(self, operator: Operator):
        self.operator, self.metric = operator, metric_of(operator)

    def __call__(self, u: State) -> State:
        return checkpoint(self.operator, u, use_reentrant=False)


class _SwapCotangent(torch.autograd.Function):
    """u* itself for T(u*), which it equals; backward turns the cotangent g of u* into v = (I − Jᵀ)⁻¹ g.

    A tensor hook could do it too, and would leave a reference cycle through the graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        linear: LinearSolver,
        operator: Operator,
        at: State,
        per_sample: bool,
        accepted: bool,
        *stepped: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.accepted = accepted
        ctx.linear, ctx.operator, ctx.at, ctx.per_sample = linear, operator, at, per_sample
        return tuple(t.clone() for t in tensors(at))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise AdjointError(
                "an implicit gradient cannot be differentiated again (create_graph=True); take UnrolledAdjoint"
            )
        if not ctx.accepted:
            raise AdjointError(
                "an implicit gradient was asked for at a point that is no fixed point: the solve missed its tolerance "
                "or had tolerance=0; take more steps, UnrolledAdjoint, or Implicit(require_converged=False) to accept"
            )
        g = rebuild(ctx.at, list(cotangents))
        v = solve_adjoint(ctx.linear, ctx.operator, ctx.at, g, per_sample=ctx.per_sample)
        return None, None, None, None, None, *tensors(v)
