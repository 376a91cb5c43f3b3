"""The recipes of Bilevel Meta Optimization, trained as `twofold train` does it: scores, time, how they converged.

    python benchmarks/gkm.py --data DATA --json benchmarks/results/gkm.json

The plot of each run is copied beside the JSON. Time is processor time of one thread, validation included.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from harness import parser, read, table, write
from twofold import zoo
from twofold.train import reading
from twofold.train.convergence import residuals
from twofold.train.run import train

NAMES = ("gkm-sparse-coding", "gkm-deconvolution", "gkm-deconvolution-admm", "gkm-rain")


def facts_of(name: str, data: Path, folder: Path, plots: Path) -> dict[str, Any]:
    began = time.process_time()
    result = train(reading.read_recipe(name), data, folder, device="cpu")
    seconds = time.process_time() - began
    series = json.loads((folder / "convergence.json").read_text())
    shutil.copy(folder / "convergence.png", plots / f"{name}.png")
    (dataset,) = {key.partition("/")[0] for key in result["validation"]}
    last = max(len(series["step"]) // 10, 1)
    found = {key: sum(series[key][-last:]) / last for key in ("restoration", "lower", "gradient", "contraction")}
    ends = [row[-1] / row[0] for row in residuals(series)[-last:]]
    return {
        "parameters": sum(p.numel() for p in zoo.load_restorer(folder / "model.safetensors").parameters()),
        "steps": result["steps"],
        "cpu_seconds": round(seconds),
        "dataset": dataset,
        "protocol": result["protocol"],
        **{key: result["validation"][f"{dataset}/{key}"] for key in ("psnr", "ssim", "input_psnr", "input_ssim")},
        "last_tenth": {**found, "share_of_the_residual_left": sum(ends) / last},
        "machine": result["machine"],
    }


def gkm_table(result: dict[str, Any]) -> str:
    """The recipes of Bilevel Meta Optimization."""
    body = [
        [
            f"`{name}`",
            f"{facts['parameters']:,}",
            f"{facts['steps']} in {facts['cpu_seconds']} s",
            f"{facts['dataset']}, `{facts['protocol']}`",
            f"{facts['input_psnr']:.2f} / {facts['input_ssim']:.3f}",
            f"{facts['psnr']:.2f} / {facts['ssim']:.3f}",
            f"{facts['last_tenth']['contraction']:.3f}",
        ]
        for name, facts in result.items()
    ]
    head = [
        "recipe",
        "parameters",
        "steps",
        "4 pictures of",
        "untouched (PSNR / SSIM)",
        "restored",
        "factor in training",
    ]
    return table(head, body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "gkm": gkm_table(result),
    }


def main() -> None:
    options = parser(__doc__, data="clean/BSDS500, deblur/Set12, rain/Rain100", json_required=True)
    options.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="renew these recipes")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        plots = arguments.json.parent
        fresh = {name: facts_of(name, arguments.data, Path(runs) / name, plots) for name in arguments.only}
    found = {**read(arguments.json), **fresh}
    write(arguments.json, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
