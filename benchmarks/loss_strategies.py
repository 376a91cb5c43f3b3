"""Stage 1 of a loss search by four strategies: do they find the same loss, and what does each cost?

    python benchmarks/loss_strategies.py --data DATA --json benchmarks/results/loss_strategies.json

A problem small enough for the exact answer. Lower level: a 7x7 filter and a constant, trained to remove noise of 10 %
from grey crops of Kodak's photographs by Σ λ ℓ over four convex losses (λ = 4 softmax(w), so that their mean stays 1)
and a little ridge: strongly convex. Upper level: 10 (1 − SSIM) on other photographs. The strategies are those of
`twofold.solve`: one unrolled step, with ω moving one step beside it (what paper B's program and the shipped searches
do); twenty unrolled steps; the implicit gradient at the minimum by conjugate gradients; and the value function, from
first derivatives alone. All descend w by Adam from equal weights, with ω at its minimum for these. Judged by the upper
loss at the exact lower minimum of the λ found, and by the cosine between their gradient at the start and the exact one.
Two minutes on one core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import interval_of, parser, read, rounded, span, table, write
from twofold.data.crops import CropCache, as_floats, plan
from twofold.data.folders import Folder
from twofold.losses import Loss, charbonnier, l2, laplacian, ssim, tv
from twofold.solve import (
    Bilevel,
    ConjugateGradient,
    Momentum,
    OneStepUnrolled,
    Strategy,
    Unrolled,
    ValueFunction,
    hypergradient,
    lower_solution,
)

TERMS: dict[str, Loss] = {"l2": l2, "soft l1": partial(charbonnier, epsilon=0.03), "tv": tv, "laplacian": laplacian}
"""The last two are of the restored picture alone. `soft l1` is √(d² + 0.03²)."""
SIDE, CROPS, NOISE, RIDGE = 24, 12, 0.1, 1e-4
TAPS = 7
FAST = Momentum(0.03, 0.9)
EXACT_STEPS = 300


@dataclass(frozen=True)
class Way:
    """A strategy, so many steps of it with Adam's rate, and how ω moves on between them: lower steps, 0 for what the
    strategy hands back.
    """

    strategy: Strategy
    steps: int
    rate: float
    lower_steps: int = 0


WAYS = {
    "one step": Way(OneStepUnrolled(0.03), 150, 0.05, 1),
    "one step, ω settled": Way(OneStepUnrolled(0.03), 30, 0.2, 40),
    "20 unrolled steps": Way(Unrolled(20, FAST), 30, 0.2),
    "implicit (CG)": Way(ConjugateGradient(40, FAST, iterations=60, tolerance=1e-2), 30, 0.2),
    "value function": Way(ValueFunction(300.0, 60, FAST, tolerance=0.5), 30, 0.2),
}


def grey_crops(data: Path, half: int, seed: int) -> Tensor:
    """`(CROPS, 1, SIDE, SIDE)` of every other photograph of Kodak's."""
    files = Folder("clean/Kodak24").files(data)[half::2]
    cache, generator = CropCache.of(files, channels=1), torch.Generator().manual_seed(seed)
    return as_floats([cache.crop(SIDE, plan(generator), 3.0) for _ in range(CROPS)]).double()


