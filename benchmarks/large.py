"""What a large photograph takes: CPU seconds and memory of every shipped model, whole pictures of 1 to 12 megapixels.

    python benchmarks/large.py --json benchmarks/results/large.json

One thread and a process of its own for each measurement. Memory is the peak of the resident memory above what is
resident when the picture has been read and the network's recipe chosen; it includes the restored picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from twofold import api, zoo
from twofold.files import write_text

MEGAPIXELS = (1, 3, 12)


def measure(name: str, megapixels: float) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = api.load(name)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    picture = torch.rand(1, 3, height, height * 4 // 3, generator=torch.Generator().manual_seed(0))
    told = {"kernel": torch.full((1, 1, 15, 15), 1 / 225)} if model.takes_kernel else {}
    model(picture[..., :256, :256].contiguous(), **told)  # chooses the recipe
    Path("/proc/self/clear_refs").write_text("5")  # forgets the former peak
    before, began = resident("VmRSS"), time.process_time()
    model(picture, **told)
    return {"cpu_seconds": round(time.process_time() - began, 2), "bytes": resident("VmHWM") - before}


def resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "MEGAPIXELS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure[0], float(asked.measure[1]))))
        return
    # Every large tensor is a mapping of its own and goes back at once, so that what is resident is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result: dict[str, object] = {
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "load": os.getloadavg()[0],
    }
    models: dict[str, dict[str, dict[str, float]]] = {}
    for name in zoo.cards():
        for megapixels in MEGAPIXELS:
            command = [sys.executable, __file__, "--measure", name, str(megapixels)]
            found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            models.setdefault(name, {})[str(megapixels)] = json.loads(found)
            print(name, megapixels, found.strip(), flush=True)
            if asked.json:
                write_text(asked.json, json.dumps({**result, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()
