"""How the lower level moves: one differentiable step at a time, on any tree of parameters.

A dynamics turns a `Bilevel` problem into a step (k, upper parameters, state) → state. Its state holds the lower
parameters and whatever the method remembers beside them. Steps are pure: nothing is written in place, and what
a step computes can be differentiated in the upper parameters and in the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from twofold.solve.linear import require_within
from twofold.solve.operators import Operator
from twofold.solve.params import SolveError, State, detach, gradient, over, require_finite, zeros_like

BilevelLoss = Callable[[State, State], Tensor]
"""(upper parameters, lower parameters) → scalar."""


class Bilevel(NamedTuple):
    """min_w upper(w, u(w)), where u(w) is what the lower level makes of w.

    upper, lower: losses of (upper parameters, lower parameters), each a tree of tensors. Both must be functions
    of these two alone: a mini-batch is drawn outside, dropout is switched off. lower may be None where the
    dynamics bring their own operator.

    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> problem.upper(torch.tensor(3.0), torch.tensor(3.0)).item()
    4.0
    """

    upper: BilevelLoss
    lower: BilevelLoss | None


class Dynamics(Protocol):
    """How the lower level moves.

    begin: parameters → the first state. step: (problem, k = 0, 1, …, upper parameters, state) → the next state, of the
    same structure. params: the lower parameters in a state. replace: the state with other ones. minimises_lower:
    whether its rest points are the stationary points of the lower loss, which implicit gradients need.
    """

    @property
    def minimises_lower(self) -> bool: ...
    def begin(self, params: State) -> State: ...
    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State: ...
    def params(self, state: State) -> State: ...
    def replace(self, state: State, params: State) -> State: ...


class _WithoutMemory:
    """The state is the lower parameters."""

    def begin(self, params: State) -> State:
        return params

    def params(self, state: State) -> State:
        return state

    def replace(self, state: State, params: State) -> State:
        return params


class _WithMemory:
    """The state is (lower parameters, `memories` trees of their structure, zeros at first)."""

    step_size: float
    memories = 1

    @property
    def minimises_lower(self) -> bool:
        return True

    def __post_init__(self) -> None:
        require_step_size(self.step_size)

    def begin(self, params: State) -> State:
        return params, *(zeros_like(params) for _ in range(self.memories))

    def params(self, state: State) -> State:
        return state[0]

    def replace(self, state: State, params: State) -> State:
        return (params, *state[1:])


@dataclass(frozen=True)
class GradientDescent(_WithoutMemory):
    """u ← u − step ∇_u lower(w, u). Settles where step < 2 / L, L the largest curvature of the lower loss.

    >>> problem = Bilevel(upper=lambda w, u: u, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> round(GradientDescent(0.1).step(problem, 0, torch.tensor(1.0), torch.tensor(3.0)).item(), 4)   # 3 − 0.1 · 2
    2.8
    """

    step_size: float

    minimises_lower = True

    def __post_init__(self) -> None:
        require_step_size(self.step_size)

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        return over(lambda u, g: torch.sub(u, g, alpha=self.step_size), state, lower_gradient(problem, upper, state))


@dataclass(frozen=True)
class Momentum(_WithMemory):
    """Heavy ball: v ← momentum v + ∇_u lower;  u ← u − step v, as `torch.optim.SGD(momentum=...)` does it.
    State: (u, v).

    >>> problem, way = Bilevel(upper=lambda w, u: u, lower=lambda w, u: (u - w) ** 2 / 2), Momentum(0.1, momentum=0.5)
    >>> w, state = torch.tensor(1.0), way.begin(torch.tensor(3.0))
    >>> for k in range(2):
    ...     state = way.step(problem, k, w, state)
    >>> round(state[0].item(), 4)                                          # 3 − 0.1 · 2 − 0.1 (0.5 · 2 + 1.8)
    2.52
    """

    step_size: float
    momentum: float = 0.9

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        u, v = state
        v = over(lambda v_, g: self.momentum * v_ + g, v, lower_gradient(problem, upper, u))
        return over(lambda u_, v_: u_ - self.step_size * v_, u, v), v


@dataclass(frozen=True)
class Adam(_WithMemory):
    """Adam (Kingma and Ba 2015), with epsilon inside the root, √(v + epsilon²): outside it, the root has an infinite
    derivative wherever a gradient is zero, and NaN is what an unrolled gradient becomes. State: (u, m, v).

    >>> problem, way = Bilevel(upper=lambda w, u: u, lower=lambda w, u: (u - w) ** 2 / 2), Adam(0.1)
    >>> state = way.step(problem, 0, torch.tensor(1.0), way.begin(torch.tensor(3.0)))
    >>> round(way.params(state).item(), 4)                                 # the first step is as long as step_size
    2.9
    """

    step_size: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    memories = 2

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        u, m, v = state
        g = lower_gradient(problem, upper, u)
        b1, b2 = self.betas
        m = over(lambda m_, g_: b1 * m_ + (1 - b1) * g_, m, g)
        v = over(lambda v_, g_: b2 * v_ + (1 - b2) * g_**2, v, g)
        c1, c2 = 1 - b1 ** (k + 1), 1 - b2 ** (k + 1)
        move = lambda u_, m_, v_: u_ - self.step_size * (m_ / c1) / (v_ / c2 + self.epsilon**2).sqrt()  # noqa: E731
        return over(move, u, m, v), m, v


@dataclass(frozen=True)
class AdamW(_WithMemory):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): u ← Adam(u) − step weight_decay u. State: as Adam.

    With decay it does not come to rest at a minimum of the lower loss, so implicit strategies refuse it: put the decay
    into the loss.

    >>> problem, way = Bilevel(upper=lambda w, u: u, lower=lambda w, u: (u - w) ** 2 / 2), AdamW(0.1, weight_decay=0.5)
    >>> state = way.step(problem, 0, torch.tensor(1.0), way.begin(torch.tensor(3.0)))
    >>> round(way.params(state).item(), 4)                                 # 3 − 0.1 − 0.1 · 0.5 · 3
    2.75
    """

    step_size: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 1e-2

    memories = 2

    @property
    def minimises_lower(self) -> bool:
        return self.weight_decay == 0

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        u, m, v = Adam(self.step_size, self.betas, self.epsilon).step(problem, k, upper, state)
        return over(lambda new, old: new - self.step_size * self.weight_decay * old, u, state[0]), m, v


@dataclass(frozen=True)
class RMSprop(_WithMemory):
    """v ← decay v + (1 − decay) g²;  u ← u − step g / √(v + epsilon²) (Tieleman and Hinton 2012), epsilon inside the
    root as in `Adam`. State: (u, v).

    >>> problem, way = Bilevel(upper=lambda w, u: u, lower=lambda w, u: (u - w) ** 2 / 2), RMSprop(0.1, decay=0.75)
    >>> state = way.step(problem, 0, torch.tensor(1.0), way.begin(torch.tensor(3.0)))
    >>> round(way.params(state).item(), 4)                                 # 3 − 0.1 · 2 / √(¼ · 2²)
    2.8
    """

    step_size: float = 1e-2
    decay: float = 0.99
    epsilon: float = 1e-8

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        u, v = state
        g = lower_gradient(problem, upper, u)
        v = over(lambda v_, g_: self.decay * v_ + (1 - self.decay) * g_**2, v, g)
        return over(lambda u_, g_, v_: u_ - self.step_size * g_ / (v_ + self.epsilon**2).sqrt(), u, g, v), v


@dataclass(frozen=True)
class FixedPointSteps(_WithoutMemory):
    """u ← T(u; w), where operator(w) makes T: the lower level as a fixed point instead of a minimum.

    The operator is rebuilt at every step, so what is costly in w alone, as the norms of a net's layers, is
    better done once outside and handed in as part of w.

    >>> way = FixedPointSteps(lambda w: lambda u: u / 2 + w)
    >>> way.step(Bilevel(upper=lambda w, u: u, lower=None), 0, torch.tensor(1.0), torch.tensor(4.0)).item()
    3.0
    """

    operator: Callable[[State], Operator]

    minimises_lower = False

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        return self.operator(upper)(state)


def lower_gradient(problem: Bilevel, upper: State, lower: State) -> State:
    """∇_u lower(w, u), differentiable iff grad mode is on.

    >>> import torch
    >>> problem = Bilevel(upper=lambda w, u: u.sum(), lower=lambda w, u: (w * u**2).sum())
    >>> lower_gradient(problem, torch.tensor(3.0), torch.tensor(2.0)).item()
    12.0
    """
    if problem.lower is None:
        raise SolveError("these dynamics descend the lower loss, and the problem has none (lower=None)")
    loss = problem.lower
    return gradient(lambda u: loss(upper, u), lower, name="the lower loss")


def lower_solution(
    problem: Bilevel, upper_params: State, lower_params: State, *, dynamics: Dynamics, steps: int
) -> State:
    """What `steps` lower steps make of `lower_params`, without a gradient: the lower level alone.

    >>> problem = Bilevel(upper=lambda w, u: u, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = GradientDescent(0.5)
    >>> lower_solution(problem, torch.tensor(1.0), torch.tensor(3.0), dynamics=way, steps=2)       # 1 + 2 / 4
    tensor(1.5000)
    """
    require_dynamics("lower_solution", steps, dynamics)
    with torch.no_grad():
        state = dynamics.begin(detach(lower_params))
        for k in range(steps):
            state = dynamics.step(problem, k, detach(upper_params), state)
    reached = detach(dynamics.params(state))
    require_finite(reached, "lower_params", "the lower level diverged; take a smaller step")
    return reached


def require_dynamics(name: str, steps: Any, dynamics: Any) -> None:
    """Raises SolveError unless `steps` is a number of steps and `dynamics` says how one is taken.

    >>> require_dynamics("Unrolled", GradientDescent(0.4), 20)
    Traceback (most recent call last):
    twofold.solve.params.SolveError: Unrolled takes the number of steps first and the dynamics second: write
    Unrolled(20, GradientDescent(step_size=0.4), ...)
    """
    if isinstance(dynamics, int) and hasattr(steps, "step"):
        raise SolveError(
            f"{name} takes the number of steps first and the dynamics second: write {name}({dynamics}, {steps!r}, ...)"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise SolveError(f"{name} expects a number of lower steps, 0 or more, got {steps!r}")
    kind = dynamics if isinstance(dynamics, type) else type(dynamics)
    if issubclass(kind, torch.optim.Optimizer):
        raise SolveError(
            f"{name} cannot differentiate torch.optim.{kind.__name__}, which writes its parameters in place; take "
            "GradientDescent(step), Momentum(step, momentum) or Adam(step) of twofold.solve as dynamics"
        )
    missing = [part for part in ("begin", "step", "params", "replace") if not hasattr(dynamics, part)]
    if isinstance(dynamics, type) and not missing:
        raise SolveError(f"{name} got the class {kind.__name__} as dynamics; make one, as {kind.__name__}(...)")
    if missing:
        raise SolveError(
            f"{name} expects dynamics, as GradientDescent(0.1), got {kind.__name__} without {', '.join(missing)}"
        )


def require_minimising(name: str, dynamics: Dynamics) -> None:
    """Raises SolveError unless the dynamics come to rest at the stationary points of the lower loss.

    >>> require_minimising("Neumann", AdamW(0.1, weight_decay=0.5))
    Traceback (most recent call last):
    twofold.solve.params.SolveError: Neumann needs the lower level at a stationary point of the lower loss, and AdamW
    does not come to rest at one; take Unrolled or Truncated, or fixed_point with Implicit for a plain operator
    """
    if not dynamics.minimises_lower:
        raise SolveError(
            f"{name} needs the lower level at a stationary point of the lower loss, and {type(dynamics).__name__} does "
            "not come to rest at one; take Unrolled or Truncated, or fixed_point with Implicit for a plain operator"
        )


def require_step_size(step_size: Any) -> None:
    """Raises SolveError unless a step size is a positive, finite number.

    >>> require_step_size(-0.1)
    Traceback (most recent call last):
    twofold.solve.params.SolveError: step_size must lie in (0, inf), got -0.1
    """
    if isinstance(step_size, bool) or not isinstance(step_size, (int, float, Tensor)):
        raise SolveError(f"expected a number as step_size, got a {type(step_size).__name__}")
    require_within(step_size, low=0, name="step_size")
