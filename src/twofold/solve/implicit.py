"""Strategies that differentiate the minimum of the lower loss, by the implicit function theorem.

d/dw F(w, u(w)) = ∂_w F − ∂_w ⟨∇_u f, v⟩ with ∇²f v = ∂_u F holds where ∇_u f(w, u) = 0 and there alone. How far the
lower parameters are from such a point is measured, reported and limited (`Settled`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twofold.solve.dynamics import Dynamics, require_dynamics, require_step_size
from twofold.solve.evaluator import KINK, Evaluator
from twofold.solve.linear import conjugate_gradient
from twofold.solve.params import (
    SolveError,
    State,
    axpy,
    detach,
    filled,
    minus,
    norm,
    rebuild,
    require_finite,
    scale,
    tensors,
)
from twofold.solve.second_order import EXACT, Cross, Products


@dataclass(frozen=True)
class Settled:
    """How close to its minimum the lower level must be for an implicit gradient: distance ≤ relative ‖u‖ + absolute.

    The gradient's norm alone says nothing: along a direction of curvature 1e-3, ‖∇f‖ = 1e-3 is a distance of 1. So the
    distance is what is limited, on the scale of the parameters themselves. It is ‖∇f‖ / strong_convexity where that
    constant μ of the lower loss (∇²f ≽ μ I) is given: a bound, true for the distance to the minimum itself. Without it,
    it is the norm of the first `products` iterates of conjugate gradients on Newton's equation ∇²f d = ∇f, which grows
    towards the length of a Newton step: a lower bound, so what is refused for it is refused rightly, and what passes is
    not proven.

    relative: infinity accepts any lower level, and then nothing is measured but ‖∇f‖. absolute: for minima at 0.

    >>> Settled().relative, Settled(strong_convexity=0.1).strong_convexity
    (0.05, 0.1)
    """

    relative: float = 0.05
    absolute: float = 1e-8
    strong_convexity: float | None = None
    products: int = 8

    def __post_init__(self) -> None:
        if not (self.relative >= 0 and self.absolute >= 0 and self.products >= 1):
            raise SolveError(
                f"expected relative ≥ 0, absolute ≥ 0 and products ≥ 1, got {self.relative}, {self.absolute} and "
                f"{self.products}"
            )
        if self.strong_convexity is not None and not self.strong_convexity > 0:
            raise SolveError(f"strong_convexity must be positive, got {self.strong_convexity}")

    def check(self, run: Evaluator, products: Products, u: State, steps: int) -> None:
        """Writes ‖∇f‖ and the distance into `run`. Raises: SolveError where the distance is too large."""
        slope = detach(products.gradient())
        require_finite(slope, "the lower loss's gradient in lower_params", KINK)
        run.lower_gradient = size = float(norm(slope))
        if self.strong_convexity is not None:
            run.lower_distance = size / self.strong_convexity
        elif self.relative == float("inf"):
            return
        else:
            run.lower_distance = 0.0 if size == 0 else self._newton(products, slope, u, size)
        allowed = self.relative * float(norm(u)) + self.absolute
        if run.lower_distance > allowed:
            how = "at most" if self.strong_convexity is not None else "at least about"
            raise SolveError(
                f"the lower level is not at its minimum after {steps} steps: ‖∇_u lower‖ = {size:.1e} puts the minimum "
                f"{how} {run.lower_distance:.1e} away, allowed are {allowed:.1e} ({self.relative:g} of the norm of the "
                "lower parameters); take more lower steps or a warm start, differentiate the steps with Unrolled, or "
                "accept it with settled=Settled(relative=...)"
            )

    def _newton(self, products: Products, slope: State, u: State, size: float) -> float:
        rounding = 100 * torch.finfo(tensors(u)[0].dtype).eps * float(norm(products.hessian(u)))
        if size <= rounding:
            return 0.0
        try:
            step = conjugate_gradient(products.hessian, slope, steps=self.products, tolerance=0.1).value
        except SolveError as error:
            raise SolveError(
                f"the lower loss curves downwards along its own gradient, of norm {size:.1e}, so the lower parameters "
                f"are near no minimum ({error}); take more lower steps, or differentiate the steps with Unrolled"
            ) from None
        return float(norm(step))


SETTLED = Settled()


class MinimumStrategy(Protocol):
    """What the two strategies share: `steps` lower steps first, then ∇²f v = b at the parameters reached."""

    @property
    def steps(self) -> int: ...
    @property
    def dynamics(self) -> Dynamics: ...
    @property
    def cross(self) -> Cross: ...
    @property
    def settled(self) -> Settled: ...
    def inverse(self, hessian: Callable[[State], State], b: State) -> tuple[State, float]: ...


@dataclass(frozen=True)
class Neumann:
    """The gradient at the lower minimum, ∂_w F − ∂_w ⟨∇_u f, v⟩ with v = s Σ_{i ≤ terms} (I − s ∇²f)ⁱ ∂_u F.

    steps, dynamics: how the minimum is approached first; 0 steps trust the parameters given. step_size: s,
    below 2 / L. tolerance: relative, on what is left of ∇²f v = ∂_u F; 1.0 accepts every remainder that has
    shrunk (then the gradient is that of `terms` gradient steps at the minimum). settled: how near the minimum the lower
    parameters must be. Memory is flat in `steps` and `terms`.

    The terms are a power iteration on I − s ∇²f: their growth estimates its contraction factor at no cost, and
    where that reaches 1 the step (curvature above 2 / s) or the lower level (a flat or concave direction) is
    at fault.

    Raises: SolveError there, where the tolerance is missed, where the lower level is not settled, and for dynamics that
    do not minimise the lower loss.

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
    settled: Settled = SETTLED

    def __post_init__(self) -> None:
        require_dynamics("Neumann", self.steps, self.dynamics)
        require_step_size(self.step_size)

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        return differentiate_minimum(self, run, upper, lower)

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
    definite there. iterations: products at most. tolerance: relative, on ‖∂_u F − ∇²f v‖, evaluated anew at the end and
    not as the recursion has it; 1.0 accepts what `iterations` products leave. settled: how near the minimum the lower
    parameters must be. Memory is flat in `steps` and `iterations`.

    Raises: SolveError where a direction of no or negative curvature turns up, where the tolerance is missed, where the
    lower level is not settled, and for dynamics that do not minimise the lower loss.

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
    settled: Settled = SETTLED

    def __post_init__(self) -> None:
        require_dynamics("ConjugateGradient", self.steps, self.dynamics)

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        return differentiate_minimum(self, run, upper, lower)

    def inverse(self, hessian: Callable[[State], State], b: State) -> tuple[State, float]:
        enough = self.tolerance if self.tolerance < 1 else 0.0
        v, used, residual, before = None, 0, 1.0, float("inf")
        # The residual that the recursion tracks drifts from the true one: where that misses the tolerance, begin anew
        # from where it stands, as long as that helps.
        while v is None or (residual > enough and used < self.iterations and residual < before / 2):
            result = conjugate_gradient(hessian, b, steps=self.iterations - used, tolerance=enough, start=v)
            v, used, before = result.value, used + max(result.steps, 1), residual if v is not None else before
            residual = float(norm(minus(b, hessian(v))) / norm(b))
        if not residual <= self.tolerance:
            raise SolveError(
                f"conjugate gradients stalled at a relative residual of {residual:.1e} after {used} iterations, wanted "
                f"{self.tolerance:.0e}: the lower loss is nearly flat where the upper loss cares, or the numbers have "
                "too few digits; take more iterations or a looser tolerance, or differentiate with Unrolled"
            )
        return v, residual


