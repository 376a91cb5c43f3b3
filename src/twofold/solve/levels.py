"""More than two levels, and losses that are spread over processes.

`settled_loss` makes a loss of a whole bilevel problem: (w, u) ↦ upper(w, u, x(w, u)), x being another problem's answer.
It has a first derivative, which is a hypergradient, and no second one, so the level above takes a strategy without
second derivatives: `ValueFunction`, `AdaptedOneStep`, or any with `CentralDifference`.

`shared` makes of each process's part of a problem the mean over all processes, for every strategy: each gradient is
reduced once, in forward order on all processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from twofold.solve.dynamics import Adam, Bilevel, BilevelLoss
from twofold.solve.evaluator import Evaluator
from twofold.solve.hypergradients import Strategy, hypergradient
from twofold.solve.params import SolveError, State, detach, minus, over, rebuild, tensors
from twofold.solve.second_order import CentralDifference, Cross

DIFFERENCE = CentralDifference()


def settled_loss(problem: Bilevel, start: State, *, strategy: Strategy) -> BilevelLoss:
    """The loss (w, u) ↦ problem.upper((w, u), x(w, u)), where x is what `strategy` makes of `start`.

    problem: its upper parameters are the pair (w, u), its lower ones x. start: of x, the same for every evaluation, so
    that the result is a function of (w, u) alone; choose one from which the strategy settles. The gradient in both
    arguments is the hypergradient, exact as far as the strategy is.

    Three levels, x at the bottom: `Bilevel(upper=settled_loss(Bilevel(F, f), x0, ...), lower=settled_loss(Bilevel(G,
    f), x0, ...))` minimises F((w, u), x) where u minimises G((w, u), x) and x minimises f((w, u), x).

    Raises: SolveError where a second derivative is asked for, and what the strategy refuses.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> from twofold.solve.strategies import Unrolled
    >>> inner = Bilevel(lambda wu, x: (x - 1) ** 2 / 2, lambda wu, x: (x - wu[0] * wu[1]) ** 2 / 2)       # x = w u
    >>> loss = settled_loss(inner, torch.tensor(0.0), strategy=Unrolled(1, GradientDescent(1.0)))
    >>> w, u = torch.tensor([2.0, 3.0]).requires_grad_()
    >>> value = loss(w, u)
    >>> value.item(), [g.item() for g in torch.autograd.grad(value, (w, u))]              # 5²/2;  5 · 3, 5 · 2
    (12.5, [15.0, 10.0])
    """
    begin = detach(start)

    def loss(w: State, u: State) -> Tensor:
        settle: Any = _Settle.apply
        value: Tensor = settle(problem, strategy, begin, (detach(w), detach(u)), *tensors(w), *tensors(u))
        return value

    return loss


class _Settle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Bilevel, strategy: Strategy, start: State, pair: State, *flat: Tensor) -> Tensor:
        found = hypergradient(problem, pair, start, strategy=strategy)
        ctx.gradient = tensors(found.gradient)
        return found.value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise SolveError(
                "a settled level has no second derivative; take a strategy without them for the level above: "
                "ValueFunction, AdaptedOneStep, or CentralDifference() as cross"
            )
        return None, None, None, None, *(cotangent * g for g in ctx.gradient)


@dataclass(frozen=True)
class AdaptedOneStep:
    """The hypergradient through one step of Adam, as SAMA takes it (Choe et al. 2023): the change of the
    step with the gradient, a diagonal matrix, times ∂_u F, then a mixed derivative along that.

    Adam's step divides each entry by its own size, and a strategy that assumes gradient descent weighs the entries
    wrongly. dynamics: the `Adam` that trains the lower level; k, moments: the number of its next step and its memory
    (m, v), None for zeros. cross: `CentralDifference` needs no second derivative at all. Returned lower parameters are
    those after the step.

    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)
    >>> w, u = torch.tensor([4.0, 0.0], dtype=torch.float64)
    >>> found = hypergradient(problem, w, u, strategy=AdaptedOneStep(Adam(0.1, epsilon=1.0)))
    >>> round(found.lower_params.item(), 4)                           # g = −4, so the step is 0.1 · 4 / √17
    0.097
    >>> round(found.gradient.item(), 5)                               # 2 (0.097 − 1) · 0.1 / 17^1.5
    -0.00258
    """

    dynamics: Adam
    k: int = 0
    moments: tuple[State, State] | None = None
    cross: Cross = DIFFERENCE

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        way = self.dynamics
        state = way.begin(lower) if self.moments is None else (lower, *detach(self.moments))
        products = self.cross.at(run, upper, lower)
        g = detach(products.gradient())
        _, m, v = state
        b1, b2 = way.betas
        c1, c2 = 1 - b1 ** (self.k + 1), 1 - b2 ** (self.k + 1)

        def first(m_: Tensor, g_: Tensor) -> Tensor:
            return (b1 * m_ + (1 - b1) * g_) / c1

        def root(v_: Tensor, g_: Tensor) -> Tensor:
            return ((b2 * v_ + (1 - b2) * g_**2) / c2 + way.epsilon**2).sqrt()

        moved = over(lambda u, m_, v_, g_: u - way.step_size * first(m_, g_) / root(v_, g_), lower, m, v, g)
        value, direct, b = run.upper_gradients(upper, moved)

        def response(b_: Tensor, m_: Tensor, v_: Tensor, g_: Tensor) -> Tensor:
            r = root(v_, g_)  # d/dg of first / root
            return way.step_size * b_ * ((1 - b1) / c1 / r - first(m_, g_) * (1 - b2) / c2 * g_ / r**3)

        along = over(response, rebuild(lower, b), m, v, g)
        known = [torch.zeros_like(t) if d is None else d for d, t in zip(direct, tensors(upper), strict=True)]
        if not any(bool(t.any()) for t in tensors(along)):
            return value, rebuild(upper, known), moved
        return value, minus(rebuild(upper, known), rebuild(upper, products.mixed(along))), moved


def shared(problem: Bilevel, group: distributed.ProcessGroup | None = None) -> Bilevel:
    """The mean of every process's problem, as one problem: all strategies then give the hypergradient of the mean.

    problem: this process's part, as its shard of the data. group: the processes, all unless given. Upper and lower
    parameters must be the same on all, and the calls too: a strategy that stops by a rule sees the same numbers
    everywhere, so it does. One reduction of a loss and one of its gradients an evaluation; differentiable as often as
    the loss. (Averaging the processes' hypergradients instead gives that of another problem: each would have its own
    u(w).)

    Raises: SolveError where no process group is initialised.

    >>> shared(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u))
    Traceback (most recent call last):
    twofold.solve.params.SolveError: no process group: call torch.distributed.init_process_group first, or leave
    shared() out
    """
    if not distributed.is_available() or not distributed.is_initialized():
        raise SolveError("no process group: call torch.distributed.init_process_group first, or leave shared() out")

    def averaged(loss: BilevelLoss) -> BilevelLoss:
        def mean(w: State, u: State) -> Tensor:
            copy: Any = _Copy.apply
            flat = copy(group, *tensors(w), *tensors(u))
            split = len(tensors(w))
            value = loss(rebuild(w, list(flat[:split])), rebuild(u, list(flat[split:])))
            reduce: Any = _Mean.apply
            result: Tensor = reduce(group, value)[0]
            return result

        return mean

    return Bilevel(averaged(problem.upper), None if problem.lower is None else averaged(problem.lower))


class _Copy(torch.autograd.Function):
    """The identity; the gradients of all processes are averaged."""

    @staticmethod
    def forward(ctx: Any, group: Any, *flat: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.like = group, [(t.shape, t.dtype, t.device) for t in flat]
        return tuple(t.view_as(t) for t in flat)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        # An argument that a process's loss does not see has no cotangent there, and may have one elsewhere.
        whole = [
            torch.zeros(shape, dtype=dtype, device=device) if c is None else c
            for c, (shape, dtype, device) in zip(cotangents, ctx.like, strict=True)
        ]
        mean: Any = _Mean.apply
        return None, *mean(ctx.group, *whole)


class _Mean(torch.autograd.Function):
    """The mean over the processes, in one message; what comes back is the same on all of them already."""

    @staticmethod
    def forward(ctx: Any, group: Any, *flat: Tensor) -> tuple[Tensor, ...]:
        joined = torch.cat([t.detach().reshape(-1) for t in flat])
        distributed.all_reduce(joined, group=group)
        joined /= distributed.get_world_size(group)
        parts = torch.split(joined, [t.numel() for t in flat])
        return tuple(part.reshape(t.shape).to(t.dtype) for part, t in zip(parts, flat, strict=True))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        return None, *cotangents
