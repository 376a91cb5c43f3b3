"""Bilevel Meta Optimization: followers step towards a fixed point while the leader's descent pulls at the same
iterate.

    u ← Proj_U(mu (u − s_k G⁻¹ ∇_u F(w, u)) + (1 − mu) T(u; w)),     w ← w − γ d/dw F(w, u_K(w))

(Liu et al. 2022, after the BDA of Liu et al. 2020; written from the abstract and from Krasnoselskii-Mann theory.)
Where T has many fixed points, T alone returns one that depends on the start, whatever the upper loss says; the
aggregated step drifts along them to one the upper loss prefers, if s_k falls to 0 and Σ s_k diverges:
`Harmonic`. With mu = 0 it is ordinary unrolling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from twofold.solve.dynamics import Bilevel, Dynamics
from twofold.solve.hypergradients import Cost, Strategy, hypergradient
from twofold.solve.linear import Euclidean, Metric, Number, precondition
from twofold.solve.operators import Operator, metric_of
from twofold.solve.params import (
    SolveError,
    State,
    axpy,
    detach,
    dot,
    gradient,
    minus,
    norm,
    over,
    rebuild,
    require_finite,
    require_real,
    scale,
    tensors,
)

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
    project: Callable[[State], State] | None = None,
) -> State:
    """u ← Proj_U(mu (u − step G⁻¹ ∇loss(u)) + (1 − mu) T(u)).

    operator: T. loss: the upper loss with the upper parameters put in. mu: in [0, 1), the leader's share. step: below
    floor(G) / L for an L-smooth loss. metric: G, that of T unless given; it preconditions and is not differentiated,
    even where its own parameters are learned. project: onto U, nearest in the norm of G (`Ball`; for a diagonal G a
    clamp); None for U = everything.

    >>> quarter = aggregated_step(lambda u: u, lambda u: (u**2).sum() / 2, torch.tensor(4.0), mu=0.5, step=0.5)
    >>> quarter.item()                                                                    # ½ (4 − ½ 4) + ½ 4
    3.0
    """
    if mu == 0:
        mixed = operator(u)
    else:
        metric = metric_of(operator) if metric is None else metric
        mixed = _mix(u, gradient(loss, u, name="the upper loss"), operator(u), mu=mu, step=step, metric=metric)
    return mixed if project is None else project(mixed)


@dataclass(frozen=True, eq=False)
class Ball:
    """u ↦ the nearest point of {‖u‖_G ≤ radius} in the norm of G, sample by sample: a projection in any metric.

    metric: G, as constant as in `aggregated_step`. radius: > 0, a number or `(B,)`.

    >>> from twofold.solve.linear import Scaled
    >>> Ball(Scaled(4.0), radius=2.0)(torch.tensor([[3.0], [0.5]]))                       # ‖3‖_G = 6, ‖0.5‖_G = 1
    tensor([[1.0000],
            [0.5000]])
    """

    metric: Metric
    radius: Number

    def __call__(self, u: State) -> State:
        with torch.no_grad():
            weighed = self.metric.apply(detach(u))
            size = dot(u, weighed, per_sample=True)
        # Twice the product with a constant less its value: ‖u‖²_G with its gradient 2 G u, and none in G.
        square = 2 * dot(u, weighed, per_sample=True) - size
        length = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
        inside = size <= torch.as_tensor(self.radius, dtype=size.dtype, device=size.device) ** 2
        return scale(torch.where(inside, torch.ones_like(length), self.radius / length), u)


def curvature(loss: Callable[[State], Tensor], at: State, *, products: int = 6) -> float:
    """The largest curvature of a loss at a state, L with ‖∇loss(u) − ∇loss(v)‖ ≤ L ‖u − v‖ nearby, from below.

    A power iteration whose products are differences of gradients, so it needs no second derivative: one gradient for
    each of `products`, and one. It starts from the gradient and a fixed pseudo-random direction.

    >>> round(curvature(lambda u: (torch.tensor([1.0, 100.0]) * u**2).sum(), torch.ones(2)))
    200
    """
    with torch.no_grad():
        slope = gradient(loss, at, name="the upper loss")
        generator = torch.Generator().manual_seed(0)
        draw = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in tensors(at)]
        fixed = rebuild(at, draw)
        v = axpy(1 / float(norm(slope).clamp_min(1e-30)), slope, scale(1 / float(norm(fixed).clamp_min(1e-30)), fixed))
        radius = torch.finfo(tensors(at)[0].dtype).eps ** 0.5 * max(1.0, float(norm(at)))
        found = 0.0
        for _ in range(products):
            v = scale(1 / float(norm(v).clamp_min(1e-30)), v)
            v = scale(1 / radius, minus(gradient(loss, axpy(radius, v, at), name="the upper loss"), slope))
            found = max(found, float(norm(v)))
    return found


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

    followers: how the lower level moves by itself. mu: in [0, 1). schedule: s_k, at most 2 floor(G) / L for an upper
    loss with an L-Lipschitz gradient in u; L is measured where the iteration starts and, from below, at every step, and
    a longer step is refused. metric: G, given w; None is Euclidean. project: onto U, the set the lower parameters must
    stay in; nearest in the norm of G, so a clamp where G is diagonal, and else `Ball`.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> problem = Bilevel(upper=lambda w, u: u**2 / 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> way = Aggregated(GradientDescent(0.5), mu=0.5, schedule=Constant(0.5))
    >>> state = way.step(problem, 0, torch.tensor(0.0), way.begin(torch.tensor(4.0)))
    >>> way.params(state).item()                                                       # ½ (4 − ½ 4) + ½ (4 − ½ 4)
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
            raise SolveError(f"mu must lie in [0, 1), got {self.mu}; with 1 the lower level would be ignored")

    def begin(self, params: State) -> State:
        zero = tensors(params)[0].new_zeros(())
        return self.followers.begin(params), zero, zero  # and the norms of the last upper gradient and the last move

    def step(self, problem: Bilevel, k: int, upper: State, state: State) -> State:
        inner, last_slope, last_move = state
        u = self.followers.params(inner)
        moved = self.followers.step(problem, k, upper, inner)
        if self.mu == 0:
            return self._projected(moved, self.followers.params(moved)), last_slope, last_move
        metric = EUCLIDEAN if self.metric is None else self.metric(upper)
        loss = lambda v: problem.upper(upper, v)  # noqa: E731
        slope = gradient(loss, u, name="the upper loss")
        size = norm(detach(slope))
        if not torch.is_grad_enabled():  # the way there; when steps are replayed for their gradient, it is known
            if k == 0:
                self._require_stable(0, curvature(loss, detach(u)), metric)
            elif float(last_move) > 0:
                self._require_stable(k - 1, float((size - last_slope).abs() / last_move), metric)
        mixed = _mix(u, slope, self.followers.params(moved), mu=self.mu, step=self.schedule(k), metric=metric)
        fresh = self._projected(moved, mixed)
        return fresh, size, norm(detach(minus(self.followers.params(fresh), u)))

    def params(self, state: State) -> State:
        """Those of the followers' dynamics."""
        return self.followers.params(state[0])

    def replace(self, state: State, params: State) -> State:
        """As the followers' dynamics do it."""
        return self.followers.replace(state[0], params), *state[1:]

    def _projected(self, moved: State, params: State) -> State:
        return self.followers.replace(moved, params if self.project is None else self.project(params))

    def _require_stable(self, k: int, found: float, metric: Metric) -> None:
        """‖∇F(u) − ∇F(v)‖ / ‖u − v‖ was `found` somewhere: the leader's step must not exceed 2 floor(G) / found."""
        floor = float(metric.floor)
        if not self.schedule(k) * found <= 2.05 * floor:
            raise SolveError(
                f"the leader's step {self.schedule(k):.1e} at lower step {k} is too long: the upper loss's gradient "
                f"changes by at least {found:.1e} times the distance, so steps must be below {2 * floor / found:.1e} "
                f"or the iterates run away; pass a shorter schedule, as Harmonic({floor / found:.1e})"
            )