def differentiate_minimum(
    how: MinimumStrategy, run: Evaluator, upper: State, lower: State
) -> tuple[Tensor, State, State]:
    """(value, gradient, lower parameters) by the implicit function theorem, after checking that it applies.

    >>> import torch
    >>> from twofold.solve import Bilevel, GradientDescent
    >>> run = Evaluator(Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2))
    >>> way, four = ConjugateGradient(0, GradientDescent(0.5)), torch.tensor(4.0)
    >>> differentiate_minimum(way, run, four, four)[1].item()                       # u = w, so 2 (w − 1)
    6.0
    """
    if not how.dynamics.minimises_lower:
        raise SolveError(
            f"{type(how).__name__} differentiates a minimum of the lower loss, and {type(how.dynamics).__name__} does "
            "not come to rest at one; take Unrolled or Truncated, or fixed_point with Implicit for a plain operator"
        )
    lower = run.advance(how.dynamics, upper, lower, how.steps)
    value, direct, b = run.upper_gradients(upper, lower)
    products = how.cross.at(run, upper, lower)
    how.settled.check(run, products, lower, how.steps)
    known = filled(direct, tensors(upper))
    run.residual = 0.0
    if not any(bool(t.any()) for t in b):  # nothing to solve
        return value, rebuild(upper, known), lower
    v, run.residual = how.inverse(products.hessian, rebuild(lower, b))
    mixed = products.mixed(v)
    return value, rebuild(upper, [d - m for d, m in zip(known, mixed, strict=True)]), lower
