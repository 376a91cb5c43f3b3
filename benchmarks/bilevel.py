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
import contextlib
import importlib.util
import json
import math
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bilevel_methods import OURS, PEERS, Run, Spent
from bilevel_problems import CASES, PARTS, Case, Skipped
from twofold.solve import ConjugateGradient, GradientDescent, SolveError, hypergradient

TARGETS = (1e-1, 1e-2, 1e-3)


TUNING_SEED = 1000


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
    """The lowest value that L-BFGS finds with implicit hypergradients, from the best end of all methods.

    It ends early where w has made the lower level so flat that its equation cannot be solved any more.
    """
    w, u, lowest = start.clone().requires_grad_(), case.lower, math.inf
    optimizer = torch.optim.LBFGS(
        [w], max_iter=40, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )
    way = ConjugateGradient(0, GradientDescent(1.0), 1000, tolerance=1e-4)

    def closure() -> Tensor:
        nonlocal u, lowest
        u = case.settle(w.detach(), u)
        found = hypergradient(case.sums.whole, w.detach(), u, strategy=way)
        w.grad, lowest = found.gradient, min(lowest, found.value.item())
        return found.value

    with contextlib.suppress(SolveError):
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
    installed = [peer for peer in ("torchopt", "higher", "jaxopt", "jax", "scikit-learn") if _version(peer)]
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
