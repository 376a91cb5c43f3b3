"""Figures of the papers with this library's models: A's 10, 12 and 13, B's 6, 7 and 8, and a sheet of all tasks beside
methods without weights.

    python benchmarks/figures.py --data DATA --output docs/pictures           the committed ones
    python benchmarks/figures.py --data DATA --output figures --figure all    also of images that may not be shared

Photographs of the committed ones are Kodak's, degraded here: true rain is known because it is drawn, and their depth is
made up (`twofold.data.depth.made_up_depth`). `a13-measured` takes measured depth, `a10-rain100` Rain100 and `a12` real
rain, whose terms do not allow to publish them again. B's Fig. 8 shows features of SqueezeNet, since VGG19's weights are
not at hand.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import figure, interval_of, parser, result
from paper_b_claims import TASKS
from twofold import api, images
from twofold.contracts import Sample
from twofold.data.crops import as_floats, read_bytes
from twofold.data.depth import made_up_depth, read_depth
from twofold.data.pairs import every, find_pairs, read_pair
from twofold.degrade.additive import GaussianNoise, RainStreaks, rain_region
from twofold.degrade.blur import Blur, CameraShake
from twofold.degrade.hadamard import Haze, LowLight, Underwater
from twofold.losses import SQUEEZENET_GROUPS, LossSpec
from twofold.nets.perceptual import SQUEEZENET, load_features
from twofold.sheets import contact_sheet
from twofold.space.genotype import Genotype
from twofold.train import reading

FOUND = Path(reading.__file__).parents[1] / "configs" / "found"
SEARCHED = {"lowlight": "lowlight", "haze": "dehaze-hnu", "underwater": "underwater-hnu"}
CHANNELS = (34, 42, 51, 60)
"""Of the feature layer that Fig. 8 of paper B shows."""
Rows = list[list[Tensor]]


def photograph(asked: argparse.Namespace, number: int) -> Tensor:
    """Kodak's picture of that number, `(1, 3, H, W)`, reduced to half its side."""
    (path,) = images.find([asked.data / "clean" / "Kodak24"])[number : number + 1]
    return torch.nn.functional.avg_pool2d(as_floats([read_bytes(path)]), 2)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def as_shown(depth: Tensor) -> Tensor:
    """A map of depth whose farthest hundredth is white."""
    return (depth / depth.quantile(0.99).clamp_min(1e-6)).clamp(0, 1)


def sheet(path: Path, titles: list[str], rows: Rows, height: int = 150) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, images.Picture(contact_sheet(titles, rows, height=height)), quality=80)


def rain_rows(samples: list[Sample]) -> Rows:
    model, rows = api.load("derain", precision="exact"), []
    for observed, clean in ((sample.observed, sample.clean) for sample in samples):
        restored = model(observed)
        rows.append([observed, rain_region(observed, clean), restored.guidance, restored.image.clamp(0, 1), clean])
    return rows


RAIN_TITLES = ["rainy", "true rain region", "estimated", "restored", "clean"]


def a10(asked: argparse.Namespace, path: Path) -> None:
    """Rain, its true region and the one that `derain` estimates: light and heavy drawn rain."""
    light, heavy = RainStreaks(density=(0.15, 0.15)), RainStreaks(density=(0.9, 0.9), strength=(0.6, 0.6))
    samples = [rain(photograph(asked, n), seeded(n)) for rain, n in ((light, 4), (heavy, 7))]
    sheet(path, RAIN_TITLES, rain_rows(samples))


def a10_rain100(asked: argparse.Namespace, path: Path) -> None:
    """The same on held-out scenes of Rain100, light above heavy."""
    root, samples = asked.data / "rain" / "Rain100", []
    for kind in ("light", "heavy"):
        for pair in every(find_pairs(root, observed=kind, clean="clean"), 5, picked=True)[2:4]:
            observed, clean = read_pair(pair)
            samples.append(Sample(clean, observed))
    sheet(path, RAIN_TITLES, rain_rows(samples))


def a12(asked: argparse.Namespace, path: Path) -> None:
    """Real rain, without truth."""
    model, rows = api.load("derain"), []
    for file in images.find([asked.data / "rain" / "real"])[:6]:
        observed = images.read(file).pixels
        restored = model(observed)
        rows.append([observed, restored.guidance, restored.image.clamp(0, 1)])
    sheet(path, ["real rain", "estimated region", "restored"], rows)


