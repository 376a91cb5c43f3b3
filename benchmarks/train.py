"""How much faster a guided training step is than the plain loop one would write first, and whether it learns as well.

Ours: what `twofold train` runs (channels-last, bf16 autocast, separable SSIM, one gradient call, huge pages). Plain:
the same networks contiguous in float32, `backward()`, an SSIM of ordinary 11x11 windows, torch's own allocator. One
thread, CPU time, the two in processes of their own that alternate; the least of all rounds counts.

    python benchmarks/train.py --json benchmarks/results/train.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from harness import interval_of, parser, read, score, table, write
from twofold.contracts import Sample
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.sources import PairCrops
from twofold.degrade.additive import RainStreaks, quantised, rain_region
from twofold.degrade.blur import CameraShake
from twofold.restorers.guided import Guided
from twofold.train import reading
from twofold.train import recipe as recipes
from twofold.train.learner import machine_of
from twofold.train.run import build_scheme

WINDOW = torch.exp(-(torch.arange(-5.0, 6.0) ** 2) / (2 * 1.5**2))
WINDOW = (WINDOW[:, None] * WINDOW).div(WINDOW.sum() ** 2).expand(3, 1, 11, 11)
CASES = {
    "derain": ["data.batch=8"],
    "paper-a-rain100h": ["data.batch=2", "precision=bf16"],
    "paper-a-deconvolution": ["data.batch=1", "precision=bf16"],
    "paper-a-sots-indoor": ["data.batch=1", "precision=bf16", "loss={smooth_l1: 1.0}"],
}
"""Recipes that are timed, with changes. The papers' batches need more memory than a small machine has, and VGG16's
weights are not available."""


def plain_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Five 2-D windows per channel, as most programs have it."""

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, WINDOW, padding=5, groups=3)

    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return (((2 * mx * my + 1e-4) * (2 * cxy + 9e-4)) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))).mean()


PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
    "negative_ssim": lambda restored, clean: -plain_ssim(restored, clean),
}


def plain_step(recipe: recipes.Recipe, restorer: Guided) -> Callable[[Sample, Sample], None]:
    """Algorithm 1 as one would write it first."""
    weights = recipe.loss.weights
    halves = (restorer.guide, recipe.guide_optimizer), (restorer.net, recipe.optimizer)
    theta, omega = (torch.optim.Adam(part.parameters(), settings.learning_rate) for part, settings in halves)
    factor = recipe.schedule.build(recipe.steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in (theta, omega)]

    def step(known_cause: Sample, sample: Sample) -> None:
        theta.zero_grad()
        F.mse_loss(restorer.guide(known_cause.observed), known_cause.guidance).backward()
        theta.step()
        omega.zero_grad()
        kernel = () if sample.kernel is None else (sample.kernel,)
        restored = restorer.net(sample.observed, restorer.guide(sample.observed).detach(), *kernel)
        sum(weight * PLAIN[name](restored, sample.clean) for name, weight in weights.items()).backward()
        if recipe.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(restorer.net.parameters(), recipe.optimizer.clip)
        omega.step()
        for schedule in schedules:
            schedule.step()

    return step


def step_of(way: str, recipe: recipes.Recipe) -> tuple[Guided, Callable[[Sample, Sample], None]]:
    torch.manual_seed(recipe.seed)
    restorer = recipe.model.build()
    assert isinstance(restorer, Guided)
    if way == "plain":
        return restorer, plain_step(recipe, restorer)
    machine = machine_of(recipe.precision, "cpu")
    scheme = build_scheme(recipe, machine.place(restorer), machine)

    def step(known_cause: Sample, sample: Sample) -> None:
        scheme.step([known_cause], [sample])

    return restorer, step


def in_layout(way: str, sample: Sample) -> Sample:
    kept = torch.contiguous_format if way == "plain" else torch.channels_last
    return Sample(*(part if part is None else part.contiguous(memory_format=kept) for part in sample))


def worker(way: str, case: str) -> None:
    """A step for every line that comes in; its CPU seconds go out."""
    torch.set_num_threads(1)
    recipe = reading.read_recipe(case, CASES[case])
    _, step = step_of(way, recipe)
    batch, crop = recipe.data.batch, recipe.data.crop
    clean, observed = torch.rand(2, batch, recipe.model.channels, crop, crop)
    kernel = None
    if recipe.task == "deconvolution":
        kernel = CameraShake(size=37)(torch.Generator().manual_seed(0)).expand(batch, -1, -1, -1)
    sample = in_layout(way, Sample(clean, observed, (clean[:, :1] > 0.5).float(), kernel))
    for _ in sys.stdin:
        began = time.process_time()
        step(sample, sample)
        print(time.process_time() - began, flush=True)


