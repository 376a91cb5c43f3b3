"""A recipe search on a budget: short trainings of `derain`, each with one setting changed, all of the same CPU time.

    python benchmarks/recipes.py --data DATA --json benchmarks/results/recipes.json [--minutes 3]

Every cell trains for the same CPU minutes of one thread from the same seed, its cosine schedule fitted to the steps
that this allows, and is validated once at the end. Cells that stand in the JSON file are not run again. What wins in
minutes need not win in hours: large networks and weak augmentations gain with time.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import parser, read, table, write
from twofold.train import reading
from twofold.train.run import train

BASE = "derain"
SHORT = ["schedule={kind: cosine, warmup: 20, floor: 0.01}"]
"""Changes of every cell: the recipe's warm-up is as long as a whole cell."""
PAIRS = ", ".join(f"{{root: rain/Rain100, observed: {kind}, clean: clean, every: 5}}" for kind in ("light", "heavy"))
CELLS: dict[str, list[str]] = {
    "as shipped": [],
    "no guide": [
        "model={kind: plain, net: {kind: unet, widths: [48, 96, 160], blocks: [2, 2, 4], unshuffle: 2}}",
        "scheme={kind: supervised}",
    ],
    "data: pairs of Rain100 alone": [f"data.train=[{{kind: pairs, guidance: rain_region, pairs: [{PAIRS}]}}]"],
    "width 64, 128, 192": ["model.net.widths=[64, 128, 192]"],
    "no pixel-unshuffle, width 24, 48, 96": ["model.net.unshuffle=1", "model.net.widths=[24, 48, 96]"],
    "gated blocks": ["model.net.gated=true"],
    "global context": ["model.net.context=64"],
    "crop 192, batch 3": ["data.crop=192", "data.batch=3"],
    "learning rate 0.002": ["optimizer.learning_rate=0.002"],
    "loss l1": ["loss={l1: 1.0}"],
    "blocks 1, 1, 3": ["model.net.blocks=[1, 1, 3]"],
    "learning rate 0.0005": ["optimizer.learning_rate=0.0005"],
    "constant learning rate": ["schedule={kind: constant, warmup: 20}"],
    "no moving average": ["average=0"],
    "loss negative SSIM": ["loss={negative_ssim: 1.0}"],
    "pixel-unshuffle 4, width 96, 160, blocks 3, 4": [
        "model.net.unshuffle=4",
        "model.net.widths=[96, 160]",
        "model.net.blocks=[3, 4]",
    ],
}
TIMED_STEPS = 12


class Timer:
    """A report that notes the CPU time after each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        self.times.append(time.process_time())

    def validated(self, done: int, scores: dict[str, float]) -> None:
        pass


def trained(changes: list[str], steps: int, data: Path, folder: Path) -> tuple[dict[str, Any], float]:
    """(facts of the run, CPU seconds of a step; the first two, which warm up, do not count)."""
    timer = Timer()
    recipe = reading.read_recipe(BASE, [*SHORT, *changes, f"steps={steps}", f"validate_every={steps}"])
    facts = train(recipe, data, folder, device="cpu", reports=[timer])
    return facts, (timer.times[-1] - timer.times[1]) / (len(timer.times) - 2)


def cell(changes: list[str], data: Path, minutes: float) -> dict[str, Any]:
    """Trains one cell. Returns validation scores, steps, CPU minutes of its steps, parameters."""
    with tempfile.TemporaryDirectory() as folder:
        _, seconds = trained([*changes, "data.limit=1"], TIMED_STEPS, data, Path(folder) / "timed")
        steps = max(int(60 * minutes / seconds), TIMED_STEPS)
        facts, seconds = trained(changes, steps, data, Path(folder) / "run")
    parameters = sum(p.numel() for p in reading.read_recipe(BASE, changes).model.build().parameters())
    scores = {key: value for key, value in facts["validation"].items() if "input" not in key}
    return {
        "validation": scores,
        "steps": steps,
        "cpu_minutes": round(steps * seconds / 60, 2),
        "parameters": parameters,
    }


def tables(result: dict[str, Any]) -> dict[str, str]:
    """A row a cell: what it reached, and by how much that differs from the recipe as it is."""
    cells = result["cells"]
    sets = [key.removesuffix("/psnr") for key in cells["as shipped"]["validation"] if key.endswith("/psnr")]
    body = []
    for name, facts in cells.items():
        row = [name, f"{facts['parameters'] / 1e6:.2f} M", f"{facts['steps']:,}", f"{facts['cpu_minutes']:.1f}"]
        for key in sets:
            psnr = facts["validation"][f"{key}/psnr"]
            row.append(f"{psnr:.2f} ({psnr - cells['as shipped']['validation'][f'{key}/psnr']:+.2f})")
        body.append(row)
    return {"recipes": table(["changed setting", "parameters", "steps", "CPU minutes", *sets], body)}


def main() -> None:
    options = parser(__doc__, data="the sets of the recipe derain", json_required=True)
    options.add_argument("--minutes", type=float, default=3.0, help="CPU minutes of training a cell")
    chosen = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    facts = read(chosen.json) or {"recipe": BASE, "minutes": chosen.minutes, "seed": 0, "cells": {}}
    for name, changes in CELLS.items():
        if name not in facts["cells"]:
            facts["cells"][name] = cell(changes, chosen.data, facts["minutes"])
            print(name, facts["cells"][name], flush=True)
            write(chosen.json, facts)


if __name__ == "__main__":
    main()
