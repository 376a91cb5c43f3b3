"""Convergence against theory: rates of non-expansive iterations, factors of contractions, and what learning buys.

    python benchmarks/convergence.py --json benchmarks/results/convergence.json

1. The squared residual of an averaged iteration falls at least like 1/k: the slope of log ‖u−T(u)‖² over log k, fitted
   over three decades of k, on linearised ALM, proximal gradient and a certified 1-Lipschitz net.
2. A contraction gains its factor at every step: measured against the spectral radius of the Jacobian.
3. On sparse coding, min ½‖x − A z‖² + λ‖z‖₁, a scheme whose numbers were learned by Bilevel Meta Optimization against
   ISTA: iterations to a relative gap of 1e-6, on codes that were not used for learning.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor

from harness import figure, parser, table, write
from twofold.nets.fourier import DataProx
from twofold.nets.lipschitz import circular_conv_norm
from twofold.solve import (
    Aggregated,
    Bilevel,
    FixedPointSteps,
    Harmonic,
    KrasnoselskiiMann,
    LinearisedADMM,
    LinearisedALM,
    LinearMap,
    Operator,
    ProximalGradient,
    Round,
    State,
    Unrolled,
    contraction_factor,
    iterate,
    matrix_map,
    no_prox,
    positive,
    rounds,
    soft_threshold,
    unit_interval,
)
from twofold.solve.linear import Number

STEPS = 10_000
MOST = 100_000
ROUNDS = 80
DOUBLE = torch.float64


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def certified_net(width: int, channels: int) -> Callable[[Tensor], Tensor]:
    """u − Wᵀ ReLU(W u) / ‖W‖² with random zero-mean kernels and the exact norm: a 1-Lipschitz residual layer.

    It is a gradient step on a convex potential that hardly bends along smooth signals: non-expansive, no contraction.
    """
    weight = random(channels, 1, 1, 3, seed=5)
    weight = weight - weight.mean(3, keepdim=True)
    weight = weight / circular_conv_norm(weight, (1, width))
    back = weight.flip(-1).transpose(0, 1)

    def circular(u: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(torch.nn.functional.pad(u, (1, 1, 0, 0), mode="circular"), w)

    return lambda u: u - circular(circular(u, weight).relu(), back)


def rate_cases() -> dict[str, tuple[Operator, State]]:
    """Operators that are non-expansive and no contraction within 10,000 steps, and where to start.

    Their curvatures are spread evenly over many decades: what makes real problems slow, and what makes a power law.
    """
    curvature = torch.logspace(-6, 0, 300, dtype=DOUBLE)
    gradient = ProximalGradient(lambda u: curvature * (u - 1), smoothness=1.0, prox=lambda v, step: v.relu())
    side = 100
    left, right = (torch.linalg.qr(random(side, side, seed=s))[0] for s in (0, 1))
    singular = torch.logspace(-2.5, 0, side, dtype=DOUBLE)
    matrix = left @ singular.diag() @ right.T
    truth = right @ (singular.sqrt() * random(side, seed=2))
    alm = LinearisedALM(no_prox, matrix_map(matrix), (matrix @ truth)[None], fraction=0.9)
    nothing = torch.zeros(1, side, dtype=DOUBLE)
    return {
        "linearised ALM": (alm, (nothing, nothing)),
        "proximal gradient": (gradient, torch.zeros(1, 300, dtype=DOUBLE)),
        "certified net": (certified_net(2048, 8), random(1, 1, 1, 2048, seed=6)),
    }


def fit_line(residual: Tensor, first: int, last: int) -> tuple[float, float]:
    """Slope and R² of log residual² over log k, at 60 points spaced evenly in log k."""
    k = torch.logspace(math.log10(first), math.log10(last), 60).long().unique()
    x, y = k.double().log(), residual[k - 1].square().log()
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    return slope.item(), (1 - (y - slope * x).square().sum() / (y @ y)).item()


def rates() -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    table, curves = {}, {}
    for name, (operator, start) in rate_cases().items():
        history = iterate(operator, start, solver=KrasnoselskiiMann(0.5, STEPS, 0.0)).history[:, 0]
        slope, fit = fit_line(history, STEPS // 1000, STEPS)
        monotone = bool((history.diff() <= 1e-12 * history[:-1]).all())
        table[name] = {"slope": slope, "r_squared": fit, "residual_never_grew": monotone}
        curves[name] = history
        print(name, table[name], flush=True)
    return table, curves


def factors() -> dict[str, dict[str, float]]:
    """Contractions: the factor gained a step in a run, and the one predicted at the solution."""
    h = torch.linspace(0.1, 2.0, 40, dtype=DOUBLE)
    kernel = torch.tensor([[0.05, 0.1, 0.05], [0.1, 0.4, 0.1], [0.05, 0.1, 0.05]], dtype=DOUBLE)[None, None]
    picture = random(1, 1, 16, 16, seed=7)
    weight = random(12, 12, seed=8)
    weight = 0.95 * weight / torch.linalg.matrix_norm(weight, 2)
    cases: dict[str, tuple[Operator, Tensor]] = {
        "gradient step": (ProximalGradient(lambda u: h * u - 1, smoothness=2.0), torch.zeros(1, 40, dtype=DOUBLE)),
        "deconvolution prox": (DataProx(picture, kernel, 0.5), torch.zeros_like(picture)),
        "net": (lambda u: torch.tanh(u @ weight + 0.1), torch.zeros(1, 12, dtype=DOUBLE)),
    }
    table = {}
    for name, (operator, start) in cases.items():
        solution = iterate(operator, start, solver=KrasnoselskiiMann(1.0, 2000, 1e-11))
        history = solution.history[:, 0]
        window = max(len(history) // 3, 1)
        measured = (history[-1] / history[-1 - window]).item() ** (1 / window)
        generator = torch.Generator().manual_seed(0)
        predicted = contraction_factor(operator, solution.value, steps=400, generator=generator).item()
        table[name] = {"measured": measured, "predicted": predicted, "error": abs(measured / predicted - 1)}
        print(name, table[name], flush=True)
    return table


class Lasso:
    """min_z ½‖x − A z‖² + weight ‖z‖₁ for a batch of x, with Gaussian unit columns and Bernoulli-Gaussian codes."""

    def __init__(self, samples: int, seed: int) -> None:
        self.matrix = random(64, 128, seed=0)
        self.matrix = self.matrix / self.matrix.norm(dim=0)
        self.values, self.vectors = torch.linalg.eigh(self.matrix.T @ self.matrix)
        generator = torch.Generator().manual_seed(seed)
        support = (torch.rand(samples, 128, generator=generator) < 0.1).double()
        code = support * torch.randn(samples, 128, dtype=DOUBLE, generator=generator)
        noise = torch.randn(samples, 64, dtype=DOUBLE, generator=generator)
        self.observed = code @ self.matrix.T + 0.01 * noise
        self.weight = 0.02

    def objective(self, z: Tensor) -> Tensor:
        """`(B,)`."""
        return (z @ self.matrix.T - self.observed).square().sum(1) / 2 + self.weight * z.abs().sum(1)

    def gradient(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.T - self.observed) @ self.matrix

    def data_prox(self, v: Tensor, step: Number) -> Tensor:
        """argmin_z ½‖x − A z‖² + ‖z − v‖² / (2 step), by the eigenvectors of AᵀA: the cost of two products with A."""
        right = v + step * (self.observed @ self.matrix)
        return (right @ self.vectors / (1 + step * self.values)) @ self.vectors.T

    def scheme(self, w: Tensor) -> LinearisedADMM:
        """Two-block ADMM on z + e = 0: the data term of z, the l1 norm of e. w: raw penalty and raw fraction."""
        identity = LinearMap(lambda u: u, lambda u: u, 1.0)
        return LinearisedADMM(
            self.data_prox,
            lambda v, step: soft_threshold(v, self.weight * step),
            identity,
            self.start()[0],
            penalty=positive(w[0]),
            fraction=unit_interval(w[1], high=0.999),
        )

    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        zero = self.observed.new_zeros(len(self.observed), 128)
        return zero, zero, zero

    def iterations(self, step: Callable[[State], State], state: State, read: Callable[[State], Tensor]) -> float:
        """Mean number of steps until the relative gap is 1e-6 for good; the optimum comes from a long FISTA run."""
        best = self.optimum()
        last = torch.zeros(len(best))
        for k in range(1, MOST + 1):
            state = step(state)
            last[(self.objective(read(state)) - best) > 1e-6 * best] = k
            if k > 3 * last.max() + 50:
                break
        else:
            raise RuntimeError(f"no gap of 1e-6 within {MOST} steps")
        return (last + 1).mean().item()

    def optimum(self) -> Tensor:
        z = y = self.start()[0]
        t, step = 1.0, 1 / self.values[-1]
        for _ in range(20000):
            fresh = soft_threshold(y - step * self.gradient(y), step * self.weight)
            # Restarting where the momentum points uphill makes it linear near the end (O'Donoghue and Candès 2015).
            uphill = ((y - fresh) * (fresh - z)).sum() > 0
            t_fresh = 1.0 if uphill else (1 + (1 + 4 * t * t) ** 0.5) / 2
            y = fresh if uphill else fresh + (t - 1) / t_fresh * (fresh - z)
            z, t = fresh, t_fresh
        return self.objective(z)

    def ista(self, fraction: float) -> ProximalGradient:
        shrink = lambda v, step: soft_threshold(v, step * self.weight)  # noqa: E731
        return ProximalGradient(self.gradient, self.values[-1], fraction, shrink)


def learned_scheme(train: Lasso) -> tuple[Tensor, list[Round]]:
    """Learns the penalty and the step of the ADMM scheme by Bilevel Meta Optimization on the objective itself."""

    def upper(w: Tensor, state: State) -> Tensor:
        return train.objective(-state[1]).mean() + (state[0] + state[1]).square().sum(1).mean()

    dynamics = Aggregated(FixedPointSteps(train.scheme), 0.1, Harmonic(0.1), metric=lambda w: train.scheme(w).metric)
    loop = rounds(
        Bilevel(upper, None),
        torch.tensor([3.0, 0.0], dtype=DOUBLE),
        train.start(),
        strategy=Unrolled(15, dynamics),
        optimizer=lambda p: torch.optim.Adam(p, 0.15),
        warm_start=False,
    )
    history = list(islice(loop, ROUNDS))
    return history[-1].upper_params, history


def sparse_coding() -> dict[str, object]:
    w, history = learned_scheme(Lasso(64, seed=1))
    test = Lasso(32, seed=2)
    zero, read = test.start()[0], lambda z: z
    untrained = torch.tensor([3.0, 0.0], dtype=DOUBLE)
    steps = {
        "ISTA, step 1/L": test.iterations(test.ista(0.5), zero, read),
        "ISTA, step 1.98/L": test.iterations(test.ista(0.99), zero, read),
        "ADMM before learning": test.iterations(test.scheme(untrained), test.start(), lambda s: -s[1]),
        "ADMM learned": test.iterations(test.scheme(w), test.start(), lambda s: -s[1]),
    }
    learned = test.scheme(w)
    row = {
        "mean_iterations": steps,
        "fewer_than_ista": steps["ISTA, step 1/L"] / steps["ADMM learned"],
        "fewer_than_the_longest_ista_step": steps["ISTA, step 1.98/L"] / steps["ADMM learned"],
        "penalty": float(learned.penalty),
        "fraction": float(learned.fraction),
        "upper_loss": [r.upper_loss for r in history],
        "gradient_norm": [r.gradient_norm for r in history],
        "change": [r.change for r in history],
    }
    print(json.dumps({k: v for k, v in row.items() if not isinstance(v, list)}, indent=1), flush=True)
    return row


def draw(curves: dict[str, Tensor], coding: dict[str, object], path: Path) -> None:
    drawing, (left, right) = figure(2, (5.0, 4.0))
    for name, history in curves.items():
        left.loglog(range(1, STEPS + 1), history.square() / history[0] ** 2, label=name)
    left.loglog([10, STEPS], [1, 10 / STEPS], "k--", label="1/k")
    left.set(xlabel="step k", ylabel="‖u − T(u)‖² in T's metric, relative", title="Averaged iterations")
    left.legend(fontsize=8)
    right.semilogy(coding["gradient_norm"], label="‖dF/dw‖")  # type: ignore[arg-type]
    right.semilogy(coding["change"], label="‖w⁺ − w‖")  # type: ignore[arg-type]
    right.set(xlabel="outer round t", title="Learning a sparse-coding scheme")
    right.legend(fontsize=8)
    drawing.savefig(path, dpi=110)


def convergence_table(result: dict[str, Any]) -> str:
    """Rates and contraction factors, measured and predicted."""
    found = result
    body = [
        [
            f"{name}: squared residual against k",
            f"slope {facts['slope']:.2f}, R² {facts['r_squared']:.4f}",
            "slope ≤ −1",
        ]
        for name, facts in found["rates"].items()
    ]
    body += [
        [f"{name}: contraction factor", f"{facts['measured']:.4f}", f"{facts['predicted']:.4f}"]
        for name, facts in found["factors"].items()
    ]
    learned = found["sparse_coding"]["mean_iterations"]
    body += [[f"{name}: iterations to a gap of 1e-6", f"{count:,.0f}", ""] for name, count in learned.items()]
    return table(["", "measured", "theory"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "convergence": convergence_table(result),
    }


def main() -> None:
    path = parser(__doc__).parse_args().json
    torch.set_num_threads(1)
    table, curves = rates()
    contraction, coding = factors(), sparse_coding()
    result = {
        "summary": {
            "largest_slope_of_the_squared_residual": max(row["slope"] for row in table.values()),
            "least_r_squared": min(row["r_squared"] for row in table.values()),
            "largest_relative_error_of_a_contraction_factor": max(row["error"] for row in contraction.values()),
            "fewer_iterations_than_ista": coding["fewer_than_ista"],
        },
        "rates": table,
        "factors": contraction,
        "sparse_coding": coding,
    }
    print(json.dumps(result["summary"], indent=1))
    if path:
        write(path, result)
        draw(curves, coding, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