def timed(case: str, rounds: int) -> dict[str, float]:
    workers = {}
    for way in ("ours", "plain"):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": str(int(way == "ours"))}
        said = [sys.executable, __file__, "--worker", way, "--case", case]
        workers[way] = subprocess.Popen(
            said, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
        )
    seconds: dict[str, list[float]] = {way: [] for way in workers}
    for _ in range(rounds + 2):
        for way, process in workers.items():
            assert process.stdin is not None
            assert process.stdout is not None
            print("step", file=process.stdin, flush=True)
            seconds[way].append(float(process.stdout.readline()))
    for process in workers.values():
        process.communicate()
    best = {f"{way}_seconds": round(min(times[2:]), 4) for way, times in seconds.items()}  # two to warm up
    return {**best, "speedup": round(best["plain_seconds"] / best["ours_seconds"], 2)}


def rained(photos: list[Any], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Bytes of photographs in drawn rain, and of themselves."""
    generator, observed, clean = torch.Generator().manual_seed(seed), [], []
    for photo in photos:
        picture = torch.from_numpy(photo.copy())[..., :3].permute(2, 0, 1)[None] / 255
        sample = RainStreaks()(picture, generator)
        for kept, image in ((observed, sample.observed), (clean, sample.clean)):
            kept.append((quantised(image)[0] * 255).round().to(torch.uint8))
    return observed, clean


def learned(steps: int, seeds: int) -> dict[str, Any]:
    """PSNR of a small network on other photographs after equal steps on equal crops."""
    train = rained([data.astronaut(), data.coffee(), data.rocket()], 0)
    seen, true = rained(
        [data.chelsea()[:256, :256], data.cat()[:256, :256], data.immunohistochemistry()[:256, :256]], 1
    )
    changes = ["model.net={kind: unet, widths: [16, 32], blocks: [1, 1]}", f"steps={steps}", "schedule.warmup=20"]
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for seed in range(seeds):
        for way, values in found.items():
            recipe = reading.read_recipe("derain", [*changes, f"seed={seed}", "scheme.steering=0.0"])
            restorer, step = step_of(way, recipe)
            source = PairCrops(CropCache(train[0]), CropCache(train[1]), 48, rain_region)
            batches = Batches(source, 8, seed=seed, ahead=False)
            for n in range(steps):
                step(in_layout(way, batches(2 * n)), in_layout(way, batches(2 * n + 1)))
            scores = []
            with torch.no_grad():
                for observed, clean in zip(seen, true, strict=True):
                    scores.append(score(restorer((observed / 255)[None]).image, (clean / 255)[None]))
            values.append(sum(scores) / len(scores))
    differences = [a - b for a, b in zip(found["ours"], found["plain"], strict=True)]
    return {
        "steps": steps,
        "psnr_ours": [round(value, 3) for value in found["ours"]],
        "psnr_plain": [round(value, 3) for value in found["plain"]],
        "difference": round(sum(differences) / seeds, 4),
        "difference_interval": interval_of(differences, 4),
    }


def train_steps_table(result: dict[str, Any]) -> str:
    """A training step of ours against the plain loop."""
    names = {
        "derain": "`derain`, guided U-Net",
        "paper-a-rain100h": "`paper-a-rain100h`, PReNet",
        "paper-a-deconvolution": "`paper-a-deconvolution`, unfolded network",
        "paper-a-sots-indoor": "`paper-a-sots-indoor`, GridDehazeNet",
    }
    body = [
        [
            names[case],
            ", ".join(facts["changes"]),
            *(f"{facts[f'{way}_seconds']:.2f} s" for way in ("plain", "ours")),
            f"{facts['speedup']:.1f}×",
        ]
        for case, facts in result["steps"].items()
    ]
    return table(["recipe", "changed", "plain loop", "ours", "ratio"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "train_steps": train_steps_table(result),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", nargs="+", choices=list(CASES), help="time these anew, and keep the rest of --json")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    options.add_argument("--case", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.worker:
        worker(asked.worker, asked.case)
        return
    if asked.only and not (asked.json and asked.json.exists()):
        options.error("--only needs a --json that is there already")
    torch.set_num_threads(1)
    kept = read(asked.json) if asked.only else {}
    load = f"{os.getloadavg()[0]:.1f}"
    steps = kept.get("steps", {})
    for case in asked.only or CASES:
        steps[case] = {**timed(case, asked.rounds), "changes": CASES[case], "load": load}
        print(case, steps[case], flush=True)
    quality = kept.get("learning") or learned(asked.steps, asked.seeds)
    result = {
        "summary": {
            "step_speedup": steps["derain"]["speedup"],
            "step_speedup_prenet": steps["paper-a-rain100h"]["speedup"],
            "step_speedup_unfolded": steps["paper-a-deconvolution"]["speedup"],
            "step_speedup_griddehaze": steps["paper-a-sots-indoor"]["speedup"],
            "psnr_change": quality["difference"],
        },
        "steps": steps,
        "learning": quality,
    }
    print(json.dumps(result, indent=1))
    write(asked.json, result)


if __name__ == "__main__":
    main()
