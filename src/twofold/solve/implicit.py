"""Strategies that differentiate the minimum of the lower loss, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from twofold.solve.dynamics import Dynamics
from twofold.solve.evaluator import Evaluator
from twofold.solve.linear import conjugate_gradient
from twofold.solve.params import SolveError, State, axpy, minus, norm, rebuild, scale
from twofold.solve.second_order import EXACT, Cross


@dataclass(frozen=True)
class Neumann:
    """The gradient at the lower minimum, ∂_w F − ∂_w ⟨∇_u f, v⟩ with v = s Σ_{i ≤ terms} (I − s ∇²f)ⁱ ∂_u F.

    steps, dynamics: how the minimum is approached first; 0 steps trust the parameters given. step_size: s,
    below 2 / L. tolerance: relative, on what is left of ∇²f v = ∂_u F; 1.0 accepts every remainder that has
    shrunk (then the gradient is that of `terms` gradient steps at the minimum). Memory is flat in `steps` and
    `terms`.

    The terms are a power iteration on I − s ∇²f: their growth estimates its contraction factor at no cost, and
    where that reaches 1 the step (curvature above 2 / s) or the lower level (a flat or concave direction) is
    at fault.

    Raises: SolveError there, where the tolerance is missed, and for dynamics that do not minimise the lower loss.

    >>> import torch
    >>> from twofold.solve import Bilevel, GradientDescent, hypergradient
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = Neumann(0, GradientDescent(0.5), step_size=1.0)                       # u = w, so 2 (w − 1)
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(4.0), strategy=way).gradient.item()
    6.0
    """

    steps: int
    dynamics: Dynamics
    step_size: float
    terms: int = 100
    tolerance: float = 1e-3
    cross: Cross = EXACT

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        return _implicit(self, run, upper, lower)

    def inverse(self, hessian: Callable[[State], State], b: State) -> tuple[State, float]:
        size = norm(b)
        total = term = b
        factor, enough = 0.0, self.tolerance if self.tolerance < 1 else 0.0
        for _ in range(self.terms):
            fresh = axpy(-self.step_size, hessian(term), term)
            factor = float(norm(fresh) / norm(term))
            if not factor < 1 - 1e-6:
                raise SolveError(
                    f"gradient descent with step {self.step_size:g} is no contraction at the lower parameters: "
                    f"estimated factor {factor:.4f}, must be below 1. The step exceeds 2 / curvature, or the lower "
                    "loss is flat or concave where the upper loss cares; differentiate with Unrolled"
                )
            total, term = axpy(1.0, fresh, total), fresh
            if bool(norm(term) <= enough * size):
                break
        residual = float(norm(term) / size)
        if residual > self.tolerance:
            raise SolveError(
                f"after {self.terms} terms a share of {residual:.1e} is left, wanted {self.tolerance:.0e} (contraction "
                f"factor about {factor:.4f}); take more terms, a larger step, or tolerance=1.0 to accept truncation"
            )
        return scale(self.step_size, total), residual


@dataclass(frozen=True)
class ConjugateGradient:
    """The gradient at the lower minimum, with ∇²f v = ∂_u F solved by conjugate gradients: no step size, few
    products.

    steps, dynamics: how the minimum is approached first; 0 steps trust the parameters given. It needs ∇²f positive
    definite there. Memory is flat in `steps` and `iterations`.

    Raises: SolveError where a direction of no or negative curvature turns up, where the tolerance (relative)
    is missed, and for dynamics that do not minimise the lower loss.

    >>> import torch
    >>> from twofold.solve import Bilevel, GradientDescent, hypergradient
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = ConjugateGradient(0, GradientDescent(0.5))                            # u = w, so 2 (w − 1)
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(4.0), strategy=way).gradient.item()
    6.0
    """

    steps: int
    dynamics: Dynamics
    iterations: int = 100
    tolerance: float = 1e-4
    cross: Cross = EXACT

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        return _implicit(self, run, upper, lower)

    def inverse(self, hessian: Callable[[State], State], b: State) -> tuple[State, float]:
        result = conjugate_gradient(hessian, b, steps=self.iterations, tolerance=self.tolerance)
        residual = float(result.residual)
        # What CG tracks drifts from the truth; an independent look costs one product.
        true = float(norm(minus(b, hessian(result.value))) / norm(b))
        if not max(residual, true) <= 10 * self.tolerance:
            raise SolveError(
                f"conjugate gradients stalled at a relative residual of {max(residual, true):.1e} after {result.steps} "
                f"iterations, wanted {self.tolerance:.0e}: the lower loss is nearly flat where the upper "
                "loss cares; differentiate with Unrolled"
            )
        return result.value, true


def _implicit(
    how: Neumann | ConjugateGradient, run: Evaluator, upper: State, lower: State
) -> tuple[Tensor, State, State]:
    """∂_w F − ∂_w ⟨∇_u f, v⟩ with ∇²f v = ∂_u F: the implicit function theorem at ∇_u f = 0."""
    if not how.dynamics.minimises_lower:
        raise SolveError(
            f"{type(how).__name__} differentiates a minimum of the lower loss, and {type(how.dynamics).__name__} does "
            "not come to rest at one; take Unrolled or Truncated, or fixed_point with Implicit for a plain operator"
        )
    lower = run.advance(how.dynamics, upper, lower, how.steps)
    value, direct, b = run.upper_gradients(upper, lower)
    run.residual = 0.0
    if not bool(value.isfinite()) or not any(bool(t.any()) for t in b):  # nothing to solve, or `hypergradient` raises
        return value, rebuild(upper, direct), lower
    products = how.cross.at(run, upper, lower)
    v, run.residual = how.inverse(products.hessian, rebuild(lower, b))
    mixed = products.mixed(v)
    return value, rebuild(upper, [d - m for d, m in zip(direct, mixed, strict=True)]), lower
