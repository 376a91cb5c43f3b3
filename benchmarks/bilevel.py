"""Bilevel methods side by side: suboptimality over gradients, products with second derivatives, and CPU seconds.

    python benchmarks/bilevel.py --json benchmarks/results/bilevel.json --pictures docs/pictures

The three problems of the field's own benchmark (benchopt's `benchmark_bilevel`; Dagréou et al. 2022, section 4), small:
sums of quadratics; one weight decay a feature of a logistic regression; data hyper-cleaning, a weight for each training
sample of a linear classifier half of whose labels are wrong. The last two are on scikit-learn's digits and are left
out, with the reason, where scikit-learn is not installed. Peers that are not installed are left out in the same way.

Every method starts from the same point and gets the same budget of calls, a call being one gradient or one product on
all the samples of a level (a mini-batch counts as its share). Its upper step is the best of a grid, on a problem that
is not measured; then come the seeds. The value that counts is the true one, F(w, u(w)) with u(w) to machine precision,
found apart and not counted; suboptimality is its distance from the best value, as a share of that of the start. Time is
CPU time of the process. float64, one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.solve import Bilevel, ConjugateGradient, GradientDescent, Momentum, SolveError, Unrolled, hypergradient
from twofold.solve.adaptive import Adaptive, Regularity, adaptive_descent
from twofold.solve.first_order import BOME, F2SA, F3SA, PBGD
from twofold.solve.hypergradients import Strategy
from twofold.solve.implicit import Settled
from twofold.solve.stochastic import SABA, SOBA, AmIGO, StocBiO
from twofold.solve.streams import FiniteSum, Method, Polynomial, descend, minibatches, whole
from twofold.solve.value_function import ValueFunction

PARTS = 8
STEPS = 10
TARGETS = (1e-1, 1e-2, 1e-3)
TUNING_SEED = 1000
DOUBLE = torch.float64


class Case(NamedTuple):
    """sums: the problem in mini-batches. upper, lower: starts. smoothness: L of the lower loss at the start, with room
    for w to move. regularity: for `adaptive_descent`. settle: (w, u to start from) → u(w) to machine precision. steps:
    the grid of upper steps."""

    sums: FiniteSum
    upper: Tensor
    lower: Tensor
    smoothness: float
    regularity: Callable[[Tensor], Regularity] | None
    settle: Callable[[Tensor, Tensor], Tensor]
    steps: tuple[float, ...]

    def value(self, w: Tensor) -> float:
        return float(self.sums.whole.upper(w, self.settle(w, self.lower)))


class Spent(NamedTuple):
    """What a run has taken, in passes over the samples of a level, and where it is."""

    gradients: float
    products: float
    upper: Tensor


Run = Callable[[Case, float], Iterator[Spent]]


def quadratics(seed: int) -> Case:
    """16 lower and 8 upper variables; curvatures of the lower level from 0.3 to 1, each batch with its own."""
    draw = torch.Generator().manual_seed(seed)
    n, m = 16, 8
    turn = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=DOUBLE)).Q
    a = turn @ torch.diag(torch.logspace(-0.5, 0, n, dtype=DOUBLE)) @ turn.T
    b = torch.randn(n, m, generator=draw, dtype=DOUBLE) / n**0.5
    c = torch.randn(n, generator=draw, dtype=DOUBLE)
    spread = torch.randn(PARTS, n, n, generator=draw, dtype=DOUBLE) * 0.02
    spread = spread + spread.mT
    shift = torch.randn(2, PARTS, n, generator=draw, dtype=DOUBLE) * 0.5
    spread, shift = spread - spread.mean(0), shift - shift.mean(1, keepdim=True)
    lowers = [lambda w, u, k=k: u @ (a + spread[k]) @ u / 2 - u @ (b @ w) + shift[0, k] @ u for k in range(PARTS)]
    uppers = [lambda w, u, k=k: ((u - c) ** 2).sum() / 2 + 0.25 * (w**2).sum() + shift[1, k] @ u for k in range(PARTS)]
    response = torch.linalg.solve(a, b)
    known = Regularity(strong_convexity=0.316, mixed_norm=float(torch.linalg.matrix_norm(b, 2)), upper_lipschitz=1.0)
    whole_problem = Bilevel(
        lambda w, u: ((u - c) ** 2).sum() / 2 + 0.25 * (w**2).sum(), lambda w, u: u @ a @ u / 2 - u @ (b @ w)
    )
    sums = _Sum(uppers, lowers, seed, whole_problem)
    start = torch.zeros(m, dtype=DOUBLE), torch.zeros(n, dtype=DOUBLE)
    return Case(sums, *start, 1.2, lambda w: known, lambda w, u: response @ w, (0.3, 0.1, 0.03, 0.01))


def regularisation(seed: int) -> Case:
    """log weight decay of each of 64 pixels; digits below 5 against the others, 512 samples to fit, 256 held out."""
    draw = torch.Generator().manual_seed(seed)
    x, digit = _digits(draw)
    y = torch.where(digit < 5, -1.0, 1.0).to(DOUBLE)
    fit, held = slice(0, 512), slice(512, 768)

    def lower(w: Tensor, u: Tensor, i: Tensor) -> Tensor:
        return F.softplus(-y[fit][i] * (x[fit][i] @ u)).mean() + (w.exp() * u**2).sum() / 2

    def upper(w: Tensor, u: Tensor, i: Tensor) -> Tensor:
        return F.softplus(-y[held][i] * (x[held][i] @ u)).mean()

    problem = Bilevel(lambda w, u: upper(w, u, slice(None)), lambda w, u: lower(w, u, slice(None)))

    def settle(w: Tensor, u: Tensor) -> Tensor:
        for _ in range(60):
            p = torch.sigmoid(-y[fit] * (x[fit] @ u))
            g = -(x[fit] * (y[fit] * p)[:, None]).mean(0) + w.exp() * u
            if g.norm() < 1e-11:
                break
            h = (x[fit] * (p * (1 - p))[:, None]).T @ x[fit] / 512 + w.exp().diag()
            u = u - torch.linalg.solve(h, g)
        return u

    curvature = float(torch.linalg.eigvalsh(x[fit].T @ x[fit])[-1]) / 512 / 4
    longest = float(x[fit].norm(dim=1).max())
    held_curvature = float(torch.linalg.eigvalsh(x[held].T @ x[held])[-1]) / 256 / 4

    def known(w: Tensor) -> Regularity:
        decay = w.exp()
        return Regularity(
            strong_convexity=float(decay.min()),
            mixed_norm=float(decay.max()) * 5.0,  # |u_j| ≤ 5 throughout
            upper_lipschitz=held_curvature,
            hessian_lipschitz=4 * curvature * longest / (6 * 3**0.5),
            mixed_lipschitz=float(decay.max()),
        )

    sums = _Sum(minibatches(upper, 256, 256 // PARTS), minibatches(lower, 512, 512 // PARTS), seed, problem)
    start = torch.full((64,), -3.0, dtype=DOUBLE), torch.zeros(64, dtype=DOUBLE)
    return Case(sums, *start, 1.5 * curvature + 0.3, known, settle, (300.0, 100.0, 30.0, 10.0))


def cleaning(seed: int) -> Case:
    """A weight σ(w_i) for each of 256 samples, half of whose labels are wrong; ten digits, 16 features and a
    constant."""
    draw = torch.Generator().manual_seed(seed)
    x, digit = _digits(draw)
    x = x @ torch.linalg.svd(x[:768], full_matrices=False).Vh[:16].T
    x = torch.cat([x / x[:768].std(), torch.ones(len(x), 1, dtype=DOUBLE)], 1)
    fit, held = slice(0, 256), slice(256, 512)
    wrong = torch.rand(256, generator=draw) < 0.5
    label = torch.where(wrong, torch.randint(0, 10, (256,), generator=draw), digit[fit])
    size, decay = (17, 10), 0.02

    def lower(w: Tensor, u: Tensor, i: Tensor) -> Tensor:
        loss = F.cross_entropy(x[fit][i] @ u.reshape(size), label[i], reduction="none")
        return (loss * w[i].sigmoid()).mean() + decay * (u**2).sum() / 2

    def upper(w: Tensor, u: Tensor, i: Tensor) -> Tensor:
        return F.cross_entropy(x[held][i] @ u.reshape(size), digit[held][i])

    problem = Bilevel(lambda w, u: upper(w, u, slice(None)), lambda w, u: lower(w, u, slice(None)))
    target = F.one_hot(label, 10).to(DOUBLE)

    def settle(w: Tensor, u: Tensor) -> Tensor:
        share = w.sigmoid() / 256
        for _ in range(60):
            p = (x[fit] @ u.reshape(size)).softmax(1)
            g = (x[fit].T @ ((p - target) * share[:, None])).reshape(-1) + decay * u
            if g.norm() < 1e-11:
                break
            inner = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) * share[:, None, None]
            h = torch.einsum("ia,ijk,ib->ajbk", x[fit], inner, x[fit]).reshape(170, 170)
            u = u - torch.linalg.solve(h + decay * torch.eye(170, dtype=DOUBLE), g)
        return u

    curvature = float(torch.linalg.eigvalsh(x[fit].T @ x[fit])[-1]) / 256 / 2
    sums = _Sum(minibatches(upper, 256, 256 // PARTS), minibatches(lower, 256, 256 // PARTS), seed, problem)
    start = torch.zeros(256, dtype=DOUBLE), torch.zeros(170, dtype=DOUBLE)
    return Case(sums, *start, curvature + decay, None, settle, (1000.0, 300.0, 100.0, 30.0))


CASES = {"quadratics": quadratics, "regularisation": regularisation, "cleaning": cleaning}


class _Sum(FiniteSum):
    """A `FiniteSum` whose whole is written as one loss: as fast as the peers' full batches."""

    def __init__(self, uppers: Any, lowers: Any, seed: int, problem: Bilevel) -> None:
        super().__init__(uppers, lowers, seed)
        object.__setattr__(self, "problem", problem)

    @property
    def whole(self) -> Bilevel:
        return self.problem  # type: ignore[attr-defined,no-any-return]


