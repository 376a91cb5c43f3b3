"""Accuracy where it is needed: hypergradients with a bound of their error, and descent that chooses the accuracy.

For a lower loss that is strongly convex in u with a constant μ, the distance to its minimum is known without knowing
the minimum, ‖u − u(w)‖ ≤ ‖∇_u f(w, u)‖ / μ. With Lipschitz constants of the derivatives that makes a bound of the
error of an implicit hypergradient, computed from what was measured (`certified`); and with bounds of the upper loss a
line search that is right although no value is exact. `adaptive_descent` is the method of Salehi, Mukherjee, Roberts and
Ehrhardt (2024), MAID: it loosens both accuracies while steps succeed and tightens them where they do not.

Two things are not theirs. The value is corrected by the adjoint, F(w, u) − ⟨v, ∇_u f⟩, whose error is of second order
in the distance where that of F(w, u) is of the first (`Regularity.value_error`). And a trial step that fails because
the bounds are wider than what any shorter step could gain tightens the accuracies at once, by the factor that is
missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from math import isfinite
from typing import NamedTuple

import torch

from twofold.solve.dynamics import Bilevel, Dynamics, require_minimising
from twofold.solve.evaluator import Evaluator
from twofold.solve.linear import conjugate_gradient
from twofold.solve.params import SolveError, State, axpy, detach, dot, minus, norm, rebuild, zeros_like
from twofold.solve.second_order import EXACT, Cross
from twofold.solve.streams import gradients


@dataclass(frozen=True)
class Regularity:
    """What is known of the two losses at one w, for every u between an iterate and the minimum. Norms are Euclidean.

    strong_convexity: μ > 0, ∇²_uu f ≥ μ. hessian_lipschitz: of u ↦ ∇²_uu f. mixed_norm: ‖∇²_wu f‖ ≤ it.
    mixed_lipschitz: of u ↦ ∇²_wu f. upper_lipschitz: of u ↦ ∇_u F. direct_lipschitz: of u ↦ ∇_w F.
    The bounds are as true as these numbers; where a solve contradicts strong_convexity or mixed_norm, it raises.

    >>> Regularity(strong_convexity=1.0, mixed_norm=2.0, upper_lipschitz=1.0).error(0.1, 3.0, 0.0)        # 2 · 1 · 0.1
    0.2
    """

    strong_convexity: float
    mixed_norm: float
    upper_lipschitz: float
    hessian_lipschitz: float = 0.0
    mixed_lipschitz: float = 0.0
    direct_lipschitz: float = 0.0

    def __post_init__(self) -> None:
        rest = astuple(self)[1:]
        if not self.strong_convexity > 0 or not all(isfinite(c) and c >= 0 for c in rest):
            raise SolveError(f"expected strong_convexity > 0 and finite, non-negative constants, got {self}")

    def error(self, distance: float, adjoint: float, residual: float) -> float:
        """A bound of ‖computed − true hypergradient‖, for u at a distance from the minimum and a v of norm `adjoint`
        with ‖∇_u F − ∇²_uu f v‖ = `residual`, both at u. As in Ehrhardt and Roberts (2024), from three
        differences: of ∇_w F, of ∇²_wu f v, and of v against the true one at the minimum."""
        wrong_v = (self.hessian_lipschitz * distance * adjoint + self.upper_lipschitz * distance + residual) / (
            self.strong_convexity
        )
        return self.direct_lipschitz * distance + self.mixed_lipschitz * distance * adjoint + self.mixed_norm * wrong_v

    def value_error(self, distance: float, adjoint: float, residual: float) -> float:
        """A bound of |F(w, u) − ⟨v, ∇_u f(w, u)⟩ − F(w, u(w))|: remainders of F and ∇_u f at u, and what v leaves."""
        second = self.upper_lipschitz + self.hessian_lipschitz * adjoint
        return second * distance**2 / 2 + residual * distance


class Certified(NamedTuple):
    """A hypergradient with bounds. d stands for ‖u − u(w)‖.

    value: F(w, u) − ⟨v, ∇_u f(w, u)⟩, an estimate of F(w, u(w)). value_error: bound of its error. gradient: like w.
    error: bound of ‖gradient − d/dw F(w, u(w))‖. lower_params: u. distance: bound of d. adjoint: v.

    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> known = Regularity(strong_convexity=1.0, mixed_norm=1.0, upper_lipschitz=1.0)
    >>> found = certified(problem, torch.tensor(3.0), torch.tensor(2.5), regularity=known)
    >>> found.gradient.item(), found.error                                       # 2.5 − 1, and the truth is 3 − 1
    (1.5, 0.5)
    """

    value: float
    value_error: float
    gradient: State
    error: float
    lower_params: State
    distance: float
    adjoint: State


def certified(
    problem: Bilevel,
    upper_params: State,
    lower_params: State,
    *,
    regularity: Regularity,
    linear_tolerance: float = 1e-3,
    iterations: int = 200,
    adjoint: State | None = None,
    cross: Cross = EXACT,
) -> Certified:
    """The implicit hypergradient at lower parameters of any quality, with bounds of its error and of the value's.

    linear_tolerance: absolute, on ‖∇_u F − ∇²_uu f v‖, met by conjugate gradients started from `adjoint`; iterations:
    at most. Nothing is thrown for poor lower parameters: the bound says how poor they are.

    Raises: SolveError where the linear solve does not reach its tolerance, or where the Hessian or the mixed derivative
    contradict the regularity claimed.

    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> flat = Regularity(strong_convexity=2.0, mixed_norm=1.0, upper_lipschitz=1.0)
    >>> certified(problem, torch.tensor(3.0), torch.tensor(2.5), regularity=flat)
    Traceback (most recent call last):
    twofold.solve.params.SolveError: the problem is not as regular as claimed: along the adjoint the curvature is 1
    (claimed at least 2) and the mixed derivative 1 (claimed at most 1); correct the Regularity
    """
    return _certified(
        Evaluator(problem), upper_params, lower_params, regularity, linear_tolerance, iterations, adjoint, cross
    )


def _certified(
    run: Evaluator,
    w: State,
    u: State,
    known: Regularity,
    tolerance: float,
    iterations: int,
    adjoint: State | None,
    cross: Cross,
) -> Certified:
    w, u = detach(w), detach(u)
    mu = known.strong_convexity
    value, direct, b = gradients(run.upper, w, u)
    products = cross.at(run, w, u)
    slope = detach(products.gradient())
    size, v = float(norm(b)), zeros_like(u)
    residual, reached, mixed = 0.0, 0.0, zeros_like(w)
    if size > 0:
        relative = 0.5 * tolerance / size
        v = detach(conjugate_gradient(products.hessian, b, steps=iterations, tolerance=relative, start=adjoint).value)
        image = products.hessian(v)
        residual, reached = float(norm(minus(b, image))), float(norm(v))
        mixed = rebuild(w, products.mixed(v))
        if not residual <= tolerance:
            raise SolveError(
                f"conjugate gradients left a residual of {residual:.1e} after {iterations} iterations, wanted "
                f"{tolerance:.1e}: allow more iterations, float64, or a looser linear_tolerance"
            )
        slack = 1 + 1e3 * torch.finfo(value.dtype).eps
        if float(dot(v, image)) * slack < mu * reached**2 or float(norm(mixed)) > slack * known.mixed_norm * reached:
            raise SolveError(
                f"the problem is not as regular as claimed: along the adjoint the curvature is "
                f"{float(dot(v, image)) / reached**2:.3g} (claimed at least {mu:.3g}) and the mixed derivative "
                f"{float(norm(mixed)) / reached:.3g} (claimed at most {known.mixed_norm:.3g}); correct the Regularity"
            )
    distance = float(norm(slope)) / mu
    return Certified(
        value=float(value) - float(dot(v, slope)),
        value_error=known.value_error(distance, reached, residual),
        gradient=minus(direct, mixed),
        error=known.error(distance, reached, residual),
        lower_params=u,
        distance=distance,
        adjoint=v,
    )


class Descent(NamedTuple):
    """One accepted step of `adaptive_descent`.

    number: from 0. upper_params, lower_params: after it. value, value_error: there. gradient_norm, error: of the
    hypergradient the step was taken along, and the bound of its error. accuracy: bound of ‖u − u(w)‖ asked for,
    linear_accuracy: residual asked for. step_size: that was accepted. rejections: trial steps that failed before.
    lower_gradients, upper_gradients, products: since the start. certain: whether the true gradient is known to be no
    longer than the tolerance, at which the descent ends.

    >>> Descent._fields[-1]
    'certain'
    """

    number: int
    upper_params: State
    lower_params: State
    value: float
    value_error: float
    gradient_norm: float
    error: float
    accuracy: float
    linear_accuracy: float
    step_size: float
    rejections: int
    lower_gradients: int
    upper_gradients: int
    products: int
    certain: bool


@dataclass(frozen=True)
class Adaptive:
    """Settings of `adaptive_descent`, after Salehi et al. (2024). accuracy: ε₀. linear_accuracy: δ₀.
    step_size: α₀. shrink, grow: of both accuracies, ν and ν̄; grow = 1 never loosens them. shorten, lengthen: of the
    step, ρ and ρ̄. trust: η in (0, 1), a direction is used where the bound of its error is at most (1 − η) of its
    length. decrease: λ in (0, η), a step has to lower the upper loss by λ · step · ‖gradient‖². trials: lengths tried
    before the accuracies shrink. tolerance: of the true gradient's norm; 0 never ends. check_every: lower steps between
    two looks at the lower gradient. lower_steps, linear_steps: at most, for one solve.

    >>> Adaptive(shrink=1.5)
    Traceback (most recent call last):
    twofold.solve.params.SolveError: expected 0 < shrink < 1 ≤ grow, 0 < shorten < 1 ≤ lengthen,
    0 < decrease < trust < 1
    """

    accuracy: float = 0.1
    linear_accuracy: float = 0.1
    step_size: float = 1.0
    shrink: float = 0.5
    grow: float = 1.25
    shorten: float = 0.5
    lengthen: float = 1.5
    trust: float = 0.5
    decrease: float = 0.1
    trials: int = 40
    tolerance: float = 0.0
    check_every: int = 1
    lower_steps: int = 100_000
    linear_steps: int = 1_000

    def __post_init__(self) -> None:
        lengths = 0 < self.shrink < 1 <= self.grow and 0 < self.shorten < 1 <= self.lengthen
        if not lengths or not 0 < self.decrease < self.trust < 1:
            raise SolveError("expected 0 < shrink < 1 ≤ grow, 0 < shorten < 1 ≤ lengthen, 0 < decrease < trust < 1")


def adaptive_descent(
    problem: Bilevel,
    upper_params: State,
    lower_params: State,
    *,
    dynamics: Dynamics,
    regularity: Callable[[State], Regularity],
    settings: Adaptive = Adaptive(),
    cross: Cross = EXACT,
) -> Iterator[Descent]:
    """Bilevel descent that chooses accuracies and step sizes (MAID, Salehi et al. 2024): each w ← w − α z
    lowers the true upper loss F(w, u(w)), as far as the regularity claimed is true. It ends where the true gradient is
    known to be at most `settings.tolerance` long.

    dynamics: any that minimise the lower loss, for instance `Momentum`. regularity: of the problem at given w.
    One lower gradient more for every `settings.check_every` lower steps, which measures the distance.

    Raises: SolveError where an accuracy cannot be reached: the regularity is wrong, the steps too few, or the precision
    of the numbers exhausted.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)   # u(w) = 2 w
    >>> known = Regularity(strong_convexity=1.0, mixed_norm=2.0, upper_lipschitz=1.0)
    >>> w = torch.tensor(3.0, dtype=torch.float64)
    >>> way = adaptive_descent(problem, w, w, dynamics=GradientDescent(0.5), regularity=lambda w: known,
    ...                        settings=Adaptive(tolerance=1e-4))
    >>> *_, last = way
    >>> round(last.upper_params.item(), 4), last.certain
    (0.5, True)
    """
    require_minimising("adaptive_descent", dynamics)
    run, s = Evaluator(problem), settings
    accuracy, linear, step = s.accuracy, s.linear_accuracy, s.step_size

    def look(w: State, u: State, v: State | None) -> Certified:
        known = regularity(w)
        u = _settled(run, dynamics, w, u, known.strong_convexity * accuracy, s)
        return _certified(run, w, u, known, linear, s.linear_steps, v, cross)

    w, number, rejections = detach(upper_params), 0, 0
    here = look(w, detach(lower_params), None)
    while True:
        length = float(norm(here.gradient))
        if length + here.error <= s.tolerance:
            yield _descent(number, w, here, here, (accuracy, linear, 0.0), rejections, run, certain=True)
            return
        # The factor by which the bounds would have to shrink for this direction, and then for this step, to be usable.
        factor = (1 - s.trust) * length / here.error if here.error > 0 else 1.0
        if factor >= 1:
            for _ in range(s.trials):
                trial = look(axpy(-step, here.gradient, w), here.lower_params, here.adjoint)
                gain, blur = step * length**2, trial.value_error + here.value_error
                if trial.value - here.value + blur <= -s.decrease * gain:
                    break
                factor = 0.5 * gain / blur if blur > 0 else 1.0
                if factor < 1:  # a shorter step gains less and is blurred as much
                    break
                step, rejections = s.shorten * step, rejections + 1
            else:
                raise SolveError(
                    f"no step of {s.trials} down to {step:.1e} lowered the upper loss although the bounds are narrow: "
                    "the regularity claimed is wrong, or the precision of the numbers is exhausted; try float64"
                )
            if factor >= 1:
                w = axpy(-step, here.gradient, w)
                yield _descent(number, w, trial, here, (accuracy, linear, step), rejections, run, certain=False)
                here, step, accuracy, linear = trial, s.lengthen * step, s.grow * accuracy, s.grow * linear
                number, rejections = number + 1, 0
                continue
        tightened = min(s.shrink, max(0.5 * factor, 1e-3))
        reached = here.distance if here.distance > tightened * accuracy else accuracy  # often more than was asked for
        accuracy, linear, rejections = tightened * min(accuracy, reached), tightened * linear, rejections + 1
        here = look(w, here.lower_params, here.adjoint)


def _descent(
    number: int,
    w: State,
    after: Certified,
    before: Certified,
    pace: tuple[float, float, float],
    rejections: int,
    run: Evaluator,
    *,
    certain: bool,
) -> Descent:
    steepness = float(norm(before.gradient)), before.error
    counts = run.lower_evaluations, run.upper_evaluations, run.products
    point = number, w, after.lower_params, after.value, after.value_error
    return Descent(*point, *steepness, *pace, rejections, *counts, certain)


def _settled(run: Evaluator, dynamics: Dynamics, w: State, u: State, wanted: float, settings: Adaptive) -> State:
    """Lower parameters whose lower gradient is at most `wanted` long."""
    state, left = dynamics.begin(u), float("inf")
    for k in range(settings.lower_steps):
        if k % settings.check_every == 0:
            best, left = left, float(norm(gradients(run.lower, w, dynamics.params(state))[2]))
            if left <= wanted:
                return detach(dynamics.params(state))
            if not isfinite(left) or (k > 1000 and left == best):
                break
        with torch.no_grad():
            state = dynamics.step(run.problem, k, w, state)
    raise SolveError(
        f"the lower level was to be solved to a gradient of {wanted:.1e} and stopped at {left:.1e}: the dynamics are "
        "too slow or too long for it, strong_convexity is too small, or the numbers need float64"
    )
