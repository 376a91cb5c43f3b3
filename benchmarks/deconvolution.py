"""The linear step of deconvolution on photographs of 1 to 24 megapixels: processor time a megapixel, memory, tiles
against whole.

    python benchmarks/deconvolution.py --json benchmarks/results/deconvolution.json

Every size runs in a process of its own, on one thread, since the peak of a process's memory never falls. Time is that
of the processor, the best of three, so that other work on the machine matters less. Memory is what the process holds
at its peak above what it held when it had the photograph.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from twofold.degrade.blur import CameraShake
from twofold.nets.fourier import inverse_reach, inverse_step, inverse_step_tiled, psf2otf

MEGAPIXELS = (1, 2, 4, 8, 12, 24)
RHO = 0.01


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(megapixels: float, way: str) -> dict[str, float]:
    """One size, one way; `compare` runs both and reports their largest difference instead."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    kernel = CameraShake(size=25, extent=(18.0, 18.0))(generator)
    height, width = round((megapixels * 1e6 * 3 / 4) ** 0.5), round((megapixels * 1e6 * 4 / 3) ** 0.5)
    observed = torch.rand(1, 3, height, width, generator=generator)

    def whole() -> torch.Tensor:
        return inverse_step(observed, psf2otf(kernel, (height, width)), RHO, observed)

    def tiled() -> torch.Tensor:
        return inverse_step_tiled(observed, kernel, RHO, observed)

    facts = {"megapixels": height * width / 1e6}
    with torch.no_grad():
        if way == "compare":
            return facts | {"largest_difference": float((whole() - tiled()).abs().max())}
        before, seconds = peak(), []
        for _ in range(3):
            start = time.process_time()
            tiled() if way == "tiled" else whole()
            seconds.append(time.process_time() - start)
    return facts | {
        "seconds_per_megapixel": min(seconds) / facts["megapixels"],
        "peak_mib": peak(),
        "extra_mib": peak() - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--one", nargs=2, metavar=("MEGAPIXELS", "WAY"), help="measure one size and print it")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(float(arguments.one[0]), arguments.one[1])))
        return
    table: dict[str, list[dict[str, float]]] = {"tiled": [], "whole": [], "compare": []}
    for way, rows in table.items():
        for megapixels in MEGAPIXELS if way != "compare" else (12,):
            command = [sys.executable, __file__, "--one", str(megapixels), way]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(way, rows[-1], flush=True)
    times = [row["seconds_per_megapixel"] for row in table["tiled"]]
    kernel = CameraShake(size=25, extent=(18.0, 18.0))(torch.Generator().manual_seed(0))
    result = {
        "summary": {
            "slowest_over_fastest_per_megapixel": max(times) / min(times),
            "peak_mib_at_12_megapixels": table["tiled"][MEGAPIXELS.index(12)]["peak_mib"],
            "largest_difference_in_grey_levels": 255 * table["compare"][0]["largest_difference"],
            "reach_in_pixels": inverse_reach(kernel, RHO, size=2048),
        },
        "settings": {"channels": 3, "kernel": 25, "rho": RHO, "threads": 1, "torch": torch.__version__},
        "machine": platform.processor() or platform.machine(),
        **table,
    }
    print(json.dumps(result["summary"], indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