def _digits(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1] about their means, and the digits, in an order of their own for each seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=draw)
    x = torch.from_numpy(found.data).to(DOUBLE)[order] / 16
    return x - x.mean(0), torch.from_numpy(found.target).long()[order]


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


class Skipped(Exception):
    """Why a method is left out."""


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


ANYWHERE = Settled(relative=float("inf"))
OURS: dict[str, Run] = {
    "Unrolled": with_strategy(lambda s: Unrolled(STEPS, GradientDescent(1 / s))),
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
}


class Point(NamedTuple):
    calls: float
    gradients: float
    products: float
    seconds: float
    suboptimality: float


def follow(run: Run, case: Case, step: float, budget: float) -> list[tuple[Spent, float]]:
    """Where a run was at some fifteen calls in geometric order up to the budget, with its CPU seconds."""
    marks = [budget ** (k / 14) for k in range(15)]
    found: list[tuple[Spent, float]] = []
    begun = time.process_time()
    for spent in run(case, step):
        calls = spent.gradients + spent.products
        if calls > budget * 1.0001:
            break
        if marks and calls >= marks[0]:
            found.append((spent, time.process_time() - begun))
            marks = [mark for mark in marks if mark > calls]
        if not spent.upper.isfinite().all() or spent.upper.abs().max() > 1e6:
            raise SolveError("the upper parameters diverged")
    return found


