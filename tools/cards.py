"""Makes a shipped model of a finished run: 16-bit weights and the card that describes them, into the package.

    python tools/cards.py runs/derain --data DATA
    python tools/cards.py runs/derain --data DATA --best      # that of the step that validated best
    python tools/cards.py derain --data DATA --again          # measures a shipped model once more, and renews its card
    python tools/cards.py derain --precision                  # measures bfloat16 against float32 alone; needs no data

The numbers on the card are those of the stored weights, measured on the recipe's validation pairs by its protocol, in
plain float32 as `twofold evaluate` does: they should not depend on what is fastest on a machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import skimage.data
import torch

from twofold import api, images, zoo
from twofold.contracts import Degradation, Restored
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.degrade.hadamard import OUTDOOR_HAZE, Haze, LowLight, Underwater
from twofold.evaluate import evaluate
from twofold.files import write_text
from twofold.metrics import PROTOCOLS
from twofold.specs import ClassicalSpec
from twofold.train import data as material
from twofold.train import reading
from twofold.train import recipe as recipes

WEIGHTS = Path(zoo.__file__).parent / "weights"


def origins(recipe: recipes.Recipe) -> list[str]:
    """Every folder that training saw, and which part of it."""
    sources = [*recipe.data.train, *(recipe.data.guidance or [])]
    return list(dict.fromkeys(origin for source in sources for origin in source.origins()))


TASKS = {"haze": "dehaze", "deconvolution": "deblur", "lowlight": "lowlight", "underwater": "underwater-hnu"}
"""The recipe on whose validation sets a classical model of a task is measured."""

DEGRADATIONS: dict[str, list[Degradation]] = {
    "haze": [Haze(), OUTDOOR_HAZE],
    "rain": [RainStreaks(), RainStreaks(density=(0.8, 0.8), strength=(0.7, 0.7))],
    "deconvolution": [Blur(CameraShake(size=25), GaussianNoise((level, level))) for level in (0.01, 0.05)],
    "lowlight": [LowLight(exposure=(low, low)) for low in (0.01, 0.1)],
    "underwater": [Underwater(), Underwater(distance=(8.0, 8.0))],
}
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def bf16_difference(name: str, task: str) -> float:
    """Largest root mean square difference from float32, in grey levels, over bundled photographs that are degraded."""
    exact, half = (api.load(name, device="cpu", precision=precision) for precision in ("exact", "bf16"))
    worst = 0.0
    for seed, (photograph, degradation) in enumerate(product(PHOTOGRAPHS, DEGRADATIONS[task])):
        pixels = images.from_any(np.asarray(getattr(skimage.data, photograph)())).pixels[..., :320, :320]
        sample = degradation(pixels, torch.Generator().manual_seed(seed))
        first, second = (model(sample.observed, kernel=sample.kernel).image.clamp(0, 1) for model in (exact, half))
        worst = max(worst, 255 * float((first - second).square().mean().sqrt()))
    print(name, "bfloat16 differs by", round(worst, 4), "grey levels", flush=True)
    return round(worst, 4)


def measured(weights: Path | str, recipe: recipes.Recipe, data: Path) -> dict[str, dict[str, float]]:
    """By validation set: the number of pictures, PSNR and SSIM, those of the untouched pictures."""
    model = api.load(weights, device="cpu", precision="exact")
    numbers = {}
    for name, cases in material.validation(recipe, data).items():
        summary = evaluate(
            lambda image, kernel=None: Restored(model(image, kernel=kernel).image), cases, PROTOCOLS[recipe.protocol]
        ).summary()
        facts = {key: getattr(summary, key) for key in ("psnr", "ssim", "input_psnr", "input_ssim")}
        numbers[name] = {"pictures": summary.pictures, **{key: round(value, 4) for key, value in facts.items()}}
        print(name, numbers[name], flush=True)
    return numbers


def write(card: zoo.Card) -> None:
    write_text(WEIGHTS / f"{card.name}.json", card.model_dump_json(indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run, or with --again the name of a shipped model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--precision", action="store_true", help="measure bfloat16 against float32, and renew the card")
    parser.add_argument("--notes", default="", help="what a reader of the card should know besides")
    parser.add_argument("--best", action="store_true", help="of the step that validated best, and say so")
    parser.add_argument("--again", action="store_true", help="measure a shipped model once more")
    options = parser.parse_args()
    if options.precision:
        card = zoo.cards()[str(options.run)]
        write(card.model_copy(update={"bf16_difference": bf16_difference(card.name, card.task)}))
        return
    if options.data is None:
        parser.error("--data is needed: the folder that holds the validation sets")
    if options.again:
        card = zoo.cards()[str(options.run)]
        classical = isinstance(card.model, ClassicalSpec)
        recipe = reading.read_recipe(TASKS[card.task] if classical else card.name)
        write(card.model_copy(update={"numbers": measured(card.name, recipe, options.data)}))
        return
    recipe = reading.read_recipe(options.run / "recipe.yaml")
    result = json.loads((options.run / "result.json").read_text())
    spec, state = zoo.read_weights(options.run / ("best.safetensors" if options.best else "model.safetensors"))
    notes = options.notes
    if options.best:
        steps = json.loads((options.run / "best.json").read_text())["steps"]
        notes += f" Of the step that did best on the pictures named here, {steps:,} of {recipe.steps:,}."
    restorer = spec.build()
    restorer.load_state_dict(state)
    weights = options.run / f"{recipe.name}.safetensors"  # copied when nothing can fail any more
    digest = zoo.save_restorer(weights, restorer, spec, half=True)
    numbers = measured(weights, recipe, options.data)
    card = zoo.Card(
        name=recipe.name,
        task=recipe.task,
        about=recipe.about,
        model=spec,
        parameters=sum(p.numel() for p in restorer.parameters()),
        bytes=weights.stat().st_size,
        sha256=digest,
        data=origins(recipe),
        terms=recipe.terms,
        command=f"twofold train {recipe.name} --data DATA",
        seed=recipe.seed,
        hours=result["hours"],
        protocol=recipe.protocol,
        numbers=numbers,
        notes=notes,
    )
    shutil.copy(weights, WEIGHTS)
    write(card)
    write(card.model_copy(update={"bf16_difference": bf16_difference(card.name, card.task)}))


if __name__ == "__main__":
    main()
