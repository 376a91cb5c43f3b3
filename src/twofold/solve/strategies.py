"""Strategies that differentiate the steps of the lower level: none of them, one, the last ones, or all.

Those that differentiate its minimum instead are in `implicit`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.solve.adjoint import Adjoint, Implicit
from twofold.solve.dynamics import Dynamics, FixedPointSteps, require_dynamics, require_step_size
from twofold.solve.evaluator import KINK, Evaluator
from twofold.solve.fixed_points import fixed_point
from twofold.solve.params import (
    SolveError,
    State,
    axpy,
    detach,
    filled,
    leaves,
    rebuild,
    require_finite,
    slopes,
    tensors,
)
from twofold.solve.second_order import EXACT, Cross
from twofold.solve.solvers import KrasnoselskiiMann, Solver
from twofold.solve.unroll import NO_FLOW, graphs_within, replayed

SOLVER, IMPLICIT = KrasnoselskiiMann(), Implicit()


@dataclass(frozen=True)
class FirstOrder:
    """Drops how the lower parameters depend on w: right where the upper loss sees w itself and the lower level
    is slow.

    Refused where the upper loss does not see w, as in a search for loss weights: the gradient would be zero, always.

    >>> from twofold.solve import Bilevel, hypergradient
    >>> problem = Bilevel(upper=lambda w, u: w**2 * u, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> hypergradient(problem, torch.tensor(3.0), torch.tensor(2.0), strategy=FirstOrder()).gradient.item()   # 2 w u
    12.0
    """

    steps: int = 0
    dynamics: Dynamics | None = None

    def __post_init__(self) -> None:
        if self.dynamics is not None:
            require_dynamics("FirstOrder", self.steps, self.dynamics)
        elif self.steps != 0:
            raise SolveError(f"FirstOrder was asked for {self.steps} lower steps and given no dynamics to take them")

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        if self.dynamics is not None:
            lower = run.advance(self.dynamics, upper, lower, self.steps)
        w = leaves(upper)
        value = run.upper(w, lower)
        found = slopes(value, tensors(w))
        if all(slope is None for slope in found):
            raise SolveError(
                "the upper loss does not see the upper parameters, so the first-order gradient is identically zero; "
                "take a strategy that differentiates the lower level, as OneStepUnrolled"
            )
        return value, rebuild(upper, filled(found, tensors(w))), lower


@dataclass(frozen=True)
class OneStepUnrolled:
    """The gradient after one step of gradient descent on the lower loss, as second-order DARTS takes it.

    step_size: of that step, of the order of the learning rate that trains the lower parameters elsewhere.
    Returned lower parameters are those after the step; a search usually ignores them and lets its own optimiser move.
    Cost: one lower and one upper gradient, then one double backward (`Exact`) or two gradients in w alone.

    >>> from twofold.solve import Bilevel, hypergradient
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = OneStepUnrolled(0.5)                                                  # u = ½ w, so 2 (½ w − 1) ½
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(0.0), strategy=way).gradient.item()
    1.0
    """

    step_size: float
    cross: Cross = EXACT

    def __post_init__(self) -> None:
        require_step_size(self.step_size)

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        products = self.cross.at(run, upper, lower)
        slope = detach(products.gradient())
        require_finite(slope, "the lower loss's gradient in lower_params", KINK)
        moved = axpy(-self.step_size, slope, lower)
        value, direct, g = run.upper_gradients(upper, moved)
        mixed = products.mixed(rebuild(lower, g))
        pairs = zip(filled(direct, tensors(upper)), mixed, strict=True)
        return value, rebuild(upper, [d - self.step_size * m for d, m in pairs]), moved


@dataclass(frozen=True)
class Unrolled:
    """The exact gradient of what `steps` steps make of the start, in the memory of states (see `unroll.replayed`).

    keep_every: store every n-th state only; near √steps for the least memory, for one more evaluation of each
    step. together: steps that are replayed with one graph; more is faster where steps are tiny, and holds more.
    graph_bytes: memory that may be spent to save time: as many of the last steps as fit into it keep their graph and
    are not replayed; infinity is ordinary unrolling, the fastest. The start counts as constant. Prefer implicit
    strategies where the lower level is solved to rest and has one minimum.

    >>> from twofold.solve import Bilevel, GradientDescent, hypergradient
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = Unrolled(2, GradientDescent(0.5))                                     # u = ¾ w, so 2 (¾ w − 1) ¾
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(0.0), strategy=way).gradient.item()
    3.0
    """

    steps: int
    dynamics: Dynamics
    keep_every: int = 1
    together: int = 1
    graph_bytes: float = 0

    def __post_init__(self) -> None:
        require_dynamics("Unrolled", self.steps, self.dynamics)

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        whole = Truncated(self.steps, self.steps, self.dynamics, self.keep_every, self.together, self.graph_bytes)
        return whole.differentiate(run, upper, lower)


@dataclass(frozen=True)
class Truncated:
    """Runs `steps` steps and differentiates the `last` of them: biased by what the others would have added.

    For a lower level that contracts by ρ a step the bias shrinks like ρ^last; memory and time shrink with `last` too.

    >>> from twofold.solve import Bilevel, GradientDescent, hypergradient
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
    graph_bytes: float = 0

    def __post_init__(self) -> None:
        require_dynamics("Truncated", self.steps, self.dynamics)
        if not 0 <= self.last <= self.steps:
            raise SolveError(f"cannot differentiate the last {self.last} of {self.steps} steps")

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        early, dynamics = self.steps - self.last, self.dynamics
        with torch.no_grad():
            state = dynamics.begin(lower)
            for k in range(early):
                state = dynamics.step(run.problem, k, upper, state)
        w = leaves(upper)

        def step(k: int, w: State, state: State) -> State:
            return dynamics.step(run.problem, k, w, state)

        graphs = graphs_within(self.graph_bytes, step, upper, state, steps=self.last, first=early)
        state = replayed(
            step,
            w,
            detach(state),
            steps=self.last - graphs,
            first=early,
            keep_every=self.keep_every,
            together=self.together,
        )
        for k in range(self.steps - graphs, self.steps):
            state = step(k, w, state)
        reached = dynamics.params(state)
        run.require_settling(dynamics, upper, lower, self.steps, detach(state))
        value, direct, g = run.upper_gradients(upper, detach(reached))
        if self.last == 0:
            if all(slope is None for slope in direct):
                raise SolveError(
                    "the upper loss does not see the upper parameters and no lower step is differentiated, so the "
                    "gradient is identically zero; differentiate at least one step"
                )
            return value, rebuild(upper, filled(direct, tensors(w))), reached
        through = slopes(tensors(reached), tensors(w), g)
        if all(slope is None for slope in through):
            raise SolveError(NO_FLOW)
        run.products += self.last
        pairs = zip(filled(direct, tensors(w)), filled(through, tensors(w)), strict=True)
        return value, rebuild(upper, [d + t for d, t in pairs]), reached