def tuned(run: Run, case: Case, budget: float) -> float:
    """The upper step of the grid with the lowest value at the end."""
    ends: list[tuple[float, float]] = []
    for step in case.steps:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = follow(run, case, step, budget)
        except SolveError:
            continue
        if found:
            end = case.value(found[-1][0].upper)
            ends.append((end if math.isfinite(end) else math.inf, step))
    if not ends:
        raise Skipped("no step of the grid gave finite values within the budget")
    return min(ends)[1]


def reference(case: Case, start: Tensor) -> float:
    """The lowest value that L-BFGS finds with exact hypergradients, from the best end of all methods."""
    w, u, lowest = start.clone().requires_grad_(), case.lower, math.inf
    optimizer = torch.optim.LBFGS(
        [w], max_iter=40, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )
    way = ConjugateGradient(0, GradientDescent(1.0), 400, tolerance=1e-7)

    def closure() -> Tensor:
        nonlocal u, lowest
        u = case.settle(w.detach(), u)
        found = hypergradient(case.sums.whole, w.detach(), u, strategy=way)
        w.grad, lowest = found.gradient, min(lowest, found.value.item())
        return found.value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return lowest


def compare(name: str, seeds: int, budget: float, names: list[str]) -> dict[str, Any]:
    """One problem, every method."""
    make = CASES[name]
    begun = time.process_time()
    trial, cases = make(TUNING_SEED), [make(seed) for seed in range(seeds)]
    methods = {**OURS, **{peer: run for peer, (_, run) in PEERS.items()}}
    skipped: dict[str, str] = {}
    followed: dict[str, list[list[tuple[Spent, float]]]] = {}
    steps: dict[str, float] = {}
    for method, run in methods.items():
        if names and method not in names:
            continue
        if method in PEERS and importlib.util.find_spec(PEERS[method][0]) is None:
            skipped[method] = f"{PEERS[method][0]} is not installed"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                steps[method] = tuned(run, trial, budget)
                followed[method] = [follow(run, case, steps[method], budget) for case in cases]
        except (Skipped, SolveError) as reason:
            skipped[method] = str(reason)
            continue
        print(f"{name:16s} {method:20s} step {steps[method]:g}  {followed[method][0][-1][1]:.2f} s", flush=True)
    values: dict[str, list[list[float]]] = {method: [] for method in followed}
    best = []
    for k, case in enumerate(cases):
        ends: list[tuple[float, Tensor]] = []
        for method, runs in followed.items():
            u, seen = case.lower, []
            for spent, _ in runs[k]:
                u = case.settle(spent.upper, u)
                seen.append(float(case.sums.whole.upper(spent.upper, u)))
            values[method].append(seen)
            ends.append((seen[-1], runs[k][-1][0].upper))
        best.append(min(reference(case, min(ends, key=lambda end: end[0])[1]), *(min(v[k]) for v in values.values())))
    first = [case.value(case.upper) for case in cases]
    result: dict[str, Any] = {"skipped": skipped, "methods": {}}
    for method, runs in followed.items():
        curves = []
        for k, run_ in enumerate(runs):
            shares = [max(v - best[k], 0.0) / (first[k] - best[k]) for v in values[method][k]]
            curves.append(
                [
                    Point(s.gradients + s.products, s.gradients, s.products, t, share)
                    for (s, t), share in zip(run_, shares, strict=True)
                ]
            )
        result["methods"][method] = {"upper_step": steps[method], **summary(curves)}
    result["cpu_seconds"] = round(time.process_time() - begun, 1)
    return result


