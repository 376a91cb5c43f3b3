"""How the lower level moves: one differentiable step at a time, on any tree of parameters.

A dynamics turns a `Bilevel` problem into a step (k, upper parameters, state) → state. Its state holds the lower
parameters and whatever the method remembers beside them. Steps are pure: nothing is written in place, and what
a step computes can be differentiated in the upper parameters and in the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from twofold.solve.operators import Operator
from twofold.solve.params import SolveError, State, gradient, over, zeros_like

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
    """minimises_lower: whether its rest points are the stationary points of the lower loss, which implicit
    gradients need."""

    @property
    def minimises_lower(self) -> bool: ...
    def begin(self, params: State) -> State: ...
    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State: ...
    def params(self, state: State) -> State: ...
    def replace(self, state: State, params: State) -> State: ...


@dataclass(frozen=True)
class GradientDescent:
    """u ← u − step ∇_u lower(w, u). Settles where step < 2 / L, L the largest curvature of the lower loss.

    >>> problem = Bilevel(upper=lambda w, u: u, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> round(GradientDescent(0.1).step(problem, 0, torch.tensor(1.0), torch.tensor(3.0)).item(), 4)   # 3 − 0.1 · 2
    2.8
    """

    step_size: float

    minimises_lower = True

    def begin(self, params: State) -> State:
        return params

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        return over(lambda u, g: torch.sub(u, g, alpha=self.step_size), state, lower_gradient(problem, upper, state))

    def params(self, state: State) -> State:
        return state

    def replace(self, state: State, params: State) -> State:
        return params


@dataclass(frozen=True)
class Momentum:
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

    minimises_lower = True

    def begin(self, params: State) -> State:
        return params, zeros_like(params)

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        u, v = state
        v = over(lambda v_, g: self.momentum * v_ + g, v, lower_gradient(problem, upper, u))
        return over(lambda u_, v_: u_ - self.step_size * v_, u, v), v

    def params(self, state: State) -> State:
        return state[0]

    def replace(self, state: State, params: State) -> State:
        return (params, *state[1:])


@dataclass(frozen=True)
class Adam:
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

    minimises_lower = True

    def begin(self, params: State) -> State:
        return params, zeros_like(params), zeros_like(params)

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        u, m, v = state
        g = lower_gradient(problem, upper, u)
        b1, b2 = self.betas
        m = over(lambda m_, g_: b1 * m_ + (1 - b1) * g_, m, g)
        v = over(lambda v_, g_: b2 * v_ + (1 - b2) * g_**2, v, g)
        c1, c2 = 1 - b1 ** (k + 1), 1 - b2 ** (k + 1)
        move = lambda u_, m_, v_: u_ - self.step_size * (m_ / c1) / (v_ / c2 + self.epsilon**2).sqrt()  # noqa: E731
        return over(move, u, m, v), m, v

    def params(self, state: State) -> State:
        return state[0]

    def replace(self, state: State, params: State) -> State:
        return (params, *state[1:])


@dataclass(frozen=True)
class FixedPointSteps:
    """u ← T(u; w), where operator(w) makes T: the lower level as a fixed point instead of a minimum.

    The operator is made anew at every step, so what is costly in w alone, as the norms of a net's layers, is
    better done once outside and handed in as part of w.

    >>> way = FixedPointSteps(lambda w: lambda u: u / 2 + w)
    >>> way.step(Bilevel(upper=lambda w, u: u, lower=None), 0, torch.tensor(1.0), torch.tensor(4.0)).item()
    3.0
    """

    operator: Callable[[State], Operator]

    minimises_lower = False

    def begin(self, params: State) -> State:
        return params

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        return self.operator(upper)(state)

    def params(self, state: State) -> State:
        return state

    def replace(self, state: State, params: State) -> State:
        return params


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
    return gradient(lambda u: loss(upper, u), lower)
