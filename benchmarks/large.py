"""What a large photograph takes: CPU seconds and memory of every shipped model, pictures of 1, 12 and 50 megapixels.

    python benchmarks/large.py --json benchmarks/results/large.json

One thread and a process of its own for each measurement. A picture in more than four tiles ends after the fourth, and
its seconds are those tiles' share: tiles are equally large, and the result is allocated with the first. `bytes` is the
peak of the resident memory above what is resident when the picture has been read and the network's recipe chosen; it
includes the restored picture. `resident` is the peak of the whole process, with torch and the picture. A model that
sees every picture whole is computed to its end. `share` of the tiles was computed. `--models` measures some, and
keeps the others' numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from harness import RETURN_MEMORY_AT_ONCE, fresh_process, largest_resident, parser, peak_growth, read, table, write
from twofold import api, zoo

MEGAPIXELS = (1, 12, 50)
TILES = 4


class Enough(Exception):
    """So many tiles were measured."""


def measure(name: str, megapixels: float) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = api.load(name, runtime="torch")
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    picture = torch.rand(1, 3, height, height * 4 // 3, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"kernel": torch.full((1, 1, 15, 15), 1 / 225)} if model.takes_kernel else {}
    model(picture[..., :256, :256].contiguous(), **options)  # chooses the recipe
    seen = [0.0, 0.0, 1.0]  # when the first tile began, when the last one ended, the share of the tiles between

    def progress(done: int, tiles: int) -> None:
        seen[1:] = time.process_time(), max(done, 1) / tiles
        if done == 0:
            seen[0] = seen[1]
        elif done == TILES < tiles:
            raise Enough

    def restore() -> None:
        try:
            model(picture, progress=progress, **options)
        except Enough:
            return

    began = time.process_time()
    grown = peak_growth(restore)
    seconds = seen[0] - began + (seen[1] - seen[0]) / seen[2]
    return {
        "cpu_seconds": round(seconds, 2),
        "bytes": grown,
        "resident": largest_resident(),
        "share": round(seen[2], 3),
    }


def large_table(result: dict[str, Any]) -> str:
    """What photographs of 1, 12 and 50 megapixels take of a shipped model."""
    found = result["models"]
    sizes = [str(n) for n in MEGAPIXELS]
    body = [
        [
            f"`{name}`",
            *(f"{f['cpu_seconds']:.0f} s, {f['bytes'] / 2**30:.1f} GiB" if (f := facts.get(n)) else "" for n in sizes),
            f"{facts[sizes[-1]]['resident'] / 2**30:.1f} GiB" if sizes[-1] in facts else "",
        ]
        for name, facts in found.items()
    ]
    heads = [f"{n} megapixels" if n != "1" else "1 megapixel" for n in sizes]
    return table(["model", *heads, f"process at {sizes[-1]}"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "large": large_table(result),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--models", help="names with commas between; without it all networks")
    made.add_argument("--measure", nargs=2, metavar=("MODEL", "MEGAPIXELS"), help=argparse.SUPPRESS)
    asked = made.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure[0], float(asked.measure[1]))))
        return
    networks = [name for name, card in zoo.cards().items() if card.parameters]
    models = {name: facts for name, facts in read(asked.json).get("models", {}).items() if name in zoo.cards()}
    for name in asked.models.split(",") if asked.models else networks:
        models[name] = {}
        for megapixels in MEGAPIXELS:
            arguments = ("--measure", name, str(megapixels))
            found = fresh_process(__file__, *arguments, environment=RETURN_MEMORY_AT_ONCE)
            models[name][str(megapixels)] = json.loads(found)
            print(name, megapixels, found.strip(), flush=True)
            write(asked.json, {"models": dict(sorted(models.items()))})


if __name__ == "__main__":
    main()
