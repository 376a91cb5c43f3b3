"""The experiments of paper A (Gao et al. 2022) as one command: deconvolution with and without guidance, three ways of
training it, wrong and uneven noise levels, and haze with and without depth.

    python benchmarks/paper_a.py --data DATA --json benchmarks/results/paper_a.json
    python benchmarks/paper_a.py --data DATA --json paper_a_full.json --full --device cuda \
        --pictures deblur/Levin09blurdata --kernels deblur/Levin09blurdata

The first is small (narrow networks, some hundred steps, an hour of one core) and answers which signs hold; `--part`
names a part of it: deblur and haze train, model judges a model that is there, truths trains guides alone on maps that
are not accurate. The second is the paper's own schedule,
200,000 steps a training. What is compared starts from the same weights and sees the same batches in the same order;
trained on BSDS500 with `kernels20`, tested on other pictures with other kernels. Every training that is done stands in
the file, and is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from skimage import data as photographs
from torch import Tensor, nn

import paper_a_claims
import paper_a_truths
from harness import binned, figure, parser, read, write
from paper_a_claims import ASSUMED, LEVELS, SUMMARIES, TRUE, UNEVEN, WAYS, Runs, percent, summary_of_model
from twofold import images, zoo
from twofold.contracts import Restored, Sample
from twofold.data.crops import as_floats, read_bytes
from twofold.data.folders import Folder
from twofold.degrade import additive
from twofold.degrade.additive import GaussianNoise
from twofold.degrade.blur import Blur, CameraShake, Given, read_kernels
from twofold.metrics import PROTOCOLS
from twofold.restorers.deconvolution import HyperLaplacian, Wiener
from twofold.sheets import contact_sheet
from twofold.train import data as material
from twofold.train import reading
from twofold.train import recipe as recipes
from twofold.train.learner import machine_of
from twofold.train.run import build_scheme

CORNERS = (0.01, 0.02, 0.03, 0.04)
TYPICAL = {"deblur": 0.03, "haze": 0.0}
"""The constant map of the way `none`."""

RECIPES = {
    "deblur": ("paper-a-deconvolution-small", "paper-a-deconvolution"),
    "haze": ("paper-a-haze-small", "paper-a-sots-indoor"),
}
"""Small, and with --full."""
PARTS = (*WAYS, "model", "truths")
STEPS = {"deblur": 800, "haze": 400}
"""ω-updates of a small training."""


class Unguided(nn.Module):
    """A network whose map is the same number everywhere and always: as large as the guided one, without information."""

    def __init__(self, net: nn.Module, level: float) -> None:
        super().__init__()
        self.net, self.level = net, level
        self.multiple = net.multiple

    def forward(self, observed: Tensor, *, guidance: Tensor | None = None, kernel: Tensor | None = None) -> Restored:
        constant = torch.full_like(observed[:, :1], self.level)
        return Restored(self.net(observed, constant) if kernel is None else self.net(observed, constant, kernel))


def recipe_of(name: str, way: str, layers: int, seed: int, *, steps: int | None = None) -> recipes.Recipe:
    """steps: ω-updates, None for the recipe's. Frozen training spends as many again on θ before."""
    recipe = reading.read_recipe(name, [f"seed={seed}"])
    steps = steps or recipe.steps
    scheme: dict[str, Any] = {"kind": "supervised" if way == "none" else way}
    if way == "frozen":
        scheme, steps = {"kind": "frozen", "pretraining": 0.5}, 2 * steps
    tree = recipe.model_dump() | {"scheme": scheme, "steps": steps}
    if layers:
        tree["model"]["net"]["layers"] = layers
    return reading.parse(tree)


