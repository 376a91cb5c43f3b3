"""How a fixed-point solve is differentiated: an argument of `fixed_point`, not another solver.

===========  ========================================  ==========================  =========================
adjoint      gradient                                  memory                      asks for
===========  ========================================  ==========================  =========================
`Unrolled`   exact for the K steps that were taken     K steps, or K states        nothing
`Truncated`  of `last` further steps at the solution   `last` steps                a solution
`OneStep`    the same for one step                     one step                    a fast contraction
`Implicit`   exact at the fixed point                  one step                    a contraction, a solution
===========  ========================================  ==========================  =========================

An outcome of the forward solve is data (`Solution.converged`). Backward, where nothing can be returned, a stalled
adjoint raises `AdjointError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twofold.solve.linear import conjugate_gradient
from twofold.solve.operators import Operator, contraction_factor, metric_of
from twofold.solve.params import (
    SolveError,
    State,
    axpy,
    detach,
    leaves,
    norm,
    pull,
    rebuild,
    scale,
    subtract,
    tensors,
)
from twofold.solve.solvers import Solution, Solver, iterate

Product = Callable[[State], State]


class AdjointError(SolveError):
    """The linear equation behind an implicit gradient was not solved: a gradient would have been wrong in silence."""


class Adjoint(Protocol):
    """Solves, and arranges that the solution can be differentiated in whatever tensors the operator holds."""

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution: ...


class LinearSolver(Protocol):
    """Solves v = Jᵀ v + g, given v ↦ Jᵀ v and v ↦ J v."""

    @property
    def tolerance(self) -> float: ...
    def solve(self, transposed: Product, forward: Product, g: State, per_sample: bool) -> State: ...


@dataclass(frozen=True)
class Unrolled:
    """Differentiates through every step that was taken.

    checkpointed: keep only the iterates and compute each step again backward: K states instead of K steps'
    activations, for one more evaluation of T a step. The start is differentiated too.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, three = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0, steps=3, tolerance=0.0)
    >>> solution = Unrolled().solve(lambda u: u / 2 + a, torch.zeros(1, 1), three, True)      # (1 + ½ + ¼) a
    >>> torch.autograd.grad(solution.value, a)[0].item()
    1.75
    """

    checkpointed: bool = False

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution:
        step = _Checkpointed(operator) if self.checkpointed and torch.is_grad_enabled() else operator
        return iterate(step, start, solver=solver, per_sample=per_sample)


@dataclass(frozen=True)
class Truncated:
    """Solves without a graph, then takes `last` plain steps of T with one: Neumann's series of `last` terms.

    The gradient is biased by what a contraction of factor ρ leaves after `last` steps, ρ^last. The start gets none.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, many = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0)
    >>> solution = Truncated(2).solve(lambda u: u / 2 + a, torch.zeros(1, 1), many, True)     # the truth is 2
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
    """`Truncated(1)`: ignores how the solution moves. Cheap and biased; right where T contracts fast.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, many = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0)
    >>> solution = OneStep().solve(lambda u: u / 2 + a, torch.zeros(1, 1), many, True)        # the truth is 2
    >>> torch.autograd.grad(solution.value, a)[0].item()
    1.0
    """

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution:
        return Truncated(1).solve(operator, start, solver, per_sample)


@dataclass(frozen=True)
class NeumannSeries:
    """v = Σ (Jᵀ)ⁱ g, one product a term; converges iff the spectral radius of J is below 1.

    >>> halve = lambda v: v / 2
    >>> NeumannSeries().solve(halve, halve, torch.ones(1, 1), True)                        # 1 + ½ + ¼ + ...
    tensor([[2.0000]])
    """

    steps: int = 200
    tolerance: float = 1e-5

    def solve(self, transposed: Product, forward: Product, g: State, per_sample: bool) -> State:
        total = term = g
        for _ in range(self.steps):
            term = transposed(term)
            total = axpy(1.0, term, total)
            if bool(norm(term) <= self.tolerance * norm(g)) or not bool(norm(term).isfinite()):
                break
        return total


@dataclass(frozen=True)
class NormalEquations:
    """Conjugate gradients on (I − J)(I − Jᵀ) v = (I − J) g: three products a step, no contraction needed.

    It needs I − J invertible and T twice differentiable by autograd. Neumann's series is cheaper where T contracts
    well; where it hardly does, this takes far fewer steps.

    >>> grow = lambda v: -3 * v
    >>> NormalEquations().solve(grow, grow, torch.ones(1, 1), True)                        # v = −3 v + 1
    tensor([[0.2500]])
    """

    steps: int = 200
    tolerance: float = 1e-5

    def solve(self, transposed: Product, forward: Product, g: State, per_sample: bool) -> State:
        def minus(product: Product, v: State) -> State:
            return subtract(v, product(v))

        # The residual of the normal equations is not that of the equation: ask for more, the caller checks the
        # latter.
        return conjugate_gradient(
            lambda v: minus(forward, minus(transposed, v)),
            minus(forward, g),
            steps=self.steps,
            tolerance=self.tolerance / 10,
            per_sample=per_sample,
        ).value


