"""d/dw upper(w, u(w)): one problem, and the strategies that differ in what they run, drop and approximate.

===================  =================  =================================  ===========================
strategy             lower level        gradient of                        memory
===================  =================  =================================  ===========================
`FirstOrder`         any steps          upper(w, u) with u held fixed      one upper loss
`OneStepUnrolled`    one gradient step  upper after that step, exactly     one double backward, or none
`Unrolled`           any steps          upper after all steps, exactly     the states, replayed
`Truncated`          any steps          upper through the last steps       the last states
`Neumann`            any minimiser      the minimum, by a series           one gradient's graph
`ConjugateGradient`  any minimiser      the minimum, by a linear solve     one gradient's graph
===================  =================  =================================  ===========================

The lower level's `dynamics` say how it moves (gradient descent, momentum, Adam, a fixed-point operator, or any
of these aggregated with the upper loss). `cross` says how the products with second derivatives are taken:
`Exact`, by a double backward, or `CentralDifference`, by two gradients at shifted points. Combinations that
make no sense are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from twofold.solve.dynamics import Bilevel, Dynamics
from twofold.solve.linear import conjugate_gradient
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
from twofold.solve.second_order import EXACT, Cross, Run
from twofold.solve.unroll import replayed


class Cost(NamedTuple):
    """What a hypergradient took.

    lower_evaluations, upper_evaluations: of the losses, each followed by a backward. products: with second
    derivatives, by double backward (a central difference shows up as two lower evaluations instead).
    peak_bytes: memory on a CUDA device at its peak above what was there before; None on a CPU, where torch does
    not count. residual: what is left of the linear equation of an implicit gradient, relative; None for the others.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = Unrolled(3, GradientDescent(0.5))
    >>> cost = hypergradient(problem, torch.tensor(4.0), torch.tensor(0.0), strategy=way).cost
    >>> cost.lower_evaluations, cost.upper_evaluations, cost.products          # three steps, each replayed once
    (6, 1, 3)
    """

    lower_evaluations: int
    upper_evaluations: int
    products: int
    peak_bytes: int | None
    residual: float | None


class Hypergradient(NamedTuple):
    """value: the upper loss at (w, u(w)). gradient: of it in w, like w. lower_params: u(w), detached: the next
    warm start.

    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> found = hypergradient(problem, torch.tensor(4.0), torch.tensor(0.0), strategy=OneStepUnrolled(0.5))
    >>> found.value.item(), found.gradient.item(), found.lower_params.item()        # u = ½ w
    (1.0, 1.0, 2.0)
    """

    value: Tensor
    gradient: State
    lower_params: State
    cost: Cost


class Strategy(Protocol):
    """(problem, upper parameters, lower parameters to start from) → (value, gradient, lower parameters)."""

    def differentiate(self, run: Run, upper: State, lower: State) -> tuple[Tensor, State, State]: ...


def hypergradient(problem: Bilevel, upper_params: State, lower_params: State, *, strategy: Strategy) -> Hypergradient:
    """The gradient of upper(w, u(w)) in the upper parameters w, where u(w) starts from `lower_params`.

    upper_params, lower_params: trees of tensors; they are not changed, and need not ask for gradients.

    Raises: SolveError for combinations that make no sense, always with the reason: a first-order strategy
    where the upper loss does not see w (its gradient is identically zero), an implicit one where the lower
    level is no contraction or no minimum, BatchNorm in training mode, randomness inside a replayed lower loss,
    a lower level that diverged.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)   # u(w) = w
    >>> strategy = Unrolled(50, GradientDescent(0.5))
    >>> found = hypergradient(problem, torch.tensor(3.0), torch.tensor(0.0), strategy=strategy)
    >>> found.value.item(), found.gradient.item()                                          # (w − 1)² and 2 (w − 1)
    (4.0, 4.0)
    """
    device = next(iter(tensors(lower_params))).device
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    run = Run(problem)
    with torch.enable_grad():
        value, gradient, lower = strategy.differentiate(run, detach(upper_params), detach(lower_params))
    if not bool(value.isfinite()):
        raise SolveError(
            f"the upper loss is {value.item()}: the lower level diverged, its step exceeds 2 / curvature somewhere"
        )
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
    cost = Cost(run.lower_evaluations, run.upper_evaluations, run.products, peak, run.residual)
    return Hypergradient(value.detach(), detach(gradient), detach(lower), cost)


@dataclass(frozen=True)
class FirstOrder:
    """Drops how the lower parameters depend on w: right where the upper loss sees w itself and the lower level
    is slow.

    Refused where the upper loss does not see w, as in a search for loss weights: the gradient would be zero, always.

    >>> problem = Bilevel(upper=lambda w, u: w**2 * u, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> hypergradient(problem, torch.tensor(3.0), torch.tensor(2.0), strategy=FirstOrder()).gradient.item()   # 2 w u
    12.0
    """

    steps: int = 0
    dynamics: Dynamics | None = None

    def differentiate(self, run: Run, upper: State, lower: State) -> tuple[Tensor, State, State]:
        if self.dynamics is not None:
            lower = run.advance(self.dynamics, upper, lower, self.steps)
        elif self.steps > 0:
            raise SolveError(f"FirstOrder was asked for {self.steps} lower steps and given no dynamics to take them")
        w = leaves(upper)
        value = run.upper(w, lower)
        grads = torch.autograd.grad(value, tensors(w), allow_unused=True) if value.requires_grad else [None]
        if all(g is None for g in grads):
            raise SolveError(
                "the upper loss does not see the upper parameters, so the first-order gradient is identically zero; "
                "take a strategy that differentiates the lower level, as OneStepUnrolled"
            )
        found = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors(w), strict=True)]
        return value, rebuild(upper, found), lower


@dataclass(frozen=True)
class OneStepUnrolled:
    """The gradient after one step of gradient descent on the lower loss, as second-order DARTS takes it.

    step_size: of that step, of the order of the learning rate that trains the lower parameters elsewhere.
    Returned lower parameters are those after the step; a search usually ignores them and lets its own optimiser move.
    Cost: one lower and one upper gradient, then one double backward (`Exact`) or two gradients in w alone.

    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = OneStepUnrolled(0.5)                                                  # u = ½ w, so 2 (½ w − 1) ½
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(0.0), strategy=way).gradient.item()
    1.0
    """

    step_size: float
    cross: Cross = EXACT

    def differentiate(self, run: Run, upper: State, lower: State) -> tuple[Tensor, State, State]:
        products = self.cross.at(run, upper, lower)
        moved = axpy(-self.step_size, detach(products.gradient()), lower)
        value, direct, g = run.upper_gradients(upper, moved)
        mixed = products.mixed(rebuild(lower, g))
        return value, rebuild(upper, [d - self.step_size * m for d, m in zip(direct, mixed, strict=True)]), moved


@dataclass(frozen=True)
class Unrolled:
    """The exact gradient of what `steps` steps make of the start, in the memory of states (see `unroll.replayed`).

    keep_every: store every n-th state only; near √steps for the least memory, for one more evaluation of each
    step. together: steps that are replayed with one graph; more is faster where steps are tiny, and holds more.
    The start counts as constant. Prefer implicit strategies where the lower level is solved to rest and has
    one minimum.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = Unrolled(2, GradientDescent(0.5))                                     # u = ¾ w, so 2 (¾ w − 1) ¾
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(0.0), strategy=way).gradient.item()
    3.0
    """

    steps: int
    dynamics: Dynamics
    keep_every: int = 1
    together: int = 1

    def differentiate(self, run: Run, upper: State, lower: State) -> tuple[Tensor, State, State]:
        whole = Truncated(self.steps, self.steps, self.dynamics, self.keep_every, self.together)
        return whole.differentiate(run, upper, lower)


@dataclass(frozen=True)
class Truncated:
    """Runs `steps` steps and differentiates the `last` of them: biased by what the others would have added.

    For a lower level that contracts by ρ a step the bias shrinks like ρ^last; memory and time shrink with `last` too.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = Truncated(2, 1, GradientDescent(0.5))                                 # u = ¾ w, the last step adds ½ w
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(0.0), strategy=way).gradient.item()
    2.0
    """

    steps: int
    last: int
    dynamics: Dynamics
    keep_every: int = 1
    together: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.last <= self.steps:
            raise SolveError(f"cannot differentiate the last {self.last} of {self.steps} steps")

    def differentiate(self, run: Run, upper: State, lower: State) -> tuple[Tensor, State, State]:
        early, dynamics = self.steps - self.last, self.dynamics
        with torch.no_grad():
            state = dynamics.begin(lower)
            for k in range(early):
                state = dynamics.step(run.problem, k, upper, state)
        w = leaves(upper)

        def step(k: int, w: State, state: State) -> State:
            return dynamics.step(run.problem, k, w, state)

        state = replayed(
            step,
            w,
            detach(state),
            steps=self.last,
            first=early,
            keep_every=self.keep_every,
            together=self.together,
        )
        reached = dynamics.params(state)
        value = run.upper(w, reached)
        gradient = rebuild(upper, pull(value, tensors(w)))
        run.products += self.last
        return value, gradient, reached


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

    >>> from twofold.solve.dynamics import GradientDescent
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

    def differentiate(self, run: Run, upper: State, lower: State) -> tuple[Tensor, State, State]:
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

    >>> from twofold.solve.dynamics import GradientDescent
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

    def differentiate(self, run: Run, upper: State, lower: State) -> tuple[Tensor, State, State]:
        return _implicit(self, run, upper, lower)

    def inverse(self, hessian: Callable[[State], State], b: State) -> tuple[State, float]:
        result = conjugate_gradient(hessian, b, steps=self.iterations, tolerance=self.tolerance)
        residual = float(result.residual)
        # What CG tracks drifts from the truth; an independent look costs one product.
        true = float(norm(subtract(b, hessian(result.value))) / norm(b))
        if not max(residual, true) <= 10 * self.tolerance:
            raise SolveError(
                f"conjugate gradients stalled at a relative residual of {max(residual, true):.1e} after {result.steps} "
                f"iterations, wanted {self.tolerance:.0e}: the lower loss is nearly flat where the upper "
                "loss cares; differentiate with Unrolled"
            )
        return result.value, true


def _implicit(how: Neumann | ConjugateGradient, run: Run, upper: State, lower: State) -> tuple[Tensor, State, State]:
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
