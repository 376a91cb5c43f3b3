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
`ThroughFixedPoint`  an operator        its fixed point, by an adjoint     one step
===================  =================  =================================  ===========================

The lower level's `dynamics` say how it moves (gradient descent, momentum, Adam, a fixed-point operator, or any
of these aggregated with the upper loss). `cross` says how the products with second derivatives are taken:
`Exact`, by a double backward, or `CentralDifference`, by two gradients at shifted points. Combinations that
make no sense are refused.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from twofold.solve.dynamics import Bilevel
from twofold.solve.evaluator import KINK, Evaluator
from twofold.solve.params import SolveError, State, detach, require_finite, require_real, tensors


class Cost(NamedTuple):
    """What a hypergradient took.

    lower_evaluations, upper_evaluations: of the losses, each followed by a backward. products: with second
    derivatives, by double backward (a central difference shows up as two lower evaluations instead).
    peak_bytes: memory on a CUDA device at its peak above what was there before; None on a CPU, where torch does
    not count. residual: what is left of the linear equation of an implicit gradient, relative; None for the others.
    lower_gradient: ‖∇_u lower‖ where an implicit gradient was taken. lower_distance: how far the lower parameters are
    from the minimum there: an upper bound where the strategy knows the strong convexity, else a lower bound from a few
    conjugate-gradient steps of Newton's equation (see `ConjugateGradient`).

    >>> from twofold.solve.dynamics import GradientDescent
    >>> from twofold.solve.strategies import Unrolled
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
    lower_gradient: float | None = None
    lower_distance: float | None = None


class Hypergradient(NamedTuple):
    """value: the upper loss at (w, u(w)). gradient: of it in w, like w. lower_params: u(w), detached: the next
    warm start.

    >>> from twofold.solve.strategies import OneStepUnrolled
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
    """differentiate: (the problem's losses, counted and watched; upper parameters; lower parameters to start from) →
    (the upper loss, a scalar; its gradient, like the upper parameters; the lower parameters reached)."""

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]: ...


def hypergradient(problem: Bilevel, upper_params: State, lower_params: State, *, strategy: Strategy) -> Hypergradient:
    """The gradient of upper(w, u(w)) in the upper parameters w, where u(w) starts from `lower_params`.

    upper_params, lower_params: trees of tensors; they are not changed, and need not ask for gradients.

    Raises: SolveError for what would give a wrong gradient, always with the reason (the list is in docs/solve.md):
    losses that do not see a variable, that draw random numbers or change buffers; an implicit strategy where the lower
    level is not settled, no contraction or no minimum; a lower level that diverged, and NaN wherever it arises.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> from twofold.solve.strategies import Unrolled
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)   # u(w) = w
    >>> strategy = Unrolled(50, GradientDescent(0.5))
    >>> found = hypergradient(problem, torch.tensor(3.0), torch.tensor(0.0), strategy=strategy)
    >>> found.value.item(), found.gradient.item()                                          # (w − 1)² and 2 (w − 1)
    (4.0, 4.0)
    """
    _require_problem(problem, strategy)
    for tree, name in ((upper_params, "upper_params"), (lower_params, "lower_params")):
        require_real(tree, name)
        require_finite(tree, name, "a hypergradient cannot start there")
    device = tensors(lower_params)[0].device
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    run = Evaluator(problem)
    with torch.enable_grad():
        value, gradient, lower = strategy.differentiate(run, detach(upper_params), detach(lower_params))
    require_finite(value.detach(), "the value of the upper loss", "see whether the lower level diverged")
    require_finite(detach(gradient), "the hypergradient in upper_params", KINK)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
    cost = Cost(
        run.lower_evaluations,
        run.upper_evaluations,
        run.products,
        peak,
        run.residual,
        run.lower_gradient,
        run.lower_distance,
    )
    return Hypergradient(value.detach(), detach(gradient), detach(lower), cost)


def _require_problem(problem: Bilevel, strategy: Strategy) -> None:
    if not isinstance(problem, Bilevel):
        raise SolveError(f"expected a Bilevel(upper=..., lower=...) as problem, got a {type(problem).__name__}")
    if isinstance(strategy, type) or not hasattr(strategy, "differentiate"):
        kind = strategy.__name__ if isinstance(strategy, type) else type(strategy).__name__
        raise SolveError(f"expected a strategy, as Unrolled(20, GradientDescent(0.1)), got {kind}")