@dataclass(frozen=True)
class Iterated:
    """Runs a fixed-point solver on v ↦ Jᵀ v + g, as `Anderson` or `KrasnoselskiiMann`.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> halve = lambda v: v / 2
    >>> Iterated(KrasnoselskiiMann(relaxation=1.0)).solve(halve, halve, torch.ones(1, 1), True).round(decimals=3)
    tensor([[2.]])
    """

    solver: Solver

    @property
    def tolerance(self) -> float:
        return self.solver.tolerance

    def solve(self, transposed: Product, forward: Product, g: State, per_sample: bool) -> State:
        return iterate(lambda v: axpy(1.0, transposed(v), g), g, solver=self.solver, per_sample=per_sample).value


@dataclass(frozen=True)
class Implicit:
    """The gradient of the fixed point itself, from v = Jᵀ v + g at the solution: memory of one step, whatever K.

    linear: how that equation is solved. Prefer `Unrolled` where T is barely contractive or the solve stops early: an
    implicit gradient is exact at a fixed point only. The start receives no gradient; no second derivative.

    Raises: AdjointError in `backward` where the equation is not solved to the tolerance of `linear`.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, many = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0)
    >>> solution = Implicit().solve(lambda u: u / 2 + a, torch.zeros(1, 1), many, True)       # u = 2 a
    >>> round(torch.autograd.grad(solution.value, a)[0].item(), 4)
    2.0
    """

    linear: LinearSolver = NeumannSeries()

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution:
        with torch.no_grad():
            solution = iterate(operator, detach(start), solver=solver, per_sample=per_sample)
        if not torch.is_grad_enabled():
            return solution
        at = detach(solution.value)
        stepped = operator(at)  # here the operator's own tensors enter the graph, once
        swap: Any = _SwapCotangent.apply
        flat = swap(self.linear, operator, at, per_sample, *tensors(stepped))
        return solution._replace(value=rebuild(at, list(flat)))


class _Checkpointed:
    def __init__(self, operator: Operator):
        self.operator, self.metric = operator, metric_of(operator)

    def __call__(self, u: State) -> State:
        return checkpoint(self.operator, u, use_reentrant=False)


class _SwapCotangent(torch.autograd.Function):
    """The identity, whose backward turns the cotangent g of u* into v = (I − Jᵀ)⁻¹ g.

    A tensor hook could do it too, and would leave a reference cycle through the graph.
    """

    @staticmethod
    def forward(
        ctx: Any, linear: LinearSolver, operator: Operator, at: State, per_sample: bool, *stepped: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.linear, ctx.operator, ctx.at, ctx.per_sample = linear, operator, at, per_sample
        return tuple(t.view_as(t) for t in stepped)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise AdjointError("an implicit gradient cannot be differentiated again (create_graph=True); take Unrolled")
        g = rebuild(ctx.at, list(cotangents))
        v = solve_adjoint(ctx.linear, ctx.operator, ctx.at, g, per_sample=ctx.per_sample)
        return None, None, None, None, *tensors(v)


def solve_adjoint(linear: LinearSolver, operator: Operator, at: State, g: State, *, per_sample: bool = True) -> State:
    """v with v = Jᵀ v + g, J the Jacobian of the operator at a state.

    Raises: AdjointError where ‖Jᵀ v + g − v‖ exceeds the tolerance of `linear`, relative to the larger of ‖g‖
    and ‖v‖.

    >>> solve_adjoint(NeumannSeries(), lambda u: u / 2, torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[2.0000]])
    """
    size = norm(g, per_sample=per_sample)
    if not bool((size > 0).any()):
        return g
    # Losses are often means, so g may be tiny: solve for cotangents of length 1, or absolute tolerances would bite.
    unit = scale(1 / torch.where(size > 0, size, 1), g)
    with torch.enable_grad():
        u = leaves(at)
        image, flat = tensors(operator(u)), tensors(u)
    dummy = [torch.zeros_like(t).requires_grad_() for t in image]
    products: list[Tensor] = []

    def transposed(v: State) -> State:
        return rebuild(at, pull(image, flat, tensors(v), retain_graph=True))

    def forward(v: State) -> State:
        if not products:
            with torch.enable_grad():  # Jᵀ is linear in its cotangent, so the transpose of that map is J
                products.extend(pull(image, flat, dummy, create_graph=True))
        return rebuild(at, pull(products, dummy, tensors(v), retain_graph=True))

    v = linear.solve(transposed, forward, unit, per_sample)
    left = subtract(axpy(1.0, transposed(v), unit), v)
    worst = (norm(left, per_sample=per_sample) / norm(v, per_sample=per_sample).clamp_min(1)).max()
    if not bool(worst <= 2 * linear.tolerance):
        factor = contraction_factor(operator, at)
        raise AdjointError(
            f"the adjoint equation stalled at a residual of {worst.item():.1e}, wanted {linear.tolerance:.0e}. "
            f"Near the solution T changes distances by a factor of about {factor.item():.3f}, which must be below 1: "
            "take more steps or a looser tolerance, or differentiate with Unrolled or Truncated"
        )
    return scale(size, v)