def _mix(u: State, slope: State, follower: State, *, mu: float, step: float, metric: Metric) -> State:
    leader = axpy(-step, precondition(metric, slope), u)
    return axpy(mu, leader, scale(1 - mu, follower))


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
    optimizer: makes a torch optimiser of a list of tensors, any that steps without a closure. warm_start: each round
    starts from the last one's u_K, detached; otherwise always from `lower_params`. project: of w, after each step.
    Nothing given is changed.

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
    require_real(upper_params, "upper_params")
    flat = [t.detach().clone().requires_grad_() for t in tensors(upper_params)]
    stepper = _optimizer(optimizer, flat)
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
                here = rebuild(upper_params, flat)
                over(lambda tensor, inside: tensor.copy_(inside), here, project(rebuild(upper_params, flat)))
        require_finite(rebuild(upper_params, flat), "upper_params", f"after round {number}: take a smaller upper step")
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


def _optimizer(make: Callable[[list[Tensor]], torch.optim.Optimizer], flat: list[Tensor]) -> torch.optim.Optimizer:
    advice = "pass a function that makes one, as lambda params: torch.optim.Adam(params, 0.01)"
    if isinstance(make, torch.optim.Optimizer):
        raise SolveError(f"got an optimizer ({type(make).__name__}) that already has its parameters; {advice}")
    if not callable(make):
        raise SolveError(f"expected a function that makes an optimizer, got a {type(make).__name__}; {advice}")
    stepper = make(flat)
    if not hasattr(stepper, "step"):
        raise SolveError(f"the optimizer function returned a {type(stepper).__name__}; {advice}")
    closure = inspect.signature(stepper.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise SolveError(
            f"{type(stepper).__name__} evaluates the loss many times a step, and here an evaluation is a whole "
            "hypergradient at a moving start; take SGD or Adam, or call hypergradient in a closure of your own"
        )
    return stepper
