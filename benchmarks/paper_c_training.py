"""Photographs and training that the applications of `paper_c.py` share, and numbers over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from skimage import data as photographs
from torch import Tensor

from harness import half_interval
from twofold import images, losses
from twofold.contracts import Sample
from twofold.restorers.fixed_point import FixedPointRestorer
from twofold.solve import Harmonic, StepSchedule
from twofold.train.learner import Learner
from twofold.train.meta import MetaTraining

DEPTH, RAIN_DEPTH = 8, 12
"""K in training; rain settles more slowly, so that 8 is shallow for it."""
MU = 0.1
"""Share of the upper level's gradient in an aggregated step."""
STEPS, RAIN_STEPS = 60, 40
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
    restorer: FixedPointRestorer,
    draws: Callable[[int], Sample],
    *,
    steps: int,
    depth: int,
    mu: float,
    rate: float,
    schedule: StepSchedule = Harmonic(0.5),
) -> list[dict[str, float]]:
    """Bilevel Meta Optimization (mu = 0: plain unrolling); the log."""

    def falling(n: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * n / steps))

    learner = Learner(
        [p for p in restorer.parameters() if p.requires_grad],
        lambda p: torch.optim.Adam(p, rate),
        schedule=falling,
        clip=1.0,
    )
    scheme = MetaTraining(restorer, losses.l2, learner, iterations=depth, mu=mu, schedule=schedule)
    return [scheme.step([draws(step)]) for step in range(steps)]


def share_left(log: list[dict[str, float]]) -> float:
    """The largest share of its largest residual that any training step ended with."""
    last = max(int(name.split("/")[1]) for name in log[0] if name.startswith("residual/"))
    return max(line[f"residual/{last}"] / max(line[f"residual/{k}"] for k in range(last + 1)) for line in log)


def power(values: list[float], first: int) -> float:
    """The slope of log values over log k, k from `first` (1 is the first) to the end, at 40 points even in log k."""
    k = torch.logspace(math.log10(first), math.log10(len(values)), 40).round().long().unique()
    x, y = k.double().log(), torch.tensor(values, dtype=torch.float64)[k - 1].clamp_min(1e-300).log()
    x = x - x.mean()
    return float(x @ y / (x @ x))


def of_seeds(facts: dict[str, Any], *path: str) -> list[float]:
    """The numbers at `path` (part, key, ...) of all seeds that have that part."""
    found = []
    for seed in facts["seeds"].values():
        node: Any = seed
        if path[0] not in node:
            continue
        for key in path:
            node = node[key]
        found.append(float(node))
    return found


def mean_and_half(values: list[float], form: str = ".2f") -> str:
    """The mean and half of Student's 95 % interval over seeds, as text."""
    mean = sum(values) / len(values)
    return f"{mean:{form}} ± {half_interval(values):{form.lstrip('+')}}" if len(values) > 1 else f"{mean:{form}}"