def haze_rows(samples: list[Sample]) -> Rows:
    model, rows = api.load("dehaze", precision="exact"), []
    for sample in samples:
        restored = model(sample.observed)
        assert sample.guidance is not None
        drawn = [as_shown(sample.guidance), as_shown(restored.guidance)]
        rows.append([sample.observed, *drawn, restored.image.clamp(0, 1), sample.clean])
    return rows


def a13(asked: argparse.Namespace, path: Path) -> None:
    """Haze, the depth that made it (made up) and the one that `dehaze` estimates."""
    samples = []
    for number in (4, 20):
        clean = photograph(asked, number)
        depth = made_up_depth((clean[0] * 255).byte())[None]
        samples.append(Haze(beta=(1.4, 1.4))(clean, seeded(number), depth=depth))
    sheet(path, ["hazy", "depth it was drawn with", "estimated", "restored", "clean"], haze_rows(samples))


def a13_measured(asked: argparse.Namespace, path: Path) -> None:
    """The same with measured depth (Middlebury)."""
    samples, root = [], asked.data / "haze" / "Middlebury"
    for file in images.find([root / "clean"])[:4]:
        depth = read_depth(root / "depth" / f"{file.stem}.png")[None]
        samples.append(Haze(beta=(1.2, 1.2))(images.read(file).pixels, seeded(0), depth=depth))
    sheet(path, ["hazy", "measured depth", "estimated", "restored", "clean"], haze_rows(samples))


def b6(asked: argparse.Namespace, path: Path) -> None:
    """All weights 1 against searched ones, three networks, from paper_b-*.json; lines are 95 % intervals."""
    drawing, axes = figure(len(TASKS), (3.6, 3.2))
    for axis, task in zip(axes, TASKS, strict=True):
        seeds = result(f"paper_b-{task}")["seeds"]
        names = list(seeds[0]["fig6"])
        for shift, way in ((-0.2, "ones"), (0.2, "searched")):
            values = [[seed["fig6"][name][way]["psnr"] for seed in seeds] for name in names]
            means = [sum(column) / len(column) for column in values]
            ends = [interval_of(column) or (math.nan, math.nan) for column in values]
            errors = [(high - low) / 2 for low, high in ends]
            places = [n + shift for n in range(len(names))]
            axis.bar(places, means, 0.38, yerr=errors, capsize=3, label="all weights 1" if way == "ones" else way)
        axis.set_xticks(range(len(names)), names, rotation=12)
        axis.set(title=f"{task}, {len(seeds)} seeds", ylabel="PSNR in dB", ylim=(14, None))
    axes[0].legend(frameon=False)
    drawing.savefig(path, dpi=100)


