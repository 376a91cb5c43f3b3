"""Makes a shipped model of a finished run: 16-bit weights and the card that describes them, into the package.

    python tools/cards.py runs/derain --data DATA
    python tools/cards.py runs/derain --data DATA --best      # that of the step that validated best
    python tools/cards.py derain --data DATA --again          # measures a shipped model once more, and renews its card
    python tools/cards.py derain --bundled                    # measures it on bundled photographs alone; needs no data
    python tools/cards.py derain --data DATA --self-ensemble  # what the mean over eight orientations adds

The numbers on the card are those of the stored weights, measured on the recipe's validation pairs by its protocol, in
plain float32 as `twofold evaluate` does: they should not depend on what is fastest on a machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from golden_cases import golden_psnr
from twofold import api, images, zoo
from twofold.contracts import Degradation, Sample
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.degrade.hadamard import OUTDOOR_HAZE, Haze, LowLight, Underwater
from twofold.files import write_text
from twofold.train import data as material
from twofold.train import reading
from twofold.train import recipe as recipes

WEIGHTS = Path(zoo.__file__).parent / "weights"


def origins(recipe: recipes.Recipe) -> list[str]:
    """Every folder that training saw, and which part of it."""
    sources = [*recipe.data.train, *(recipe.data.guidance or [])]
    return list(dict.fromkeys(origin for source in sources for origin in source.origins()))


DEGRADATIONS: dict[str, list[Degradation]] = {
    "haze": [Haze(), OUTDOOR_HAZE],
    "rain": [RainStreaks(), RainStreaks(density=(0.8, 0.8), strength=(0.7, 0.7))],
    "deconvolution": [Blur(CameraShake(size=25), GaussianNoise((level, level))) for level in (0.01, 0.05)],
    "lowlight": [LowLight(exposure=(low, low)) for low in (0.01, 0.1)],
    "underwater": [Underwater(), Underwater(distance=(8.0, 8.0))],
}
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def bundled(task: str) -> Iterator[Sample]:
    """Bundled photographs, degraded with fixed seeds as a model of the task has to undo it."""
    for seed, (photograph, degradation) in enumerate(product(PHOTOGRAPHS, DEGRADATIONS[task])):
        pixels = images.from_any(np.asarray(getattr(skimage.data, photograph)())).pixels[..., :320, :320]
        yield degradation(pixels, torch.Generator().manual_seed(seed))


def on_bundled(name: str, card: zoo.Card) -> dict[str, Any]:
    """What the card says of the bundled photographs, and of the cost."""
    exact, half = (api.load(name, device="cpu", precision=precision) for precision in ("exact", "bf16"))
    found: dict[str, Any] = {"golden_psnr": round(golden_psnr(name), 4)}
    if isinstance(exact.restorer, nn.Module):
        differences = []
        for sample in bundled(card.task):
            first, second = (model(sample.observed, kernel=sample.kernel).image.clamp(0, 1) for model in (exact, half))
            differences.append(255 * float((first - second).square().mean().sqrt()))
        found |= {"bf16_difference": round(max(differences), 4), "gigamacs": gigamacs(exact)}
    print(name, found, flush=True)
    return found


def gigamacs(model: api.Model) -> float:
    """Multiplications of convolutions and matrix products for one megapixel, in 10⁹."""
    side = 256
    observed = torch.rand(1, model.channels, side, side)
    kernel = torch.full((1, 1, 25, 25), 1 / 25**2) if model.takes_kernel else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.restorer(observed, kernel=kernel)
    return round(counter.get_total_flops() / 2 / side**2 / 1e3, 2)


def measured(
    weights: Path | str, recipe: recipes.Recipe, data: Path, *, self_ensemble: bool = False
) -> dict[str, dict[str, float]]:
    """By validation set: the number of pictures, PSNR and its interval, SSIM, those of the untouched pictures."""
    model = partial(api.load(weights, device="cpu", precision="exact"), self_ensemble=self_ensemble)
    numbers = {}
    for name, evaluation in material.held_out(model, recipe, data):
        summary = evaluation.summary()
        facts = {key: getattr(summary, key) for key in ("psnr", "ssim", "input_psnr", "input_ssim")}
        if summary.psnr_interval is not None:
            facts |= dict(zip(("psnr_low", "psnr_high"), summary.psnr_interval, strict=True))
        numbers[name] = {"pictures": summary.pictures, **{key: round(value, 4) for key, value in facts.items()}}
        print(name, numbers[name], flush=True)
    return numbers


def write(card: zoo.Card) -> None:
    write_text(WEIGHTS / f"{card.name}.json", card.model_dump_json(indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run, or with --again the name of a shipped model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--bundled", action="store_true", help="measure a shipped model on bundled photographs alone")
    parser.add_argument("--self-ensemble", action="store_true", help="measure what it adds to a shipped model")
    parser.add_argument("--method", default="", help="what the model is, and of which paper; else as before")
    parser.add_argument("--notes", default="", help="what a reader of the card should know besides")
    parser.add_argument("--best", action="store_true", help="of the step that validated best, and say so")
    parser.add_argument("--again", action="store_true", help="measure a shipped model once more")
    options = parser.parse_args()
    shipped = zoo.cards().get(str(options.run))
    if (options.bundled or options.again or options.self_ensemble) and shipped is None:
        parser.error(f"{options.run} is no shipped model: {', '.join(zoo.cards())}")
    if shipped is not None and options.bundled:
        write(shipped.model_copy(update=on_bundled(shipped.name, shipped)))
        return
    if options.data is None:
        parser.error("--data is needed: the folder that holds the validation sets")
    if shipped is not None and (options.again or options.self_ensemble):
        recipe = reading.read_recipe(shipped.recipe)
        numbers = measured(shipped.name, recipe, options.data, self_ensemble=options.self_ensemble)
        if options.self_ensemble:
            gains = {name: round(n["psnr"] - shipped.numbers[name]["psnr"], 4) for name, n in numbers.items()}
            write(shipped.model_copy(update={"self_ensemble": gains}))
        else:
            write(shipped.model_copy(update={"numbers": numbers} | on_bundled(shipped.name, shipped)))
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
    former = zoo.cards().get(recipe.name)
    card = zoo.Card(
        name=recipe.name,
        task=recipe.task,
        about=recipe.about,
        method=options.method or (former.method if former else ""),
        recipe=recipe.name,
        model=spec,
        parameters=sum(p.numel() for p in restorer.parameters()),
        bytes=weights.stat().st_size,
        sha256=digest,
        data=origins(recipe),
        terms=recipe.terms,
        command=f"twofold train {recipe.name} --data DATA",
        seed=recipe.seed,
        hours=result["hours"],
        machine=result["machine"],
        protocol=recipe.protocol,
        numbers=numbers,
        golden_psnr=0.0,  # measured when the weights are in place
        notes=notes,
    )
    shutil.copy(weights, WEIGHTS)
    write(card)
    write(card.model_copy(update=on_bundled(card.name, card)))


if __name__ == "__main__":
    main()