@dataclass(frozen=True)
class ThroughFixedPoint:
    """The gradient at the fixed point of a lower operator, by the adjoint of `fixed_point`: the memory of one step.

    dynamics: the operator, as u ← T(u; w). solver: how the fixed point is found. adjoint: how it is differentiated;
    `Implicit` exactly, `TruncatedAdjoint(n)` as a phantom gradient. per_sample: whether the first dimension of the
    lower parameters counts samples.

    Raises: NotConverged where the solver's tolerance is missed, AdjointError where the adjoint's is.

    >>> from twofold.solve import Bilevel, FixedPointSteps, KrasnoselskiiMann, hypergradient
    >>> problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=None)
    >>> steps = FixedPointSteps(lambda w: lambda u: u / 2 + w)
    >>> way = ThroughFixedPoint(steps, KrasnoselskiiMann(1.0, tolerance=1e-7), per_sample=False)     # u = 2 w, so 8 w
    >>> round(hypergradient(problem, torch.tensor(3.0), torch.tensor(0.0), strategy=way).gradient.item(), 3)
    24.0
    """

    dynamics: FixedPointSteps
    solver: Solver = SOLVER
    adjoint: Adjoint = IMPLICIT
    per_sample: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, FixedPointSteps):
            raise SolveError(f"expected FixedPointSteps(operator of w), got a {type(self.dynamics).__name__}")

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        w = leaves(upper)
        solution = fixed_point(
            self.dynamics.operator(w), lower, solver=self.solver, adjoint=self.adjoint, per_sample=self.per_sample
        )
        value, direct, g = run.upper_gradients(upper, detach(solution.value))
        through = slopes(tensors(solution.value), tensors(w), g)
        if all(slope is None for slope in through):
            raise SolveError(NO_FLOW)
        pairs = zip(filled(direct, tensors(w)), filled(through, tensors(w)), strict=True)
        return value, rebuild(upper, [d + t for d, t in pairs]), solution.value
