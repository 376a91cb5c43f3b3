"""Bilevel Meta Optimization: followers step towards a fixed point while the leader's descent pulls at the same
iterate.

    u ← mu (u − s_k G⁻¹ ∇_u F(w, u)) + (1 − mu) T(u; w),     w ← w − γ d/dw F(w, u_K(w))

(Liu et al. 2022, after the BDA of Liu et al. 2020; written from the abstract and from Krasnoselskii-Mann theory.)
Where T has many fixed points, T alone returns one that depends on the start, whatever the upper loss says; the
aggregated step drifts along them to one the upper loss prefers, if s_k falls to 0 and Σ s_k diverges:
`Harmonic`. With mu = 0 it is ordinary unrolling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from twofold.solve.dynamics import Bilevel, Dynamics
from twofold.solve.hypergradients import Cost, Strategy, hypergradient
from twofold.solve.linear import Euclidean, Metric, precondition
from twofold.solve.operators import Operator, metric_of
from twofold.solve.params import SolveError, State, axpy, detach, gradient, minus, norm, rebuild, scale, tensors

StepSchedule = Callable[[int], float]
"""k = 0, 1, ... → the leader's step size s_k."""
EUCLIDEAN = Euclidean()


def aggregated_step(
    operator: Operator,
    loss: Callable[[State], Tensor],
    u: State,
    *,
    mu: float,
    step: float,
    metric: Metric | None = None,
) -> State:
    """u ← mu (u − step G⁻¹ ∇loss(u)) + (1 − mu) T(u).

    operator: T. loss: the upper loss with the upper parameters put in. mu: in [0, 1), the leader's share. step: below
    floor(G) / L for an L-smooth loss. metric: G, that of T unless given; it preconditions and is not differentiated,
    even where its own parameters are learned.

    >>> quarter = aggregated_step(lambda u: u, lambda u: (u**2).sum() / 2, torch.tensor(4.0), mu=0.5, step=0.5)
    >>> quarter.item()                                                                    # ½ (4 − ½ 4) + ½ 4
    3.0
    """
    if mu == 0:
        return operator(u)
    metric = metric_of(operator) if metric is None else metric
    leader = axpy(-step, precondition(metric, gradient(loss, u)), u)
    return axpy(mu, leader, scale(1 - mu, operator(u)))


@dataclass(frozen=True)
class Harmonic:
    """s_k = first / (k + 1): falls to 0, sums to infinity; what the theory asks for.

    >>> Harmonic(0.5)(0), Harmonic(0.5)(4)
    (0.5, 0.1)
    """

    first: float

    def __call__(self, k: int) -> float:
        return self.first / (k + 1)


@dataclass(frozen=True)
class Geometric:
    """s_k = first · rate^k: falls to 0 but sums to first / (1 − rate), so the leader's reach is bounded.

    >>> Geometric(1.0, rate=0.5)(3)
    0.125
    """

    first: float
    rate: float = 0.9

    def __call__(self, k: int) -> float:
        return self.first * self.rate**k


@dataclass(frozen=True)
class Constant:
    """s_k = first: fast, and biased; the iterates settle off the fixed points unless both levels agree there.

    >>> Constant(0.5)(1000)
    0.5
    """

    first: float

    def __call__(self, k: int) -> float:
        return self.first


@dataclass(frozen=True)
class Aggregated:
    """Any lower dynamics with the leader's descent mixed into each step: the strategy around it stays `Unrolled`.

    followers: how the lower level moves by itself. mu: in [0, 1). schedule: s_k. metric: G, given w; None is
    Euclidean. project: onto the set the lower parameters must stay in; Euclidean, so exact for a metric that
    is diagonal.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> problem = Bilevel(upper=lambda w, u: u**2 / 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = Aggregated(GradientDescent(0.5), mu=0.5, schedule=Constant(0.5))
    >>> way.step(problem, 0, torch.tensor(0.0), torch.tensor(4.0)).item()              # ½ (4 − ½ 4) + ½ (4 − ½ 4)
    2.0
    """

    followers: Dynamics
    mu: float = 0.5
    schedule: StepSchedule = Harmonic(0.5)
    metric: Callable[[State], Metric] | None = None
    project: Callable[[State], State] | None = None

    minimises_lower = False

    def __post_init__(self) -> None:
        if not 0 <= self.mu < 1:
            raise SolveError(f"mu must lie in [0, 1), got {self.mu}; with 1 nobody would follow the lower level")

    def begin(self, params: State) -> State:
        return self.followers.begin(params)

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        u = self.followers.params(state)
        moved = self.followers.step(problem, k, upper, state)
        mixed = aggregated_step(
            lambda _: self.followers.params(moved),
            lambda v: problem.upper(upper, v),
            u,
            mu=self.mu,
            step=self.schedule(k),
            metric=EUCLIDEAN if self.metric is None else self.metric(upper),
        )
        return self.followers.replace(moved, mixed if self.project is None else self.project(mixed))

    def params(self, state: State) -> State:
        return self.followers.params(state)

    def replace(self, state: State, params: State) -> State:
        return self.followers.replace(state, params)