def problem_of(data: Path, seed: int) -> Bilevel:
    """Upper parameters: w `(4,)`. Lower: the filter `(1, 1, 7, 7)` and the constant."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    halves = []
    for half in (0, 1):
        clean = grey_crops(data, half, seed)
        halves.append((clean + NOISE * torch.randn(clean.shape, generator=generator, dtype=clean.dtype), clean))

    def restored(omega: dict[str, Tensor], observed: Tensor) -> Tensor:
        return F.conv2d(observed - 0.5, omega["filter"]) + omega["constant"]

    def middle(clean: Tensor) -> Tensor:
        edge = TAPS // 2
        return clean[..., edge:-edge, edge:-edge]

    def lower(w: Tensor, omega: dict[str, Tensor]) -> Tensor:
        observed, clean = halves[0]
        image, weights = restored(omega, observed), len(TERMS) * w.softmax(0)
        terms = torch.stack([loss(image, middle(clean)) for loss in TERMS.values()])
        return weights @ terms + RIDGE * sum(part.square().sum() for part in omega.values())

    def upper(w: Tensor, omega: dict[str, Tensor]) -> Tensor:
        observed, clean = halves[1]
        return ssim(restored(omega, observed), middle(clean))

    return Bilevel(upper, lower)


def start() -> tuple[Tensor, dict[str, Tensor]]:
    filter_ = torch.zeros(1, 1, TAPS, TAPS, dtype=torch.float64)
    filter_[..., TAPS // 2, TAPS // 2] = 1.0
    return torch.zeros(len(TERMS), dtype=torch.float64), {"filter": filter_, "constant": torch.tensor(0.5).double()}


def settled(problem: Bilevel, w: Tensor) -> dict[str, Tensor]:
    return lower_solution(problem, w, start()[1], dynamics=FAST, steps=EXACT_STEPS)  # type: ignore[return-value]


def gradient_at(problem: Bilevel, w: Tensor, omega: dict[str, Tensor], strategy: Strategy) -> Tensor:
    found: Tensor = hypergradient(problem, w, omega, strategy=strategy).gradient  # type: ignore[assignment]
    return found


def descended(problem: Bilevel, way: Way, omega: dict[str, Tensor]) -> dict[str, Any]:
    """What a strategy finds from ω on, and its cost."""
    w = start()[0].requires_grad_()
    adam, lower, products = torch.optim.Adam([w], way.rate), 0, 0
    began = time.process_time()
    for _ in range(way.steps):
        if way.lower_steps:
            omega = lower_solution(problem, w.detach(), omega, dynamics=FAST, steps=way.lower_steps)  # type: ignore[assignment]
            lower += way.lower_steps
        found = hypergradient(problem, w.detach(), omega, strategy=way.strategy)
        omega = omega if way.lower_steps else found.lower_params  # type: ignore[assignment]
        lower, products = lower + found.cost.lower_evaluations, products + found.cost.products
        w.grad = found.gradient  # type: ignore[assignment]
        adam.step()
    seconds = time.process_time() - began
    w = w.detach()
    weights = (len(TERMS) * w.softmax(0)).tolist()
    return {
        "weights": dict(zip(TERMS, weights, strict=True)),
        "upper": float(problem.upper(w, settled(problem, w))),
        "lower_gradients": lower,
        "products": products,
        "cpu_seconds": seconds,
    }


def one_seed(data: Path, seed: int) -> dict[str, Any]:
    problem = problem_of(data, seed)
    w, _ = start()
    omega = settled(problem, w)
    exact = gradient_at(problem, w, omega, ConjugateGradient(0, FAST, iterations=300, tolerance=1e-6))
    result: dict[str, Any] = {"all ones": {"upper": float(problem.upper(w, omega))}}
    for name, way in WAYS.items():
        near = gradient_at(problem, w, omega, way.strategy)
        result[name] = descended(problem, way, omega) | {"cosine": float(F.cosine_similarity(near, exact, dim=0))}
        print(seed, name, json.dumps(rounded(result[name])), flush=True)
    return result


def strategies_table(result: dict[str, Any]) -> str:
    """What each strategy finds, and its cost; means over the seeds."""
    seeds, body = result["seeds"], []

    def of(name: str, read: Callable[[dict[str, Any]], float], digits: int = 2) -> str:
        values = [read(seed[name]) for seed in seeds]
        return f"{sum(values) / len(values):.{digits}f}"

    for name in WAYS:
        gains = [seed["all ones"]["upper"] - seed[name]["upper"] for seed in seeds]
        line = [name, *(of(name, lambda f, term=term: f["weights"][term]) for term in TERMS)]
        gain = f"{sum(gains) / len(gains):+.4f} ({span(interval_of(gains, 4), sign='+', digits=4)})"
        cost = [of(name, lambda f: f["lower_gradients"], 0), of(name, lambda f: f["products"], 0)]
        body.append([*line, gain, of(name, lambda f: f["cosine"]), *cost, of(name, lambda f: f["cpu_seconds"], 1)])
    head = [
        "strategy",
        *(f"λ of {term}" for term in TERMS),
        "10 (1 − SSIM), below all ones by (95 %)",
        "cosine with exact",
    ]
    return table([*head, "lower gradients", "second-order products", "CPU s"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {"loss_strategies": strategies_table(result)}


def main() -> None:
    options = parser(__doc__, data="clean/Kodak24")
    options.add_argument("--seeds", type=int, default=5)
    asked = options.parse_args()
    torch.set_num_threads(1)
    seeds: list[dict[str, Any]] = read(asked.json).get("seeds", [])  # goes on where it was interrupted
    for seed in range(len(seeds), asked.seeds):
        seeds.append(rounded(one_seed(asked.data, seed)))
        write(asked.json, {"seeds": seeds})


if __name__ == "__main__":
    main()