def softmaxed(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights without those of total variation and the Laplacian, as Fig. 7 shows them.

    >>> softmaxed({"l1": 1.0, "l2": 1.0, "tv": 9.0})
    {'l1': 0.5, 'l2': 0.5}
    """
    kept = {name: math.exp(value) for name, value in weights.items() if name not in ("tv", "laplacian")}
    return {name: value / sum(kept.values()) for name, value in kept.items()}


def b7(asked: argparse.Namespace, path: Path) -> None:
    """Softmax of the found weights without TV and Laplacian, and the operations of the first unit, by task."""
    drawing, (left, right) = figure(2, (6.0, 2.6))
    rows = {task: softmaxed(LossSpec.from_yaml((FOUND / f"{task}.loss.yaml").read_text()).weights) for task in TASKS}
    names = list(rows[TASKS[0]])
    left.imshow([[row[name] for name in names] for row in rows.values()], cmap="viridis", aspect="auto")
    for y, row in enumerate(rows.values()):
        for x, name in enumerate(names):
            left.text(
                x, y, f"{row[name]:.2f}", ha="center", va="center", color="white" if row[name] < 0.19 else "black"
            )
    left.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=7)
    left.set_yticks(range(len(rows)), list(rows))
    left.set_title("softmax of λ, without TV and Laplacian")
    right.set_axis_off()
    for y, task in enumerate(TASKS):
        genotype = Genotype.from_json((FOUND / f"{task}.genotype.json").read_text())
        right.text(-0.2, y, task, ha="right", va="center")
        for x, name in enumerate(genotype.groups["unit1"]):
            right.text(
                x + 0.5,
                y,
                name,
                ha="center",
                va="center",
                fontsize=7,
                bbox={"fc": "C0" if x < 4 else "C1", "alpha": 0.3},
            )
    right.set(xlim=(-1.8, 8), ylim=(len(TASKS) - 0.5, -0.8))
    right.set_title("first unit: numerator | divisor")
    drawing.savefig(path, dpi=100)


def degraded(asked: argparse.Namespace) -> dict[str, Sample]:
    """One drawn sample a task, all of Kodak's photographs."""
    clean = photograph(asked, 20)
    depth = made_up_depth((clean[0] * 255).byte())[None]
    return {
        "lowlight": LowLight(exposure=(0.04, 0.04))(photograph(asked, 2), seeded(0)),
        "haze": Haze(beta=(1.4, 1.4))(clean, seeded(0), depth=depth),
        "underwater": Underwater(types=("3",), distance=(4.0, 4.0))(photograph(asked, 12), seeded(0)),
    }


@torch.no_grad()
def b8(asked: argparse.Namespace, path: Path) -> None:
    """Input, restored by the searched network, and four channels of the layer found in the second group."""
    network, rows = load_features(SQUEEZENET, asked.data / "features"), []
    titles = ["input", "restored", *(f"channel {channel}" for channel in CHANNELS)]
    for task, sample in degraded(asked).items():
        found = LossSpec.from_yaml((FOUND / f"{task}.loss.yaml").read_text())
        (layer,) = [n for n in found.layers["features_squeeze"] if n in SQUEEZENET_GROUPS[1]]
        restored = api.load(SEARCHED[task])(sample.observed).image.clamp(0, 1)
        (seen,) = network(restored, (layer,))
        planes = [seen[:, channel : channel + 1] for channel in CHANNELS]
        rows.append([sample.observed, restored, *(plane / plane.amax().clamp_min(1e-6) for plane in planes)])
        print(f"b8: {task}: layer {layer} of SqueezeNet 1.0")
    sheet(path, titles, rows, height=120)


def methods(asked: argparse.Namespace, path: Path) -> None:
    """Every task: the degraded image, methods without weights, ours, the truth."""
    samples = degraded(asked)
    samples["rain"] = RainStreaks(density=(0.5, 0.5))(photograph(asked, 4), seeded(0))
    shake = Blur(CameraShake(size=25, extent=(14.0, 14.0)), GaussianNoise((0.02, 0.02)))
    samples["blur"] = shake(photograph(asked, 7), seeded(1))
    chosen = {
        "rain": [None, None, "derain"],
        "haze": ["dark-channel", None, "dehaze"],
        "lowlight": ["gamma", "clahe", "lowlight"],
        "underwater": ["grey-world", "retinex", "underwater"],
        "blur": ["wiener", "hyper-laplacian", "deblur"],
    }
    rows = []
    for task, names in chosen.items():
        sample = samples[task]
        shown = [sample.observed.clamp(0, 1)]
        for name in names:
            model = None if name is None else api.load(name)
            given = {} if sample.kernel is None else {"kernel": sample.kernel}
            white = torch.ones_like(sample.clean)
            shown.append(white if model is None else model(shown[0], **given).image.clamp(0, 1))
        rows.append([*shown, sample.clean])
    sheet(path, ["degraded", "without weights", "without weights", "ours", "truth"], rows, height=115)


Figure = Callable[[argparse.Namespace, Path], None]
COMMITTED: dict[str, tuple[str, Figure]] = {
    "a10": ("paper_a_fig10.jpg", a10),
    "a13": ("paper_a_fig13.jpg", a13),
    "b6": ("paper_b_fig6.png", b6),
    "b7": ("paper_b_fig7.png", b7),
    "b8": ("paper_b_fig8.jpg", b8),
    "methods": ("methods.jpg", methods),
}
LOCAL: dict[str, tuple[str, Figure]] = {
    "a10-rain100": ("paper_a_fig10_rain100.jpg", a10_rain100),
    "a12": ("paper_a_fig12.jpg", a12),
    "a13-measured": ("paper_a_fig13_measured.jpg", a13_measured),
}
LARGEST = 150_000
"""Bytes of a committed picture."""


def main() -> None:
    made = parser(__doc__, data="clean/Kodak24, features and what a figure names")
    made.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    made.add_argument("--figure", nargs="+", choices=[*COMMITTED, *LOCAL, "all"], default=list(COMMITTED))
    asked = made.parse_args()
    torch.set_num_threads(1)
    known = COMMITTED | LOCAL
    facts: dict[str, Any] = {}
    for name in known if "all" in asked.figure else asked.figure:
        file, draw = known[name]
        asked.output.mkdir(parents=True, exist_ok=True)
        draw(asked, asked.output / file)
        facts[file] = (asked.output / file).stat().st_size
        if name in COMMITTED and facts[file] > LARGEST:
            raise SystemExit(f"{file} has {facts[file]} bytes, more than {LARGEST}")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