def summary(curves: list[list[Point]]) -> dict[str, Any]:
    """Medians over the seeds: what it took to reach each target (null where fewer than half got there), the end, and
    the curve."""
    reached = {}
    for target in TARGETS:
        firsts = [next((p for p in curve if p.suboptimality <= target), None) for curve in curves]
        got = [p for p in firsts if p is not None]
        if 2 * len(got) <= len(curves):
            reached[f"{target:g}"] = None
            continue
        middle = {}
        for at, field in enumerate(Point._fields[:4]):
            filled = sorted([p[at] for p in got] + [math.inf] * (len(curves) - len(got)))
            middle[field] = statistics.median_high(filled) if math.inf in filled else statistics.median(filled)
        reached[f"{target:g}"] = middle
    length = min(len(curve) for curve in curves)
    medians = [[statistics.median(curve[k][at] for curve in curves) for at in range(5)] for k in range(length)]
    ends = sorted(curve[-1].suboptimality for curve in curves)
    return {
        "reached": reached,
        "final": statistics.median(ends),
        "final_quartiles": [ends[len(ends) // 4], ends[-1 - len(ends) // 4]],
        "seconds_per_call": statistics.median(curve[-1].seconds / curve[-1].calls for curve in curves),
        "curve": [dict(zip(Point._fields, [float(f"{v:.4g}") for v in point], strict=True)) for point in medians],
    }


def draw(name: str, result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True, constrained_layout=True)
    colours = pyplot.get_cmap("tab20").colors
    for k, (method, found) in enumerate(result["methods"].items()):
        style = "--" if method in PEERS else "-"
        for axis, field in zip(axes, ("calls", "seconds"), strict=True):
            curve = found["curve"]
            axis.plot(
                [p[field] for p in curve],
                [max(p["suboptimality"], 1e-8) for p in curve],
                style,
                color=colours[k % 20],
                label=method,
                linewidth=1.2,
            )
    for axis, label in zip(axes, ("gradients and products, passes over the samples", "CPU seconds"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="suboptimality", title=name)
    axes[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--pictures", type=Path, help="the folder of bilevel-PROBLEM.png")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=float, default=150.0, help="gradients and products, passes over the samples")
    parser.add_argument("--problem", choices=list(CASES), action="append")
    parser.add_argument("--method", action="append", default=[])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"problems": {}, "skipped": {}}
    if chosen.json and chosen.json.exists() and chosen.problem:
        found = json.loads(chosen.json.read_text())
    for name in chosen.problem or CASES:
        if name != "quadratics" and importlib.util.find_spec("sklearn") is None:
            found["skipped"][name] = "scikit-learn is not installed"
            continue
        found["skipped"].pop(name, None)
        found["problems"][name] = compare(name, chosen.seeds, chosen.budget, chosen.method)
        if chosen.pictures:
            draw(name, found["problems"][name], chosen.pictures / f"bilevel-{name}.png")
    installed = [peer for peer in ("torchopt", "higher", "scikit-learn") if _version(peer)]
    found["settings"] = {
        "seeds": chosen.seeds,
        "budget": chosen.budget,
        "parts": PARTS,
        "torch": torch.__version__,
        "peers": {peer: _version(peer) for peer in installed},
    }
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except Exception:
        return None


if __name__ == "__main__":
    main()
