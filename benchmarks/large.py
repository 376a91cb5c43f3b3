"""What a large photograph takes: CPU seconds and memory of every shipped model, whole pictures of 1 to 12 megapixels.

    python benchmarks/large.py --json benchmarks/results/large.json

One thread and a process of its own for each measurement. Memory is the peak of the resident memory above what is
resident when the picture has been read and the network's recipe chosen; it includes the restored picture.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from harness import RETURN_MEMORY_AT_ONCE, fresh_process, parser, peak_growth, table, write
from twofold import api, zoo

MEGAPIXELS = (1, 3, 12)


def measure(name: str, megapixels: float) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = api.load(name)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    picture = torch.rand(1, 3, height, height * 4 // 3, generator=torch.Generator().manual_seed(0))
    options = {"kernel": torch.full((1, 1, 15, 15), 1 / 225)} if model.takes_kernel else {}
    model(picture[..., :256, :256].contiguous(), **options)  # chooses the recipe
    began = time.process_time()
    grown = peak_growth(lambda: model(picture, **options))
    return {"cpu_seconds": round(time.process_time() - began, 2), "bytes": grown}


def large_table(result: dict[str, Any]) -> str:
    """What photographs of 1, 3 and 12 megapixels take of a shipped model."""
    found = result["models"]
    sizes = list(next(iter(found.values())))
    body = [
        [f"`{name}`", *(f"{facts[n]['cpu_seconds']:.0f} s, {facts[n]['bytes'] / 2**30:.1f} GiB" for n in sizes)]
        for name, facts in found.items()
    ]
    return table(["model", *(f"{n} megapixels" if n != "1" else "1 megapixel" for n in sizes)], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "large": large_table(result),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--measure", nargs=2, metavar=("MODEL", "MEGAPIXELS"), help=argparse.SUPPRESS)
    asked = made.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure[0], float(asked.measure[1]))))
        return
    models: dict[str, dict[str, dict[str, float]]] = {}
    for name in zoo.cards():
        for megapixels in MEGAPIXELS:
            arguments = ("--measure", name, str(megapixels))
            found = fresh_process(__file__, *arguments, environment=RETURN_MEMORY_AT_ONCE)
            models.setdefault(name, {})[str(megapixels)] = json.loads(found)
            print(name, megapixels, found.strip(), flush=True)
            write(asked.json, {"models": models})


if __name__ == "__main__":
    main()
