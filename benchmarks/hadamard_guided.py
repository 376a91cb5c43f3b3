"""Papers A and B in one model: a Hadamard network whose first divisor is taught to be the transmission.

    python benchmarks/hadamard_guided.py --data DATA --json benchmarks/results/hadamard_guided.json

Haze is drawn over NYU's photographs, so that the transmission t is known. `plain` trains a small Hadamard network
(three units of width 16, 3-RC) on the picture alone; `taught` adds the mean squared error between t and the mean over
the channels of 2 d - 1, d being the divisor of the first unit, which lies in [1/2, 1). Same start, same crops. Scores
are of scenes that were left out: PSNR, the correlation of the first divisor with t, and PSNR with the divisor moved to
the true one (each channel shifted so that their mean is t), which is what steering by a better map can gain. Two
minutes on one core; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard_maps import correlation, divisors
from harness import interval_of, means, parser, read, rounded, span, table, write
from twofold.contracts import Sample
from twofold.data.batches import Batches
from twofold.data.depth import WithDepth
from twofold.data.sources import Crops, Source
from twofold.degrade.hadamard import Haze
from twofold.losses import l1
from twofold.metrics import PROTOCOLS
from twofold.nets.hadamard import Divide, HadamardNet
from twofold.space.genotype import uniform_genotype
from twofold.train.learner import Learner, Optimizer, Schedule

STEPS, CROP, BATCH, TEST_SIDE, TESTS = 300, 48, 1, 96, 24
BETA = 1.2
ZOOM = (3.0, 4.5)  # so that depth varies within a crop
TAUGHT = 1.0  # weight of the error of the map


def source(asked: argparse.Namespace, size: int, *, held_out: bool) -> Source:
    """NYU's scenes under haze of one density; every eighth is for the test."""
    haze = Haze(beta=(BETA, BETA), airlight=(0.7, 1.0))
    spec = WithDepth("haze/NYUv2/clean", "haze/NYUv2/depth", unit="maximum", every=8, haze=haze)
    return replace(spec, keep="picked" if held_out else "rest").build(asked.data, Crops(size, ZOOM))


def transmission(sample: Sample) -> Tensor:
    """At the size of the units, `(B, 1, h, w)`."""
    assert sample.guidance is not None
    return F.avg_pool2d(torch.exp(-BETA * sample.guidance), 4)


def first_divisor(net: HadamardNet, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The restored picture, and 2 d - 1 of the first unit, mean over its channels: `(B, 1, h, w)`."""
    unit, seen = net.units[0], []
    assert isinstance(unit.combine, Divide)
    hook = unit.divisor.register_forward_hook(lambda _, inputs, v: seen.append(v))
    restored = net(observed)
    hook.remove()
    return restored, (2 * unit.combine.divisor(seen[0]) - 1).mean(1, keepdim=True)


def trained(source: Source, seed: int, weight: float) -> HadamardNet:
    torch.manual_seed(seed)
    net: HadamardNet = uniform_genotype("3-RC", "3-C", units=3, ops_per_branch=2).network(width=16)
    learner = Learner(
        net.parameters(), Optimizer(learning_rate=1e-3).build, schedule=Schedule(warmup=10).build(STEPS), clip=5.0
    )
    batches = Batches(source, BATCH, seed=seed, ahead=False)
    for n in range(STEPS):
        sample = batches(n)
        restored, drawn = first_divisor(net, sample.observed)
        loss = l1(restored, sample.clean)
        learner.descend(loss + weight * F.mse_loss(drawn, transmission(sample)) if weight else loss)
    return net.eval()


@torch.no_grad()
def judged(net: HadamardNet, test: Sequence[Sample]) -> dict[str, float]:
    """Means over the test crops."""
    rows, unit = [], net.units[0]
    plain = unit.combine
    for sample in test:
        t = transmission(sample)
        drawn = 2 * divisors(net, sample.observed)[0].mean(0)[None, None] - 1
        row = {"psnr": psnr(net, sample), "correlation": correlation(drawn, t), "error": float(F.mse_loss(drawn, t))}
        unit.combine = replace(plain, divisor=lambda v, d=plain.divisor, by=(t - drawn) / 2: (d(v) + by).clamp(0.5, 1))
        row["true map"] = psnr(net, sample)
        unit.combine = plain
        rows.append(row)
    return means(rows)


def psnr(net: nn.Module, sample: Sample) -> float:
    return PROTOCOLS["rgb"].score(net(sample.observed).clamp(0, 1), sample.clean).psnr.item()


WAYS = {"plain": 0.0, "taught": TAUGHT}
COLUMNS = {"psnr": "PSNR", "correlation": "correlation with t", "error": "g", "true map": "PSNR with the true map"}


def guided_table(result: dict[str, Any]) -> str:
    """Both ways, and what the lesson changes, paired by seed."""
    seeds = result["seeds"]
    body = [["untouched", f"{result['untouched']:.2f}", *[""] * (len(COLUMNS) - 1)]]
    for way in WAYS:
        values = {fact: [seed[way][fact] for seed in seeds] for fact in COLUMNS}
        body.append([way, *(f"{sum(v) / len(v):.{3 if fact == 'error' else 2}f}" for fact, v in values.items())])
    line = ["taught − plain (95 %)"]
    for fact in COLUMNS:
        gains = [seed["taught"][fact] - seed["plain"][fact] for seed in seeds]
        digits = 3 if fact == "error" else 2
        ends = span(interval_of(gains), sign="+", digits=digits)
        line.append(f"{sum(gains) / len(gains):+.{digits}f} ({ends})")
    return table([f"{len(seeds)} seeds", *COLUMNS.values()], [*body, line])


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {"hadamard_guided": guided_table(result)}


def main() -> None:
    options = parser(__doc__, data="haze/NYUv2")
    options.add_argument("--seeds", type=int, default=5)
    asked = options.parse_args()
    torch.set_num_threads(1)
    kept = read(asked.json)
    seeds: list[dict[str, Any]] = kept.get("seeds", [])
    draw = source(asked, TEST_SIDE, held_out=True)
    test = [draw(torch.Generator().manual_seed(n)) for n in range(TESTS)]
    material = source(asked, CROP, held_out=False)
    untouched = sum(psnr(nn.Identity(), sample) for sample in test) / len(test)
    for seed in range(len(seeds), asked.seeds):
        seeds.append(rounded({way: judged(trained(material, seed, weight), test) for way, weight in WAYS.items()}))
        print(seed, json.dumps(seeds[-1]), flush=True)
        write(asked.json, {"untouched": untouched, "seeds": seeds})


if __name__ == "__main__":
    main()
