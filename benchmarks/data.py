"""How fast training material is made: crops from the cache, whole samples, and their share of a training step.

CPU time of one thread, the least of several rounds. Pictures are noise of BSDS500's size, which costs what photographs
cost once they are decoded; decoding itself is timed on scikit-image's photographs.

    python benchmarks/data.py --json benchmarks/results/data.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from skimage import data

from twofold import images
from twofold.data.batches import Batches
from twofold.data.crops import CropCache, as_floats, plan, read_bytes
from twofold.data.sources import Mixture, PairCrops, Source, SyntheticCrops
from twofold.degrade.additive import GaussianNoise, HarvestedRain, RainStreaks, rain_region
from twofold.files import write_text
from twofold.train import recipe as recipes
from twofold.train.run import build_restorer, build_scheme, machine_of


def seconds(work: Callable[[int], object], times: int, rounds: int) -> float:
    """CPU seconds of one call of `work(i)`: the least of all rounds."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        for i in range(times):
            work(i)
        best = min(best, (time.process_time() - began) / times)
    return best


def decoding(rounds: int) -> dict[str, float]:
    """Photographs of 512x512 that one core decodes in a second."""
    photo = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None] / 255
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".png", ".jpg", ".webp"):
            path = Path(folder) / f"photo{suffix}"
            images.write(path, images.Picture(photo))
            found[suffix[1:]] = round(1 / seconds(lambda i, path=path: read_bytes(path), 2, rounds), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rounds, generator = asked.rounds, torch.Generator().manual_seed(0)
    cache = CropCache(list(torch.randint(0, 256, (100, 3, 321, 481), dtype=torch.uint8, generator=generator)))
    layers = list(torch.randint(0, 120, (48, 3, 320, 480), dtype=torch.int16, generator=generator))

    def crops(i: int) -> object:
        return as_floats([cache.crop(100, plan(generator)) for _ in range(18)])

    recipe = recipes.read("derain")
    size = recipe.data.crop
    harvested, pairs = SyntheticCrops(cache, HarvestedRain(layers), size), PairCrops(cache, cache, size, rain_region)
    sources: dict[str, Source] = {
        "pairs, rain region": pairs,
        "harvested rain": harvested,
        "drawn rain": SyntheticCrops(cache, RainStreaks(), size),
        "noise": SyntheticCrops(cache, GaussianNoise(), size),
        "mixture of derain": Mixture([harvested, pairs], [0.8, 0.2]),
    }
    batch = recipe.data.batch
    samples = {}
    for name, source in sources.items():
        made = Batches(source, batch, ahead=False)
        samples[name] = round(batch / seconds(made, 4, rounds))

    machine, place, _ = machine_of(recipe.precision, "cpu")
    restorer = build_restorer(recipe).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    scheme = build_scheme(recipe, restorer, machine)
    made = Batches(sources["mixture of derain"], batch, ahead=False)
    sample = made(0)
    step = seconds(lambda i: scheme.step([sample], [sample]), 1, rounds)
    loading = 2 * seconds(made, 4, rounds)  # a guided turn draws two batches
    result = {
        "summary": {
            "crops_per_second_per_core": round(18 / seconds(crops, 20, rounds)),
            "loading_share_of_a_step": round(loading / (loading + step), 4),
        },
        "samples_per_second_per_core": {"crop": size, **samples},
        "derain_turn": {"step_seconds": round(step, 4), "loading_seconds": round(loading, 4)},
        "decoded_512x512_per_second_per_core": decoding(rounds),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(result, indent=1))
    if asked.json:
        write_text(asked.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
