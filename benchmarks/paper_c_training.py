"""Photographs and training that the applications of `paper_c.py` share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from skimage import data as photographs
from torch import Tensor

from twofold import images, losses
from twofold.contracts import Sample
from twofold.restorers.fixed_point import FixedPointRestorer
from twofold.train.learner import Learner
from twofold.train.meta import MetaTraining

DEPTH, RAIN_DEPTH = 8, 24
"""K in training; rain settles more slowly, so that 8 is shallow for it."""
MU = 0.1
"""Share of the upper level's gradient in an aggregated step."""
STEPS = 100
"""Training steps."""


@dataclass(frozen=True)
class Photos:
    """Bytes (C, H, W) to train on and to test on."""

    train: list[Tensor]
    test: list[Tensor]
    data: Path | None


def photos(data: Path | None) -> Photos:
    if data is None:
        names = ("chelsea", "coffee", "rocket", "astronaut")
        found = [torch.from_numpy(getattr(photographs, name)().copy()).permute(2, 0, 1) for name in names]
        return Photos(found[:3], found[3:], None)

    def read(folder: Path, count: int) -> list[Tensor]:
        return [(images.read(path).pixels[0] * 255).round().byte() for path in images.find([folder])[:count]]

    return Photos(read(data / "clean" / "BSDS500", 80), read(data / "clean" / "Kodak24", 24), data)


def grey(pictures: list[Tensor]) -> list[Tensor]:
    return [(p.float().mean(0, keepdim=True)).round().byte() for p in pictures]


def trained(
    restorer: FixedPointRestorer, draws: Callable[[int], Sample], *, steps: int, depth: int, mu: float, rate: float
) -> list[dict[str, float]]:
    """Bilevel Meta Optimization (mu = 0: plain unrolling); the log."""

    def schedule(n: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * n / steps))

    learner = Learner(
        [p for p in restorer.parameters() if p.requires_grad],
        lambda p: torch.optim.Adam(p, rate),
        schedule=schedule,
        clip=1.0,
    )
    scheme = MetaTraining(restorer, losses.l2, learner, iterations=depth, mu=mu)
    return [scheme.step([draws(step)]) for step in range(steps)]


def settled(log: list[dict[str, float]]) -> dict[str, float]:
    """What the log says of the claims: how far residuals fell within every step, and gradients over the steps."""
    last = max(int(name.split("/")[1]) for name in log[0] if name.startswith("residual/"))
    falls = [line[f"residual/{last}"] / max(line[f"residual/{k}"] for k in range(last + 1)) for line in log]
    tenth = max(len(log) // 10, 1)

    def ends(name: str) -> tuple[float, float]:
        values = [line[name] for line in log]
        return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth

    return {
        "largest_residual_ratio_of_any_step": max(falls),
        "gradient_first_tenth": ends("gradient")[0],
        "gradient_last_tenth": ends("gradient")[1],
        "change_first_tenth": ends("change")[0],
        "change_last_tenth": ends("change")[1],
        "contraction_last_tenth": ends("contraction")[1],
        "loss_first_tenth": ends("restoration")[0],
        "loss_last_tenth": ends("restoration")[1],
    }
