"""Paper A, §5.3 and §5.4: is a map that was learned from an inaccurate truth better than that truth? Part `truths` of
`paper_a.py`.

The paper looks at pictures (Figs. 10 and 13): the published rain regions are not accurate under heavy rain and the
published depth is coarse, and the estimated maps are said to be better. Here the accurate truth is known, since rain
and haze are drawn. The paper's guide (four layers) learns from a truth that was made inaccurate in a stated way, and
both are compared with the accurate one on pictures and draws that it never saw. θ of Algorithm 1 depends on nothing
else (see docs/guidance.md), so that the reconstruction is not trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import gained, means, table
from paper_a_claims import gain
from twofold.contracts import DEPTH, RAIN_REGION, GuidanceKind, Sample
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.depth import WithDepth
from twofold.data.folders import Folder
from twofold.data.sources import Crops, Source, SyntheticCrops
from twofold.degrade.additive import RainStreaks
from twofold.degrade.hadamard import Haze, blurred
from twofold.nets.guide import Guide
from twofold.train.learner import Learner, Optimizer, Schedule

HEAVY = RainStreaks(density=(0.6, 1.0), strength=(0.3, 0.7))
STEPS, CROP, BATCH, TEST_SIDE, TESTS = 400, 48, 8, 192, 40
Change = Callable[[Tensor, torch.Generator], Tensor]


def shifted(truth: Tensor, generator: torch.Generator) -> Tensor:
    """Two pixels to the right: a map that was registered badly."""
    return F.pad(truth, (2, 0, 0, 0))[..., : truth.shape[-1]]


def thick(truth: Tensor, generator: torch.Generator) -> Tensor:
    """Grown by one pixel on every side."""
    return F.max_pool2d(truth, 3, 1, 1)


def with_gaps(truth: Tensor, generator: torch.Generator) -> Tensor:
    """A third of all blocks of 8x8 pixels is not marked."""
    blocks = (
        torch.rand(len(truth), 1, *(-(-side // 8) for side in truth.shape[-2:]), generator=generator) > 1 / 3
    ).float()
    return truth * F.interpolate(blocks, scale_factor=8)[..., : truth.shape[-2], : truth.shape[-1]]


def coarse(truth: Tensor, generator: torch.Generator) -> Tensor:
    """Means of about 16x16 pixels, enlarged again."""
    small = F.adaptive_avg_pool2d(truth, [max(side // 16, 1) for side in truth.shape[-2:]])
    return F.interpolate(small, size=truth.shape[-2:], mode="bilinear")


CASES: dict[str, tuple[GuidanceKind, Change]] = {
    "rain region, shifted by 2 pixels": (RAIN_REGION, shifted),
    "rain region, 1 pixel too thick": (RAIN_REGION, thick),
    "rain region, a third missing": (RAIN_REGION, with_gaps),
    "depth, coarse (16 pixels)": (DEPTH, coarse),
}


def sources(kind: GuidanceKind, asked: argparse.Namespace, size: int) -> Source:
    """Training pictures: BSDS500 under rain, NYU depth under haze; every fifth scene of the latter is left out."""
    if kind is RAIN_REGION:
        return SyntheticCrops(CropCache.of(Folder("clean/BSDS500").files(asked.data)), HEAVY, size)
    return WithDepth("haze/NYUv2/clean", "haze/NYUv2/depth", unit="maximum", every=5, haze=Haze()).build(
        asked.data, Crops(size)
    )


def held_out(kind: GuidanceKind, asked: argparse.Namespace) -> Source:
    """Test pictures: Kodak's under rain; the NYU scenes that were left out, under haze."""
    if kind is RAIN_REGION:
        return SyntheticCrops(CropCache.of(Folder("clean/Kodak24").files(asked.data)), HEAVY, TEST_SIDE)
    rest = WithDepth("haze/NYUv2/clean", "haze/NYUv2/depth", unit="maximum", every=5, keep="picked", haze=Haze())
    return rest.build(asked.data, Crops(TEST_SIDE))


