"""The three problems of benchmarks/bilevel.py, small, with the functions that measure them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.solve import Bilevel
from twofold.solve.adaptive import Regularity
from twofold.solve.streams import FiniteSum, minibatches

PARTS = 8


STEPS = 10


DOUBLE = torch.float64
DECAY = 0.02
"""Weight decay of the classifier in data hyper-cleaning."""


class Case(NamedTuple):
    """name: of the problem. data: what its losses are made of. sums: the problem in mini-batches. upper, lower: starts.
    smoothness: L of the lower loss at the start, with room for w to move. regularity: for `adaptive_descent`. settle:
    (w, u to start from) → u(w) to machine precision. steps: the grid of upper steps."""

    name: str
    data: tuple[Tensor, ...]
    sums: FiniteSum
    upper: Tensor
    lower: Tensor
    smoothness: float
    regularity: Callable[[Tensor], Regularity] | None
    settle: Callable[[Tensor, Tensor], Tensor]
    steps: tuple[float, ...]

    def value(self, w: Tensor) -> float:
        return float(self.sums.whole.upper(w, self.settle(w, self.lower)))


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
    return Case(
        "quadratics", (a, b, c), sums, *start, 1.2, lambda w: known, lambda w, u: response @ w, (0.3, 0.1, 0.03, 0.01)
    )


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
    data = x[fit], y[fit], x[held], y[held]
    smoothness, steps = 1.5 * curvature + 0.3, (300.0, 100.0, 30.0, 10.0)
    return Case("regularisation", data, sums, *start, smoothness, known, settle, steps)


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
    size = (17, 10)

    def lower(w: Tensor, u: Tensor, i: Tensor) -> Tensor:
        loss = F.cross_entropy(x[fit][i] @ u.reshape(size), label[i], reduction="none")
        return (loss * w[i].sigmoid()).mean() + DECAY * (u**2).sum() / 2

    def upper(w: Tensor, u: Tensor, i: Tensor) -> Tensor:
        return F.cross_entropy(x[held][i] @ u.reshape(size), digit[held][i])

    problem = Bilevel(lambda w, u: upper(w, u, slice(None)), lambda w, u: lower(w, u, slice(None)))
    target = F.one_hot(label, 10).to(DOUBLE)

    def settle(w: Tensor, u: Tensor) -> Tensor:
        share = w.sigmoid() / 256
        for _ in range(60):
            p = (x[fit] @ u.reshape(size)).softmax(1)
            g = (x[fit].T @ ((p - target) * share[:, None])).reshape(-1) + DECAY * u
            if g.norm() < 1e-11:
                break
            inner = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) * share[:, None, None]
            h = torch.einsum("ia,ijk,ib->ajbk", x[fit], inner, x[fit]).reshape(170, 170)
            u = u - torch.linalg.solve(h + DECAY * torch.eye(170, dtype=DOUBLE), g)
        return u

    curvature = float(torch.linalg.eigvalsh(x[fit].T @ x[fit])[-1]) / 256 / 2
    sums = _Sum(minibatches(upper, 256, 256 // PARTS), minibatches(lower, 256, 256 // PARTS), seed, problem)
    start = torch.zeros(256, dtype=DOUBLE), torch.zeros(170, dtype=DOUBLE)
    data = x[fit], label, x[held], digit[held]
    return Case("cleaning", data, sums, *start, curvature + DECAY, None, settle, (1000.0, 300.0, 100.0, 30.0))


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


class Skipped(Exception):
    """Why a method is left out."""