class Round(NamedTuple):
    """One round of the outer loop: both levels as they were when the hypergradient was taken.

    number: from 0. upper_loss; lower_loss, None where the lower level is an operator. gradient_norm: ‖dF/dw‖.
    change: ‖w_{t+1} − w_t‖. lower_change: ‖u_K(w_t) − start‖. upper_params: after the step. lower_params: u_K(w_t).

    >>> from twofold.solve.strategies import OneStepUnrolled
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> sgd, way = lambda params: torch.optim.SGD(params, 0.1), OneStepUnrolled(0.5)      # u = ½ w
    >>> first = next(rounds(problem, torch.tensor(4.0), torch.tensor(0.0), strategy=way, optimizer=sgd))
    >>> first.upper_loss, first.gradient_norm, round(first.upper_params.item(), 4)
    (1.0, 1.0, 3.9)
    """

    number: int
    upper_loss: float
    lower_loss: float | None
    gradient_norm: float
    change: float
    lower_change: float
    upper_params: State
    lower_params: State
    cost: Cost


def rounds(
    problem: Bilevel,
    upper_params: State,
    lower_params: State,
    *,
    strategy: Strategy,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    warm_start: bool = True,
    project: Callable[[State], State] | None = None,
) -> Iterator[Round]:
    """The outer loop, for ever: take as many rounds as you like, and stop when you have seen enough.

    strategy: how hypergradients are taken; with `Unrolled(K, Aggregated(...))` this is Bilevel Meta Optimization.
    optimizer: makes any torch optimiser of a list of tensors. warm_start: each round starts from the last one's u_K,
    detached; otherwise always from `lower_params`. project: of w, after each step. Nothing given is changed.

    >>> from itertools import islice
    >>> from twofold.solve.dynamics import GradientDescent
    >>> from twofold.solve.strategies import Unrolled
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)      # u(w) = 2 w
    >>> sgd = lambda params: torch.optim.SGD(params, 0.1)
    >>> way = Unrolled(30, GradientDescent(0.5))
    >>> *_, last = islice(rounds(problem, torch.tensor(0.0), torch.tensor(0.0), strategy=way, optimizer=sgd), 50)
    >>> round(last.upper_params.item(), 4), last.upper_loss < 1e-8
    (0.5, True)
    """
    flat = [t.detach().clone().requires_grad_() for t in tensors(upper_params)]
    stepper = optimizer(flat)
    start = detach(lower_params)
    number = 0
    while True:
        before = rebuild(upper_params, [t.detach().clone() for t in flat])
        found = hypergradient(problem, before, start, strategy=strategy)
        for tensor, slope in zip(flat, tensors(found.gradient), strict=True):
            tensor.grad = slope
        stepper.step()
        if project is not None:
            with torch.no_grad():
                for tensor, inside in zip(flat, tensors(project(rebuild(upper_params, flat))), strict=True):
                    tensor.copy_(inside)
        after = rebuild(upper_params, [t.detach().clone() for t in flat])
        with torch.no_grad():
            lower_loss = None if problem.lower is None else problem.lower(before, found.lower_params).item()
        yield Round(
            number=number,
            upper_loss=found.value.item(),
            lower_loss=lower_loss,
            gradient_norm=norm(found.gradient).item(),
            change=norm(minus(after, before)).item(),
            lower_change=norm(minus(found.lower_params, start)).item(),
            upper_params=after,
            lower_params=found.lower_params,
            cost=found.cost,
        )
        start = found.lower_params if warm_start else start
        number += 1