def trained(kind: GuidanceKind, change: Change, source: Source, seed: int) -> Guide:
    """The guide after `STEPS` updates on the changed truth."""
    torch.manual_seed(seed)
    guide, generator = Guide(kind), torch.Generator().manual_seed(seed)
    learner = Learner(
        guide.parameters(), Optimizer(learning_rate=1e-3).build, schedule=Schedule(warmup=20).build(STEPS)
    )
    batches = Batches(source, BATCH, seed=seed, ahead=False)
    for n in range(STEPS):
        sample = batches(n)
        assert sample.guidance is not None
        learner.descend(F.mse_loss(guide(sample.observed), change(sample.guidance, generator)))
    return guide.eval()


def details(a: Tensor, b: Tensor) -> float:
    """Correlation of what two maps hold beside their blur (Gaussian, 4 pixels)."""
    x, y = (m - blurred(m, 4.0) for m in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt().clamp_min(1e-12))


def agreement_of_edges(map_: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean squared error and correlation of details against the accurate truth."""
    return {"error": float((map_ - truth).square().mean()), "details": details(map_, truth)}


@torch.no_grad()
def judged(guide: Guide, change: Change, test: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Means over the test pictures: of the estimate, of the inaccurate truth that was taught, and of the constant that
    is best for the picture.
    """
    generator, rows = torch.Generator().manual_seed(0), {"estimated": [], "taught": [], "constant": []}
    for sample in test:
        truth = sample.guidance
        assert truth is not None
        rows["estimated"].append(agreement_of_edges(guide(sample.observed), truth))
        rows["taught"].append(agreement_of_edges(change(truth, generator), truth))
        rows["constant"].append({"error": float(truth.var(unbiased=False)), "details": 0.0})
    return {name: means(values, 5) for name, values in rows.items()}


SETTINGS = {"steps": STEPS, "crop": CROP, "batch": BATCH, "test_side": TEST_SIDE, "tests": TESTS}


def run(asked: argparse.Namespace, kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The facts of the part `truths` after every training, of all cases with all seeds. kept: those of a former run,
    which is gone on with where its settings are the same.
    """
    runs = kept["runs"] if kept.get("settings") == SETTINGS else []
    done = {(run["case"], run["seed"]) for run in runs}
    for name, (kind, change) in CASES.items():
        missing = [seed for seed in range(asked.seeds) if (name, seed) not in done]
        if not missing:
            continue
        source, other = sources(kind, asked, CROP), held_out(kind, asked)
        test = [other(torch.Generator().manual_seed(1_000 + n)) for n in range(TESTS)]
        for seed in missing:
            runs.append({"case": name, "seed": seed, **judged(trained(kind, change, source, seed), change, test)})
            print(json.dumps(runs[-1]), flush=True)
            yield {"summary": summary(runs), "settings": SETTINGS, "runs": runs}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By case: means, and taught − estimated error and estimated − taught details, paired by seed."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(run["case"] for run in runs):
        mine = [run for run in runs if run["case"] == name]

        def by_seed(what: str, fact: str, mine: Sequence[dict[str, Any]] = mine) -> dict[int, float]:
            return {run["seed"]: run[what][fact] for run in mine}

        found[name] = {
            what: {fact: sum(by_seed(what, fact).values()) / len(mine) for fact in ("error", "details")}
            for what in ("estimated", "taught", "constant")
        }
        found[name]["error gains"] = gain(by_seed("taught", "error"), by_seed("estimated", "error"), digits=4)
        found[name]["detail gains"] = gain(by_seed("estimated", "details"), by_seed("taught", "details"))
    return found


def truths_table(found: dict[str, Any]) -> str:
    """What was taught and what was learned from it, both against the accurate truth."""
    body = [
        [
            name,
            *(f"{facts[what]['error']:.3f}" for what in ("constant", "taught", "estimated")),
            gained(facts["error gains"], 3),
            *(f"{facts[what]['details']:.2f}" for what in ("taught", "estimated")),
            gained(facts["detail gains"]),
        ]
        for name, facts in found.items()
    ]
    head = ["what is taught", "error of the best constant", "of what is taught", "of the estimate", "less by (95 %)"]
    return table([*head, "details: taught", "estimate", "more by (95 %)"], body)
