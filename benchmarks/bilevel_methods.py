"""The methods of benchmarks/bilevel.py: ours, and peers where they are installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bilevel_problems import PARTS, STEPS, Case, Skipped
from twofold.solve import ConjugateGradient, GradientDescent, Momentum, Unrolled, hypergradient
from twofold.solve.adaptive import Adaptive, adaptive_descent
from twofold.solve.first_order import BOME, F2SA, F3SA, PBGD
from twofold.solve.hypergradients import Strategy
from twofold.solve.implicit import Settled
from twofold.solve.stochastic import SABA, SOBA, AmIGO, StocBiO
from twofold.solve.streams import Method, Polynomial, descend, whole
from twofold.solve.value_function import ValueFunction


class Spent(NamedTuple):
    """What a run has taken, in passes over the samples of a level, and where it is."""

    gradients: float
    products: float
    upper: Tensor


Run = Callable[[Case, float], Iterator[Spent]]


def with_strategy(make: Callable[[float], Strategy]) -> Run:
    """Gradient descent on w along the hypergradients of a strategy, all samples, warm starts."""

    def run(case: Case, step: float) -> Iterator[Spent]:
        w, u, strategy = case.upper, case.lower, make(case.smoothness)
        gradients = products = 0
        while True:
            found = hypergradient(case.sums.whole, w, u, strategy=strategy)
            w, u = w - step * found.gradient, found.lower_params
            gradients += found.cost.lower_evaluations + found.cost.upper_evaluations
            products += found.cost.products
            yield Spent(gradients, products, w)

    return run


def with_loop(make: Callable[[float, float], Method], *, stochastic: bool = True) -> Run:
    def run(case: Case, step: float) -> Iterator[Spent]:
        method = make(case.smoothness, step)
        stream = case.sums if stochastic else whole(case.sums.whole)
        share = 1 / PARTS if stochastic else 1.0
        for turn in descend(method, stream, case.upper, case.lower):
            calls = turn.calls
            yield Spent(
                share * (calls.upper_gradients + calls.lower_gradients), share * calls.products, turn.upper_params
            )

    return run


def maid(case: Case, step: float) -> Iterator[Spent]:
    if case.regularity is None:
        raise Skipped("the bounds need constants of regularity, which are not known for this problem")
    for made in adaptive_descent(
        case.sums.whole,
        case.upper,
        case.lower,
        dynamics=Momentum(1 / case.smoothness, 0.6),
        regularity=case.regularity,
        settings=Adaptive(accuracy=1.0, linear_accuracy=1.0, step_size=step),
    ):
        yield Spent(made.lower_gradients + made.upper_gradients, made.products, made.upper_params)


class _Holder(nn.Module):
    def __init__(self, u: Tensor) -> None:
        super().__init__()
        self.u = nn.Parameter(u.clone())

    def forward(self, loss: Callable[[Tensor, Tensor], Tensor], w: Tensor) -> Tensor:
        return loss(w, self.u)


def torchopt_unrolled(case: Case, step: float) -> Iterator[Spent]:
    import torchopt

    problem, w, u = case.sums.whole, case.upper, case.lower
    for k in range(1, 1_000_000):
        leaf, holder = w.clone().requires_grad_(), _Holder(u)
        optimizer = torchopt.MetaSGD(holder, lr=1 / case.smoothness)
        for _ in range(STEPS):
            optimizer.step(holder(problem.lower, leaf))
        (g,) = torch.autograd.grad(holder(problem.upper, leaf), leaf)
        w, u = w - step * g, holder.u.detach()
        yield Spent(k * (STEPS + 1), k * STEPS, w)


def higher_unrolled(case: Case, step: float) -> Iterator[Spent]:
    import higher

    problem, w, u = case.sums.whole, case.upper, case.lower
    for k in range(1, 1_000_000):
        leaf, holder = w.clone().requires_grad_(), _Holder(u)
        with higher.innerloop_ctx(holder, torch.optim.SGD(holder.parameters(), 1 / case.smoothness)) as (
            fast,
            optimizer,
        ):
            for _ in range(STEPS):
                optimizer.step(fast(problem.lower, leaf))
            (g,) = torch.autograd.grad(fast(problem.upper, leaf), leaf)
            w, u = w - step * g, next(fast.parameters()).detach()
        yield Spent(k * (STEPS + 1), k * STEPS, w)


def torchopt_implicit(case: Case, step: float) -> Iterator[Spent]:
    """Its `custom_root`, with `STEPS` conjugate-gradient iterations on the normal equations."""
    import torchopt

    problem, w, u = case.sums.whole, case.upper, case.lower
    taken = 0

    def stationarity(u: Tensor, w: Tensor) -> Tensor:
        return torch.func.grad(problem.lower, argnums=1)(w, u)

    solve = torchopt.linear_solve.solve_normal_cg(maxiter=STEPS, atol=0.0, rtol=1e-6)

    @torchopt.diff.implicit.custom_root(stationarity, argnums=1, solve=solve)
    def settle(u: Tensor, w: Tensor) -> Tensor:
        for _ in range(STEPS):
            with torch.enable_grad():
                at = u.detach().requires_grad_()
                (g,) = torch.autograd.grad(problem.lower(w.detach(), at), at)
            u = u.detach() - g / case.smoothness
        return u.requires_grad_()

    for k in range(1, 1_000_000):
        leaf = w.clone().requires_grad_()
        reached = settle(u, leaf)
        (g,) = torch.autograd.grad(problem.upper(leaf, reached), leaf)
        # The normal equations take two products an iteration; one more pulls the answer back to w.
        taken += 2 * STEPS + 1
        w, u = w - step * g, reached.detach()
        yield Spent(k * (STEPS + 1), taken, w)


def with_jaxopt(case: Case, step: float, *, implicit: bool) -> Iterator[Spent]:
    import bilevel_jaxopt

    for spent in bilevel_jaxopt.follow(case, step, implicit=implicit):
        yield Spent(*spent)


ANYWHERE = Settled(relative=float("inf"))


OURS: dict[str, Run] = {
    "Unrolled": with_strategy(lambda s: Unrolled(STEPS, GradientDescent(1 / s))),
    "Unrolled, graphs kept": with_strategy(lambda s: Unrolled(STEPS, GradientDescent(1 / s), graph_bytes=2**30)),
    "ConjugateGradient": with_strategy(
        lambda s: ConjugateGradient(STEPS, Momentum(1 / s, 0.6), 100, tolerance=0.05, settled=ANYWHERE)
    ),
    "ValueFunction": with_strategy(lambda s: ValueFunction(30.0, STEPS, Momentum(1 / s, 0.6), tolerance=math.inf)),
    "adaptive_descent": maid,
    "F2SA": with_loop(lambda s, a: F2SA(Polynomial(1 / s), Polynomial(5.0, 1 / 7), Polynomial(a, -1 / 3))),
    "F3SA": with_loop(lambda s, a: F3SA(Polynomial(1 / s), Polynomial(5.0, 1 / 5), Polynomial(a, -1 / 3))),
    "BOME": with_loop(lambda s, a: BOME(Polynomial(0.3 / s), 1 / s, STEPS, upper_scale=a * s / 0.3), stochastic=False),
    "PBGD": with_loop(
        lambda s, a: PBGD(Polynomial(0.5 / (30 * s)), 30.0, 1 / s, 2, upper_scale=60 * a * s), stochastic=False
    ),
    "SOBA": with_loop(lambda s, a: SOBA(Polynomial(1 / s, -0.2), Polynomial(a, -0.3))),
    "SABA": with_loop(lambda s, a: SABA(Polynomial(0.7 / s), Polynomial(a))),
    "AmIGO": with_loop(
        lambda s, a: AmIGO(Polynomial(1 / s), Polynomial(1 / s), Polynomial(a, -0.3), inner=5, linear=5)
    ),
    "StocBiO": with_loop(lambda s, a: StocBiO(Polynomial(1 / s), 1 / s, Polynomial(a, -0.3), inner=5, terms=10)),
}


PEERS: dict[str, tuple[str, Run]] = {
    "TorchOpt, unrolled": ("torchopt", torchopt_unrolled),
    "TorchOpt, implicit": ("torchopt", torchopt_implicit),
    "higher, unrolled": ("higher", higher_unrolled),
    "jaxopt, unrolled": ("jaxopt", partial(with_jaxopt, implicit=False)),
    "jaxopt, implicit": ("jaxopt", partial(with_jaxopt, implicit=True)),
}
