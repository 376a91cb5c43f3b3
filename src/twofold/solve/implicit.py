"""Strategies that differentiate the minimum of the lower loss, by the implicit function theorem.

d/dw F(w, u(w)) = ∂_w F − ∂_w ⟨∇_u f, v⟩ with ∇²f v = ∂_u F holds where ∇_u f(w, u) = 0 and there alone. How far the
lower parameters are from such a point is measured, reported and limited (`Settled`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.solve.dynamics import Dynamics, require_dynamics, require_minimising, require_step_size
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

    def check(
        self, run: Evaluator, slope: State, u: State, *, steps: int, newton: Callable[[State, int], float]
    ) -> None:
        """Writes ‖∇f‖ and the distance into `run`. slope: ∇f at u, after so many lower steps. newton: (∇f, products) →
        the length of a Newton step, from below.

        Raises: SolveError where the distance is too large.
        """
        require_finite(slope, "the lower loss's gradient in lower_params", KINK)
        run.lower_gradient = size = float(norm(slope))
        if self.strong_convexity is not None:
            run.lower_distance = size / self.strong_convexity
        elif self.relative == float("inf"):
            return
        else:
            run.lower_distance = 0.0 if size == 0 else newton(slope, self.products)
        allowed = self.relative * float(norm(u)) + self.absolute
        if run.lower_distance > allowed:
            how = "at most" if self.strong_convexity is not None else "at least about"
            raise SolveError(
                f"the lower level is not settled after {steps} steps: ‖∇_u lower‖ = {size:.1e} puts its stationary "
                f"point {how} {run.lower_distance:.1e} away, allowed are {allowed:.1e} ({self.relative:g} of the norm "
                "of the lower parameters); take more lower steps or a warm start, differentiate the steps with "
                "Unrolled, or accept it with settled=Settled(relative=...)"
            )


SETTLED = Settled()


class _AtMinimum(ABC):
    """What the two strategies share: `steps` lower steps, then ∇²f v = ∂_u F at the parameters reached, after checking
    that the implicit function theorem applies there."""

    steps: int
    dynamics: Dynamics
    cross: Cross
    settled: Settled

    def __post_init__(self) -> None:
        require_dynamics(type(self).__name__, self.steps, self.dynamics)

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        """As `Strategy`."""
        require_minimising(type(self).__name__, self.dynamics)
        lower = run.advance(self.dynamics, upper, lower, self.steps)
        value, direct, b = run.upper_gradients(upper, lower)
        products = self.cross.at(run, upper, lower)
        self.settled.check(
            run,
            detach(products.gradient()),
            lower,
            steps=self.steps,
            newton=lambda slope, count: _newton_length(products, slope, lower, count),
        )
        known = filled(direct, tensors(upper))
        run.residual = 0.0
        if not any(bool(t.any()) for t in b):  # nothing to solve
            return value, rebuild(upper, known), lower
        v, run.residual = self.inverse(products.hessian, rebuild(lower, b))
        mixed = products.mixed(v)
        return value, rebuild(upper, [d - m for d, m in zip(known, mixed, strict=True)]), lower

    @abstractmethod
    def inverse(self, hessian: Callable[[State], State], b: State) -> tuple[State, float]:
        """v with ∇²f v = b, and ‖b − ∇²f v‖ / ‖b‖."""


@dataclass(frozen=True)
class Neumann(_AtMinimum):
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
        super().__post_init__()
        require_step_size(self.step_size)

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
class ConjugateGradient(_AtMinimum):
    """The gradient at the lower minimum, with ∇²f v = ∂_u F solved by conjugate gradients: no step size, few
    products.

    steps, dynamics: how the minimum is approached first; 0 steps trust the parameters given. It needs ∇²f positive
    definite there. iterations: products at most. tolerance: relative, on ‖∂_u F − ∇²f v‖, computed again at the end and
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

    def inverse(self, hessian: Callable[[State], State], b: State) -> tuple[State, float]:
        enough = self.tolerance if self.tolerance < 1 else 0.0
        v, used, residual, before = None, 0, 1.0, float("inf")
        # The residual that the recursion tracks drifts from the true one: if that misses the tolerance, restart
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


def _newton_length(products: Products, slope: State, u: State, count: int) -> float:
    """‖d‖ of conjugate gradients on ∇²f d = ∇f after at most `count` products; 0 where ∇f is rounding."""
    size = float(norm(slope))
    if size <= 100 * torch.finfo(tensors(u)[0].dtype).eps * float(norm(products.hessian(u))):
        return 0.0
    try:
        return float(norm(conjugate_gradient(products.hessian, slope, steps=count, tolerance=0.1).value))
    except SolveError as error:
        raise SolveError(
            f"the lower loss curves downwards along its own gradient, of norm {size:.1e}, so the lower parameters "
            f"are near no minimum ({error}); take more lower steps, or differentiate the steps with Unrolled"
        ) from None
