"""The linear step of deconvolution on photographs of 1 to 24 megapixels: processor time a megapixel, memory, tiles
against whole.

    python benchmarks/deconvolution.py --json benchmarks/results/deconvolution.json

Every size runs in a process of its own, on one thread, since the peak of a process's memory never falls. Time is that
of the processor, the best of three, so that other work on the machine matters less. Memory is what the process holds
at its peak above what it held when it had the photograph.
"""

from __future__ import annotations

import json
import time

import torch

from harness import fresh_process, largest_resident, parser, write
from twofold.degrade.blur import CameraShake
from twofold.nets.fourier import inverse_reach, inverse_step, inverse_step_tiled, psf2otf

MEGAPIXELS = (1, 2, 4, 8, 12, 24)
RHO = 0.01


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
        before, seconds = largest_resident() / 2**20, []
        for _ in range(3):
            start = time.process_time()
            tiled() if way == "tiled" else whole()
            seconds.append(time.process_time() - start)
    return facts | {
        "seconds_per_megapixel": min(seconds) / facts["megapixels"],
        "peak_mib": largest_resident() / 2**20,
        "extra_mib": largest_resident() / 2**20 - before,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--one", nargs=2, metavar=("MEGAPIXELS", "WAY"), help="measure one size and print it")
    arguments = options.parse_args()
    if arguments.one:
        print(json.dumps(measure(float(arguments.one[0]), arguments.one[1])))
        return
    table: dict[str, list[dict[str, float]]] = {"tiled": [], "whole": [], "compare": []}
    for way, rows in table.items():
        for megapixels in MEGAPIXELS if way != "compare" else (12,):
            rows.append(json.loads(fresh_process(__file__, "--one", str(megapixels), way)))
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
        **table,
    }
    print(json.dumps(result["summary"], indent=2))
    write(arguments.json, result)


if __name__ == "__main__":
    main()
