"""The searched models that are shipped, each trained again in full with one thing of the search taken back.

    python benchmarks/controls.py --data DATA --runs runs/controls --json benchmarks/results/controls.json

`all ones` is the recipe's network with every weight of its loss at 1, `3-C` its loss with 3x3 convolutions everywhere,
`U-Net` its loss with the U-Net of `derain`. Everything else is the recipe's, seed and batches too. A control counts
with the step that validated best; intervals (95 %) are over the pictures, so that they say nothing of other seeds. A
run takes 10 to 40 minutes on one core and goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import twofold
from harness import interval_of, parser, read, span, table, write
from twofold import specs, zoo
from twofold.contracts import Restored
from twofold.evaluate import Evaluation, evaluate
from twofold.metrics import PROTOCOLS
from twofold.space.genotype import uniform_genotype
from twofold.train import data as material
from twofold.train import reading
from twofold.train import recipe as recipes
from twofold.train.run import train

RECIPES = ("lowlight", "underwater-hnu", "dehaze-hnu")
WEIGHTS = Path(zoo.__file__).parent / "weights"
VARIANTS = ("all ones", "3-C", "U-Net")


def variant(name: str, change: str) -> recipes.Recipe:
    """A shipped recipe with one thing changed."""
    tree = reading.tree_of(name)
    if change == "all ones":
        weights = dict.fromkeys(tree["loss"]["weights"], 1.0)
        tree["loss"] = {**tree["loss"], "weights": weights}
    elif change == "U-Net":
        tree["model"]["net"] = specs.UNetSpec().model_dump()
    else:
        groups = {group: list(names) for group, names in uniform_genotype(change, change).groups.items()}
        tree["model"]["net"]["genotype"] = {"groups": groups, "ops_per_branch": 4}
    return reading.parse(tree, f"{name}, {change}")


@torch.no_grad()
def scores(model: twofold.api.Model, recipe: recipes.Recipe, data: Path) -> dict[str, Evaluation]:
    """By validation set."""

    def restored(image: torch.Tensor, kernel: torch.Tensor | None = None) -> Restored:
        return Restored(model(image).image)

    return {
        name: evaluate(restored, cases, PROTOCOLS[recipe.protocol])
        for name, cases in material.validation(recipe, data).items()
    }


def mean_scores(evaluation: Evaluation) -> dict[str, float]:
    summary = evaluation.summary()
    return {"psnr": round(summary.psnr, 3), "ssim": round(summary.ssim, 4)}


def controls_table(result: dict[str, Any]) -> str:
    """The shipped searched models, and their recipes trained in full with one thing of the search taken back."""
    found = result
    changes = list(
        dict.fromkeys(change for facts in found.values() for change in facts if change not in ("found", "sha256"))
    )
    body = []
    for name, facts in found.items():
        for part, ours in facts["found"].items():
            cells = [f"{ours['psnr']:.2f} / {ours['ssim']:.3f}"]
            for change in changes:
                if change not in facts:
                    cells += ["", ""]
                    continue
                other = facts[change]["sets"][part]
                lead = f"{other['lead']:+.2f} ({span(other['interval'], sign='+')})"
                cells += [f"{other['psnr']:.2f} / {other['ssim']:.3f}", lead]
            body.append([f"`{name}`, {part}", *cells])
    head = [cell for change in changes for cell in (change, "found leads by (95 %)")]
    return table(["PSNR / SSIM", "found", *head], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "controls": controls_table(result),
    }


def lead(found: Evaluation, other: Evaluation) -> dict[str, Any]:
    """Mean PSNR difference in dB, paired by picture, with its interval."""
    leads = [a.psnr - b.psnr for a, b in zip(found.rows, other.rows, strict=True)]
    return {"lead": round(sum(leads) / len(leads), 3), "interval": interval_of(leads)}


def main() -> None:
    made = parser(__doc__, data="lowlight, underwater and haze")
    made.add_argument("--runs", type=Path, default=Path("runs/controls"), help="where the runs are kept")
    made.add_argument("--recipe", nargs="+", choices=RECIPES, default=list(RECIPES))
    made.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = made.parse_args()
    results = read(options.json)
    for change in options.variant:
        for name in options.recipe:
            recipe, folder = variant(name, change), options.runs / f"{name}-{change.replace(' ', '-')}"
            facts = train(recipe, options.data, folder)
            found = scores(twofold.load(name, precision="exact"), recipe, options.data)
            control = scores(twofold.load(folder / "best.safetensors", precision="exact"), recipe, options.data)
            entry = results.setdefault(name, {})
            sha256 = hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()
            if entry.get("sha256") != sha256:  # controls of another shipped model say nothing of this one
                entry.clear()
            entry["sha256"] = sha256
            entry["found"] = {part: mean_scores(evaluation) for part, evaluation in found.items()}
            entry[change] = {
                "parameters": sum(p.numel() for p in recipe.model.build().parameters()),
                "steps": json.loads((folder / "best.json").read_text())["steps"],
                "hours": facts["hours"],
                "seed": recipe.seed,
                "sets": {part: mean_scores(control[part]) | lead(found[part], control[part]) for part in control},
            }
            print(json.dumps({name: entry}, indent=1), flush=True)
            write(options.json, results)


if __name__ == "__main__":
    main()
