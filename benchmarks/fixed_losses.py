"""A searched loss against the fixed ones of the field, at equal steps: PSNR and SSIM, paired by seed.

    python benchmarks/fixed_losses.py --data DATA --json benchmarks/results/fixed_losses.json

A small U-Net per task, loss and seed. Pictures, batches, optimizer and scores are those of `paper_b.py`: what is
compared sees the same batches from the same seed. The found losses are the shipped ones (`configs/found`), searched on
a Hadamard network; neither they nor the weights of the fixed ones were tuned here. The file is written after every
training and read again, so that an interrupted run goes on; the tables take the seeds that are complete.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import nn

from harness import gained, interval_of, means, parser, read, rounded, table, write
from paper_b import HELD_OUT, Bench, held_out
from twofold.losses import LossSpec
from twofold.nets.perceptual import perceptual_squeeze
from twofold.nets.unet import UNet
from twofold.search.halves import split_source
from twofold.search.recipe import SearchRecipe
from twofold.settings import checked
from twofold.train import reading

FOUND = "found by search"
FIXED = {
    "l1": LossSpec({"l1": 1.0}),
    "Charbonnier": LossSpec({"charbonnier": 1.0}),
    "MS-SSIM + l1": LossSpec({"ms_ssim": 0.84, "l1": 0.16}),  # Zhao et al. 2017; without their window over l1
    "l1 + perceptual": LossSpec({"l1": 1.0, "perceptual_squeeze": 0.1}),  # about equal shares at the start
}


def losses_of(task: str) -> dict[str, LossSpec]:
    file = resources.files("twofold") / "configs" / "found" / f"{task}.loss.yaml"
    return {FOUND: LossSpec.from_yaml(file.read_text()), **FIXED}


def network() -> nn.Module:
    return UNet(channels=3, guidance=0, widths=[16, 32, 32], blocks=[1, 1, 1])


def prepared(asked: argparse.Namespace, task: str) -> Bench:
    """The task's part of `paper_b.py`, without a judge; as many held-out pictures as asked, evenly spaced."""
    tree = reading.tree_of(f"search-{task}")
    tree["data"] |= {"crop": asked.crop, "batch": asked.batch}
    recipe = checked(SearchRecipe, tree)
    whole = recipe.data.source(asked.data)
    test = held_out(recipe, asked.data, asked.test_side)
    test = test[:: max(len(test) // asked.pictures, 1)][: asked.pictures]
    distance = perceptual_squeeze(asked.data / "features")
    return Bench(asked, recipe, asked.data, whole, *split_source(whole), test, nn.Identity(), distance)


def training(bench: Bench, loss: LossSpec, seed: int) -> dict[str, float]:
    """Scores of the network that the loss trains, and its CPU milliseconds a step."""
    built = bench.loss(loss)
    built(*torch.rand(2, 1, 3, 32, 32))  # reads the weights of its networks
    began = time.process_time()
    net = bench.trained(network, built, seed)
    return {"ms": 1000 * (time.process_time() - began) / bench.asked.steps, **bench.score(net)}


@dataclass(frozen=True)
class Lead:
    """How far the found loss is ahead of a fixed one: means and Student's intervals of the differences by seed."""

    psnr: Mapping[str, Any]
    ssim: Mapping[str, Any]

    @classmethod
    def of(cls, seeds: Sequence[Mapping[str, Mapping[str, float]]], fixed: str) -> Lead:
        """seeds: of each, loss → scores."""

        def apart(key: str) -> dict[str, Any]:
            values = [seed[FOUND][key] - seed[fixed][key] for seed in seeds]
            return {"mean": sum(values) / len(values), "interval": interval_of(values, 4)}

        return cls(apart("psnr"), apart("ssim"))


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Seeds of which a loss is missing are left out; the first column says how many remain."""
    body = []
    for task, facts in result["tasks"].items():
        seeds = [seed for seed in facts["seeds"].values() if all(name in seed for name in (FOUND, *FIXED))]
        title = f"{task}, {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}"
        for name in (FOUND, *FIXED) if seeds else ():
            mean = means([seed[name] for seed in seeds])
            line = [title, name, f"{mean['psnr']:.2f} / {mean['ssim']:.3f}", f"{mean['perceptual_squeeze']:.3f}"]
            lead = Lead.of(seeds, name)
            leads = ["", ""] if name == FOUND else [gained(lead.psnr), gained(lead.ssim, 3)]
            body.append([*line, *leads, f"{mean['ms']:.0f}"])
    head = [
        "task",
        "loss",
        "PSNR / SSIM",
        "perceptual-squeeze",
        "found leads by, dB (95 %)",
        "found leads by, SSIM (95 %)",
        "CPU ms a step",
    ]
    return {"fixed_losses": table(head, body)}


def main() -> None:
    options = parser(__doc__, data="what the recipes search-TASK name, and features")
    options.add_argument("--tasks", nargs="+", choices=list(HELD_OUT), default=list(HELD_OUT))
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, default=240, help="of every training")
    options.add_argument("--crop", type=int, default=48)
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--pictures", type=int, default=8, help="held out, of each task")
    options.add_argument("--test-side", type=int, default=192)
    options.add_argument("--device", default="cpu")
    asked = options.parse_args()
    torch.set_num_threads(1)
    settings = {name: getattr(asked, name) for name in ("steps", "crop", "batch", "pictures", "test_side")}
    before = read(asked.json)
    if before.get("settings", settings) != settings:
        raise SystemExit(f"{asked.json} was written with {before['settings']}; use these settings or another file")
    benches = {task: prepared(asked, task) for task in asked.tasks}
    tasks: dict[str, Any] = before.get("tasks", {})
    for task, bench in benches.items():
        if task not in tasks:
            untouched = rounded(bench.score(nn.Identity()))
            tasks[task] = {"untouched": untouched, "pictures": len(bench.test), "seeds": {}}
    for seed in range(asked.seeds):
        for task, bench in benches.items():
            rows = tasks[task]["seeds"].setdefault(str(seed), {})
            for name, loss in losses_of(task).items():
                if name not in rows:
                    rows[name] = rounded(training(bench, loss, seed))
                    print(seed, task, name, rows[name], flush=True)
                    write(asked.json, {"settings": settings, "tasks": tasks})


if __name__ == "__main__":
    main()
