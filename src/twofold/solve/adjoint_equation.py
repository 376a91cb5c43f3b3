"""The linear equation behind an implicit gradient, v = Jᵀ v + g, and how it is solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twofold.solve.linear import conjugate_gradient
from twofold.solve.operators import Operator, contraction_factor
from twofold.solve.params import SolveError, State, axpy, leaves, minus, norm, pull, rebuild, scale, tensors
from twofold.solve.solvers import Solver, iterate

Product = Callable[[State], State]


class AdjointError(SolveError):
    """The linear equation behind an implicit gradient was not solved: a gradient would have been wrong in silence."""


class LinearSolver(Protocol):
    """Solves v = Jᵀ v + g, given v ↦ Jᵀ v and v ↦ J v. g: like the state, of norm 1; per_sample: each sample has a norm
    of 1. tolerance: relative, on the residual, which `solve_adjoint` checks."""

    @property
    def tolerance(self) -> float: ...
    def solve(self, transposed: Product, forward: Product, g: State, per_sample: bool) -> State: ...


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
            # What is left of the equation is the next term, of which only so much is known that it is no larger.
            left, size = norm(term, per_sample=per_sample), norm(g, per_sample=per_sample)
            if bool((left <= self.tolerance * size).all()) or not bool(left.isfinite().all()):
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
        def identity_minus(product: Product, v: State) -> State:
            return minus(v, product(v))

        # The residual of the normal equations is not that of the equation: ask for more, the caller checks the
        # latter.
        return conjugate_gradient(
            lambda v: identity_minus(forward, identity_minus(transposed, v)),
            identity_minus(forward, g),
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
        return self.solver.tolerance + self.solver.absolute  # of an equation whose right side has length 1

    def solve(self, transposed: Product, forward: Product, g: State, per_sample: bool) -> State:
        return iterate(lambda v: axpy(1.0, transposed(v), g), g, solver=self.solver, per_sample=per_sample).value


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
    left = minus(axpy(1.0, transposed(v), unit), v)
    worst = (norm(left, per_sample=per_sample) / norm(v, per_sample=per_sample).clamp_min(1)).max()
    if not bool(worst <= linear.tolerance):
        factor = contraction_factor(operator, at)
        raise AdjointError(
            f"the adjoint equation stalled at a residual of {worst.item():.1e}, wanted {linear.tolerance:.0e}. "
            f"Near the solution T changes distances by a factor of about {factor.item():.3f}, which must be below 1: "
            "take more steps or a looser tolerance, or differentiate with UnrolledAdjoint or TruncatedAdjoint"
        )
    return scale(size, v)
