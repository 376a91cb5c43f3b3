"""Cost of training data on one core: decoding, crops, degradations, and their share of a training step.

    python benchmarks/data.py --json benchmarks/results/data.json

Photographs that come with scikit-image, each ten times in memory; harvested rain is harvested from drawn rain.
Times are CPU seconds on one thread, the best of interleaved rounds. The step is the guided one of the shipped `derain`
recipe: a guide step and a network step, each on its own batch, so the material of both is counted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from skimage import data as photographs
from torch import Tensor

from harness import cpu_seconds, parser, write
from twofold import images
from twofold.data.batches import Batches
from twofold.data.crops import CropCache, as_floats, plan, read_all
from twofold.data.sources import PairCrops, Source, SourceMixture, SyntheticCrops
from twofold.degrade.additive import GaussianNoise, HarvestedRain, RainStreaks, rain_region, streak_layers
from twofold.train import reading
from twofold.train.learner import machine_of
from twofold.train.run import build_restorer, build_scheme

CROP, BATCH = 112, 16
COPIES = 10


def pictures() -> list[Tensor]:
    shots = (photographs.astronaut, photographs.chelsea, photographs.coffee, photographs.rocket)
    files = [torch.from_numpy(shot().copy()).permute(2, 0, 1).contiguous() for shot in shots]
    return [file.clone() for _ in range(COPIES) for file in files]


def sources(clean: list[Tensor]) -> dict[str, Source]:
    cache = CropCache(clean)
    floats = [picture[None] / 255 for picture in clean]
    rained = [RainStreaks()(p, torch.Generator().manual_seed(i)).observed for i, p in enumerate(floats)]
    harvested = SyntheticCrops(cache, HarvestedRain(streak_layers(zip(rained, floats, strict=True))), CROP)
    pairs = PairCrops(CropCache([(r[0] * 255).round().byte() for r in rained]), cache, CROP, rain_region)
    return {
        "derain recipe": SourceMixture([harvested, pairs], [0.8, 0.2]),
        "real pairs": pairs,
        "harvested rain": harvested,
        "drawn light rain": SyntheticCrops(cache, RainStreaks(density=(0.1, 0.1)), CROP),
        "drawn rain": SyntheticCrops(cache, RainStreaks(), CROP),
        "drawn heavy rain": SyntheticCrops(cache, RainStreaks(density=(0.8, 0.8)), CROP),
        "noise": SyntheticCrops(cache, GaussianNoise(), CROP),
    }


def guided_step(source: Source) -> Callable[[], object]:
    recipe = reading.read_recipe("derain")
    machine = machine_of(recipe.precision, "cpu")
    torch.manual_seed(0)
    scheme = build_scheme(recipe, build_restorer(recipe).to(memory_format=torch.channels_last), machine)
    batches = Batches(source, BATCH, ahead=False)
    return partial(scheme.step, [batches(0)], [batches(1)])


def cut(cache: CropCache, count: int, size: int) -> None:
    """`count` crops as float batches of 16."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count // 16):
        as_floats([cache.crop(size, plan(generator)) for _ in range(16)])


def batch_by_batch(source: Source, count: int) -> Callable[[], None]:
    """Makes `count` batches, always the same ones."""
    batches = Batches(source, BATCH, ahead=False)

    def make() -> None:
        for n in range(count):
            batches(n)

    return make


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7)
    a = options.parse_args()
    torch.set_num_threads(1)

    clean = pictures()
    material = sources(clean)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.png" for i in range(len(clean) // COPIES)]
        for file, picture in zip(files, clean, strict=False):
            images.write(file, images.Picture(picture[None] / 255))
        work: dict[str, Callable[[], object]] = {
            "decode": partial(read_all, files),
            "crops": partial(cut, CropCache(clean), 1024, 100),
            "crops, rotated": partial(cut, CropCache(clean, rotate=True), 1024, 100),
            "step": guided_step(material["derain recipe"]),
        }
        work |= {name: batch_by_batch(source, 8) for name, source in material.items()}
        seconds = cpu_seconds(work, a.rounds)

    step = seconds["step"]
    milliseconds = {name: 1000 * seconds[name] / 8 for name in material}
    result = {
        "summary": {
            "crops_per_second": 1024 / seconds["crops"],
            "loading_share_of_step": 2 * milliseconds["derain recipe"] / 1000 / step,
            "drawn_rain_share_of_step": 2 * milliseconds["drawn rain"] / 1000 / step,
        },
        "crops_per_second_rotated": 1024 / seconds["crops, rotated"],
        "pictures_decoded_per_second": len(files) / seconds["decode"],
        "guided_step_milliseconds": 1000 * step,
        "batch_milliseconds": milliseconds,
        "batch": f"{BATCH} crops of {CROP}x{CROP}",
    }
    print(json.dumps(result, indent=2))
    write(a.json, result)


if __name__ == "__main__":
    main()