def trained(part: str, way: str, recipe: recipes.Recipe, root: Path, device: str) -> tuple[nn.Module, dict[str, Any]]:
    """The restorer, and what its training cost and showed: CPU seconds, and f and g in forty means over the steps."""
    machine = machine_of(recipe.precision, device)
    torch.manual_seed(recipe.seed)
    restorer: nn.Module = recipe.model.build()
    if way == "none":
        restorer = Unguided(restorer.net, TYPICAL[part])  # type: ignore[arg-type]
    restorer = machine.place(restorer)
    scheme = build_scheme(recipe, restorer, machine, root)
    draws = material.batches(recipe, root, machine)
    losses: dict[str, list[float]] = {"restoration": [], "guidance": []}
    began = time.process_time()
    for n in range(recipe.steps):
        for name, loss in scheme.step(*draws(n)).items():
            losses[name].append(loss)
    facts: dict[str, Any] = {"cpu_seconds": round(time.process_time() - began, 1)}
    facts["curves"] = {name: binned(values) for name, values in losses.items() if values}
    return restorer.eval(), facts


# Deconvolution.


def degraded(asked: argparse.Namespace, noise: Callable[[], GaussianNoise]) -> list[Sample]:
    """The test pictures, cut to 256 pixels, each with a kernel of its own; with --full whole, and each with each."""
    files, kernels = Folder(asked.pictures).files(asked.data), read_kernels(asked.data / asked.kernels)
    couples = [(file, kernel) for file in files for kernel in kernels]
    if not asked.full:
        couples = [(file, kernels[n % len(kernels)]) for n, file in enumerate(files)]
    samples = []
    for number, (file, kernel) in enumerate(couples):
        clean = as_floats([read_bytes(file, channels=1)])
        if not asked.full:
            top, left = ((side - 256) // 2 for side in clean.shape[-2:])
            clean = clean[..., top : top + 256, left : left + 256]
        samples.append(Blur(Given((kernel,)), noise())(clean, torch.Generator().manual_seed(number)))
    return samples


def uneven(generator: torch.Generator, level: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Four quadrants of 1, 2, 3 and 4 %, as in Fig. 6."""
    corners = torch.tensor(CORNERS).view(1, 1, 2, 2)
    return nn.functional.interpolate(corners, size=size, mode="nearest")


def constant(level: float) -> Callable[[Sample], Tensor]:
    return lambda sample: torch.full_like(sample.observed[:, :1], level)


@torch.no_grad()
def score(restorer: Any, samples: Sequence[Sample], rule: Callable[[Sample], Tensor] | None = None) -> dict[str, Any]:
    """Means over the pictures, protocol `grey`, and every picture's PSNR. rule: makes the map that is given; without
    it the guide draws.
    """
    rows, device = [], next(restorer.parameters()).device if isinstance(restorer, nn.Module) else torch.device("cpu")
    for sample in samples:
        assert sample.kernel is not None
        assert sample.guidance is not None
        given = None if rule is None else rule(sample).to(device)
        restored = restorer(sample.observed.to(device), guidance=given, kernel=sample.kernel.to(device))
        found = PROTOCOLS["grey"].score(restored.image.float().cpu(), sample.clean)
        rows.append({"psnr": found.psnr.item(), "ssim": found.ssim.item()})
        if given is None and restored.guidance is not None:
            level = restored.guidance.float().cpu()
            rows[-1] |= {
                "g": (level - sample.guidance).square().mean().item(),
                "level": level.mean().item(),
                "deviation": level.std().item(),
            }
    means = {key: float(f"{sum(row[key] for row in rows) / len(rows):.5g}") for key in rows[0]}
    return {**means, "pictures": [round(row["psnr"], 3) for row in rows]}


def deblurred(restorer: nn.Module, way: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Every level; of the guided way also with given, wrong and uneven levels."""
    even = {level: degraded(asked, lambda at=level: GaussianNoise((at, at))) for level in LEVELS}  # type: ignore[misc]
    found: dict[str, Any] = {"levels": {percent(level): score(restorer, even[level]) for level in LEVELS}}
    if way != "guided":
        return found

    def drawn(sample: Sample) -> Tensor:
        return restorer(sample.observed.to(place), kernel=sample.kernel.to(place)).guidance  # type: ignore[union-attr,no-any-return]

    place = next(restorer.parameters()).device
    quarters = degraded(asked, lambda: GaussianNoise((0.0, 1.0), uneven))
    mean_power = sum(level**2 for level in CORNERS) / len(CORNERS)
    rules = (
        drawn,
        lambda sample: torch.full_like(sample.observed, float(drawn(sample).mean())),
        lambda sample: torch.full_like(sample.observed, float(drawn(sample).square().mean().sqrt())),
        lambda sample: sample.guidance,
        constant(sum(CORNERS) / len(CORNERS)),
        constant(mean_power**0.5),
    )
    found["told"] = {percent(level): score(restorer, even[level], constant(level)) for level in LEVELS}
    found["assumed"] = {percent(level): score(restorer, even[TRUE], constant(level)) for level in ASSUMED}
    found["uneven"] = {name: score(restorer, quarters, rule) for name, rule in zip(UNEVEN, rules, strict=True)}
    return found


def classical(asked: argparse.Namespace) -> dict[str, Any]:
    """What methods without weights make of 3 % of noise: with their own estimate of it, and with wrong levels."""
    rivals: dict[str, Any] = {"Wiener": Wiener(), "hyper-Laplacian": HyperLaplacian()}
    samples = degraded(asked, lambda: GaussianNoise((TRUE, TRUE)))
    return {
        name: {
            "estimated": score(method, samples),
            "assumed": {percent(level): score(method, samples, constant(level)) for level in ASSUMED},
        }
        for name, method in rivals.items()
    }


@torch.no_grad()
def maps(restorer: nn.Module, path: Path) -> None:
    """The layouts of Fig. 6 on a photograph: observed, true map, estimated map, restored. White is 5 % of noise."""
    clean = torch.from_numpy(photographs.camera()[None, None, 64:356, 96:388].copy()) / 255
    kernel = CameraShake(size=25, extent=(15.0, 15.0))(torch.Generator().manual_seed(3))
    halves = torch.tensor([0.01, 0.02]).view(1, 1, 1, 2)
    layouts: list[additive.NoiseLayout] = [
        lambda generator, level, size: torch.full((1, 1, *size), 0.015),
        lambda generator, level, size: nn.functional.interpolate(halves, size=size, mode="nearest"),
        uneven,
    ]
    rows, place = [], next(restorer.parameters()).device
    for layout in layouts:
        noise = GaussianNoise((0.0, 1.0), layout)
        sample = Blur(Given((kernel,)), noise)(clean, torch.Generator().manual_seed(0))
        assert sample.kernel is not None
        assert sample.guidance is not None
        restored = restorer(sample.observed.to(place), kernel=sample.kernel.to(place))
        rows.append([sample.observed, sample.guidance / 0.05, restored.guidance.float() / 0.05, restored.image.float()])
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, images.Picture(contact_sheet(["observed", "true map", "estimated map", "restored"], rows)))


def draw_curves(runs: Runs, path: Path) -> None:
    """f and g over the steps of the three ways of training, first seed."""
    drawing, axes = figure(2, (4.5, 3.2))
    chosen = [run for run in runs if run["layers"] == 9 and run["seed"] == 0 and run["way"] != "none"]
    for run in chosen:
        for axis, name in zip(axes, ("restoration", "guidance"), strict=True):
            values = run["curves"][name]
            axis.semilogy([(i + 0.5) / len(values) for i in range(len(values))], values, label=run["way"])
    axes[1].axhline(0.04**2 / 12, color="grey", linestyle=":", label="best constant map")
    for axis, title in zip(
        axes, ("f, mean squared error of the picture", "g, mean squared error of the map"), strict=True
    ):
        axis.set(title=title, xlabel="share of the updates of that half")
        axis.legend(frameon=False)
    drawing.savefig(path, dpi=110)


def hazed(restorer: nn.Module, recipe: recipes.Recipe, root: Path) -> dict[str, Any]:
    """Means over the validation sets of the recipe, `{set: {psnr, ssim, input_psnr, input_ssim}}`."""
    found: dict[str, dict[str, float]] = {}
    for name, value in material.scores(restorer, material.validation(recipe, root), recipe).items():
        dataset, fact = name.rsplit("/", 1)
        found.setdefault(dataset, {})[fact] = round(value, 4)
    return found


def papers() -> dict[str, dict[str, float]]:
    """The paper's PSNR by method and setting: Levin's and Sun's pictures, SOTS."""
    wanted = {"Levin": "", "Sun": "Sun ", "Sun-misjudged": "Sun ", "SOTS-indoor": "indoor ", "SOTS-outdoor": "outdoor "}
    table: dict[str, dict[str, float]] = {}
    rows = json.loads((Path(recipes.__file__).parents[1] / "configs" / "paper_numbers.json").read_text())["rows"]
    for row in rows:
        if row["paper"] == "A" and row["dataset"] in wanted:
            table.setdefault(f"{row['dataset']}: {row['method']}", {})[row.get("setting", "")] = row["psnr"]
    return table


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Those of `paper_a_claims`, and what guides learn from inaccurate maps."""
    truths = paper_a_truths.truths_table(result["truths"]["summary"])
    return {**paper_a_claims.tables(result), "paper_a_truths": truths}


def main() -> None:
    options = parser(__doc__, data="clean/BSDS500, deblur and haze", json_required=True)
    options.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--steps", type=int, help="ω-updates of a training, if not the usual number")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--full", action="store_true", help="the paper's widths and schedules, on a GPU")
    options.add_argument("--device", default="cpu")
    options.add_argument("--pictures", default="deblur/Set12", help="test photographs below --data")
    options.add_argument("--kernels", default="deblur/kernels/kernels_12.mat", help="test kernels below --data")
    options.add_argument("--model", default="deblur", help="of the part `model`: a shipped one or a file")
    asked = options.parse_args()
    if asked.device == "cpu":
        torch.set_num_threads(1)
    for part in asked.part:
        if part == "model":
            judge_model(asked)
        elif part == "truths":
            for facts in paper_a_truths.run(asked, read(asked.json).get(part, {})):
                keep(part, facts, asked)
        else:
            run_part(part, asked)


def judge_model(asked: argparse.Namespace) -> None:
    """A4 and A5 on a model that was trained for longer."""
    restorer = zoo.load_restorer(asked.model, device=asked.device)
    found = deblurred(restorer, "guided", asked)
    maps(restorer, asked.json.with_name(f"{asked.json.stem}_maps.png"))
    facts = {"name": asked.model, "found": found, "classical": classical(asked)}
    keep("model", {"summary": summary_of_model(found), **facts}, asked)


def run_part(part: str, asked: argparse.Namespace) -> None:
    name, steps = RECIPES[part][asked.full], asked.steps or (None if asked.full else STEPS[part])
    settings = recipe_of(name, "none", 0, 0, steps=steps)
    kept = read(asked.json).get(part)
    runs = kept["runs"] if kept and reading.parse(kept["recipe"]) == settings else []
    done = {(run["way"], run["layers"], run["seed"]) for run in runs}
    for seed in range(asked.seeds):
        for way, layers in WAYS[part]:
            if (way, layers, seed) in done:
                continue
            recipe = recipe_of(name, way, layers, seed, steps=steps)
            restorer, facts = trained(part, way, recipe, asked.data, asked.device)
            found = deblurred(restorer, way, asked) if part == "deblur" else hazed(restorer, recipe, asked.data)
            runs.append({"way": way, "layers": layers, "seed": seed, **facts, "found": found})
            print(part, way, layers, seed, facts["cpu_seconds"], json.dumps(found)[:400], flush=True)
            keep(part, {"summary": SUMMARIES[part](runs), "recipe": settings.model_dump(), "runs": runs}, asked)
    if runs:  # where nothing was left to train, the summary is made anew
        keep(part, {"summary": SUMMARIES[part](runs), "recipe": settings.model_dump(), "runs": runs}, asked)
    if part == "deblur" and runs:
        draw_curves(runs, asked.json.with_name(f"{asked.json.stem}_training.png"))


def keep(part: str, facts: dict[str, Any], asked: argparse.Namespace) -> None:
    """Writes one part and leaves the others as the file has them."""
    kept = read(asked.json)
    kept[part] = facts
    if part in ("deblur", "model"):
        kept[part] |= {"test": {"pictures": asked.pictures, "kernels": asked.kernels, "whole": asked.full}}
    kept["papers"] = papers()
    write(asked.json, kept)


if __name__ == "__main__":
    main()
