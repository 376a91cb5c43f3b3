"""Joint convergence for `paper_c.py`: both levels of each application on a fixed batch, at a constant rate.

w descends φ_K by gradient descent with momentum, at a rate that is measured once (half the inverse of φ_K's curvature
at the start) and never changed. For a smooth φ_K the running minimum of ‖∇φ_K‖ then falls at least like 1/√t, and an
averaged T leaves at most 1/√10 of its residual after ten times as many steps; whether they do is the criterion.
"""

from __future__ import annotations

import copy
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import table
from paper_c_pictures import deblurring_data, rainy
from paper_c_training import DEPTH, MU, RAIN_DEPTH, Photos, grey, mean_and_half, of_seeds, power
from twofold import losses
from twofold.contracts import Sample
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.sources import SyntheticCrops
from twofold.degrade.additive import SaltAndPepper
from twofold.restorers.fixed_point import (
    Deconvolution,
    FixedPointRestorer,
    RainLayers,
    RidgeDenoiser,
    SplitDeconvolution,
)
from twofold.restorers.sparse_coding import LearnedALM, PatchCoding, SparseModel, cosines
from twofold.solve import Harmonic
from twofold.solve.meta import curvature
from twofold.solve.params import norm
from twofold.train.learner import Learner
from twofold.train.meta import MetaTraining, Watched, solve

ROUNDS = 100
MOMENTUM = 0.9


def applications(material: Photos, seed: int) -> dict[str, tuple[FixedPointRestorer, Sample, int]]:
    """Restorer, fixed batch and K."""
    draws = deblurring_data(material, seed)[0]
    torch.manual_seed(seed)
    grey_denoiser = RidgeDenoiser(filters=16, layers=2)
    rain = RainLayers(
        RidgeDenoiser(channels=3, filters=16), RidgeDenoiser(channels=3, filters=16, size=7, keep_mean=False)
    )
    crops = SyntheticCrops(CropCache(grey(material.train)), SaltAndPepper(), 32)
    codes = PatchCoding(LearnedALM(SparseModel(cosines(8, 11), 0.8), tune_weights=True))
    small = part(draws(0), 24)
    return {
        "deconvolution": (Deconvolution(grey_denoiser, penalty=0.03), small, DEPTH),
        "ADMM ∘ denoiser": (SplitDeconvolution(copy.deepcopy(grey_denoiser)), small, DEPTH),
        "rain": (rain, part(rainy(material, seed)[0](0), 20), RAIN_DEPTH),
        "sparse coding": (codes, Batches(crops, 2, seed=seed, ahead=False)(0), 15),
    }


def part(sample: Sample, side: int) -> Sample:
    """Two pictures, their upper left corner: of a blurred picture the blur there is still that of the kernel."""
    kernel = None if sample.kernel is None else sample.kernel[:2]
    return Sample(sample.clean[:2, :, :side, :side], sample.observed[:2, :, :side, :side], kernel=kernel)


def constant_rate(restorer: FixedPointRestorer, sample: Sample, depth: int) -> float:
    """½ / L, L the curvature of φ_K where training starts."""
    names, start = zip(
        *((n, p.detach().clone()) for n, p in restorer.named_parameters() if p.requires_grad), strict=True
    )

    def phi(w: tuple[Tensor, ...]) -> Tensor:
        held = dict(zip(names, w, strict=True))
        restored = torch.func.functional_call(
            Phi(restorer, depth), {f"restorer.{n}": p for n, p in held.items()}, (sample,)
        )
        found: Tensor = restored
        return found

    return 0.5 / curvature(phi, start, products=8)


class Phi(nn.Module):
    """φ_K as a function of the restorer's parameters."""

    def __init__(self, restorer: FixedPointRestorer, depth: int) -> None:
        super().__init__()
        self.restorer, self.depth = restorer, depth

    def forward(self, sample: Sample) -> Tensor:
        problem = self.restorer.problem(sample.observed, sample.kernel)
        u, _ = solve(
            problem,
            lambda image: 0.5 * (image - sample.clean).square().sum(),
            iterations=self.depth,
            mu=MU,
            schedule=Harmonic(0.5),
        )
        return losses.l2(problem.image(u), sample.clean)


def settle(restorer: FixedPointRestorer, sample: Sample, depth: int) -> dict[str, float]:
    rate = constant_rate(restorer, sample, depth)
    parameters = [p for p in restorer.parameters() if p.requires_grad]
    learner = Learner(parameters, lambda p: torch.optim.SGD(p, rate, momentum=MOMENTUM), clip=float("inf"))
    scheme = MetaTraining(restorer, losses.l2, learner, iterations=depth, mu=MU)
    log = [scheme.step([sample]) for _ in range(ROUNDS)]
    gradient, change = (list(accumulate((line[name] for line in log), min)) for name in ("gradient", "change"))
    problem = restorer.problem(sample.observed, sample.kernel)
    with torch.no_grad():
        T, u = Watched(problem.operator), problem.start
        for _ in range(10 * depth):
            u = T(u)
    return {
        "rate": rate,
        "gradient_first": gradient[0],
        "gradient_last": gradient[-1],
        "gradient_slope": power(gradient, ROUNDS // 2),
        "change_last": change[-1],
        "change_slope": power(change, ROUNDS // 2),
        "residual_left": float(T.residuals[-1] / T.residuals[depth - 1]),
        "residual_slope": power([float(r) for r in T.residuals], depth),
        "loss_first": log[0]["restoration"],
        "loss_last": log[-1]["restoration"],
        "state": float(norm(u)),
    }


def joint(material: Photos, _: Path, seed: int) -> dict[str, Any]:
    found = {}
    for name, (restorer, sample, depth) in applications(material, seed).items():
        found[name] = settle(restorer, sample, depth)
        print("joint:", name, found[name], flush=True)
    return found


def joint_table(facts: dict[str, Any]) -> str:
    body = []
    for name in facts["seeds"]["0"]["joint"]:
        if name == "cpu_seconds":
            continue
        said = {key: of_seeds(facts, "joint", name, key) for key in facts["seeds"]["0"]["joint"][name]}
        fall = [b / a for a, b in zip(said["gradient_first"], said["gradient_last"], strict=True)]
        gain = [b / a for a, b in zip(said["loss_first"], said["loss_last"], strict=True)]
        body.append(
            [
                name,
                mean_and_half(fall, ".1e"),
                mean_and_half(said["gradient_slope"], ".2f"),
                mean_and_half(said["change_slope"], ".2f"),
                mean_and_half(said["residual_left"], ".1e"),
                mean_and_half(gain, ".2f"),
            ]
        )
    head = [
        "",
        "‖∇φ‖, last over first",
        "slope of ‖∇φ‖",
        "slope of ‖Δw‖",
        "residual left by 10 K steps",
        "φ, last over first",
    ]
    return table(head, body)
