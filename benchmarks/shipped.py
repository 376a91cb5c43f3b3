"""The shipped models against what can be had without weights: deblurring at four noise levels, with a wrong noise
level assumed, and with an estimated kernel; haze by the scenes that no training saw.

    python benchmarks/shipped.py --data DATA --json benchmarks/results/shipped.json [--part deblur haze]

PSNR of clamped pictures, means over pictures; `gain` is the model's lead over the best classical method, with the 95 %
interval of the difference over pictures. Pictures, kernels and noise are those of benchmarks/classical.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import scipy.io
import torch
from torch import Tensor

import twofold
from twofold import images
from twofold.contracts import Restorer, Sample
from twofold.data.pairs import every, find_pairs, read_pair
from twofold.degrade.additive import GaussianNoise
from twofold.degrade.blur import Blur, Given, check_kernel
from twofold.evaluate import interval
from twofold.files import write_text
from twofold.metrics import psnr
from twofold.restorers.classical import DarkChannel, HyperLaplacian, Wiener

Method = Callable[[Sample], Tensor]
LEVELS, ASSUMED = (0.01, 0.03, 0.05, 0.07), (0.01, 0.02, 0.03, 0.04, 0.05)


def table(cases: list[Sample], methods: Mapping[str, Method], *, ours: str) -> dict[str, Any]:
    """Mean PSNR by method, and by how much `ours` leads the best of the others."""
    scores = {
        name: [float(psnr(method(case).clamp(0, 1), case.clean)) for case in cases] for name, method in methods.items()
    }
    others = [name for name in scores if name != "input" and not name.startswith(ours) and "fitted" not in name]
    best = max(others, key=lambda name: sum(scores[name]))
    lead = [a - b for a, b in zip(scores[ours], scores[best], strict=True)]
    found: dict[str, Any] = {name: round(sum(values) / len(values), 3) for name, values in scores.items()}
    spread = interval(lead)
    return found | {
        "pictures": len(cases),
        "best_classical": best,
        "gain": round(sum(lead) / len(lead), 3),
        "gain_interval": None if spread is None else [round(bound, 3) for bound in spread],
    }


def blurred(data: Path, level: float) -> list[Sample]:
    """Set12, each picture with its own of the twelve kernels."""
    kernels = scipy.io.loadmat(data / "deblur/kernels/kernels_12.mat")["kernels"].ravel()
    cases = []
    for path, array in zip(images.find([data / "deblur/Set12"]), kernels, strict=True):
        degrade = Blur(Given((check_kernel(torch.from_numpy(array).float()),)), GaussianNoise((level, level)))
        cases.append(degrade(images.read(path).pixels[:, :1], torch.Generator().manual_seed(1)))
    return cases


def by(restorer: Restorer, level: float | None = None) -> Method:
    """A classical method; level: the noise it is told in place of its own estimate."""

    def restored(case: Sample) -> Tensor:
        told = None if level is None else torch.full_like(case.observed[:, :1], level)
        return restorer(case.observed, guidance=told, kernel=case.kernel).image

    return restored


def learned(model: twofold.api.Model, level: float | None = None) -> Method:
    """The same for a shipped model."""

    def restored(case: Sample) -> Tensor:
        image: Tensor = model(case.observed, kernel=case.kernel, guidance=level).image
        return image

    return restored


def untouched(case: Sample) -> Tensor:
    return case.observed


def exposed(method: Method) -> Method:
    """What a method restores, with the gain and the offset that fit the truth best: exposure forgiven."""

    def restored(case: Sample) -> Tensor:
        image = method(case).clamp(0, 1)
        x, y = image.flatten().double(), case.clean.flatten().double()
        gain = ((x - x.mean()) * (y - y.mean())).mean() / x.var(correction=0).clamp_min(1e-12)
        return (y.mean() + gain * (image.double() - x.mean())).float()

    return restored


def deblur(data: Path) -> dict[str, Any]:
    model, wiener, sparse = twofold.load("deblur", precision="exact"), Wiener(), HyperLaplacian()
    by_noise: dict[str, Any] = {}
    for level in LEVELS:
        methods = {"input": untouched, "wiener": by(wiener), "hyper_laplacian": by(sparse), "deblur": learned(model)}
        by_noise[f"{level:g}"] = table(blurred(data, level), methods, ours="deblur")
    cases, assumed = blurred(data, 0.03), {}
    for level in ASSUMED:
        methods = {
            "wiener": by(wiener, level),
            "hyper_laplacian": by(sparse, level),
            "deblur_told": learned(model, level),
        }
        assumed[f"{level:g}"] = table(cases, methods, ours="deblur_told")
    return {"noise": by_noise, "assumed_at_0.03": assumed}


def haze(data: Path) -> dict[str, Any]:
    """Every set by every model, against the prior as published and one that leaves a fifth of the haze."""
    hazerd = find_pairs(data / "haze/HazeRD75", observed="hazy", clean="clear")
    sets = {
        "RESIDE_sample20": find_pairs(data / "haze/RESIDE_sample20", observed="hazy", clean="clear"),
        "HazeRD, held-out scenes": every(hazerd, 3, picked=True),
    }
    fifth = by(DarkChannel(keep=0.8))
    known: dict[str, Method] = {
        "input": untouched,
        "dark_channel_0.95": by(DarkChannel()),
        "dark_channel_0.8": fifth,
        "dark_channel_0.8, exposure fitted": exposed(fifth),
    }
    found: dict[str, Any] = {}
    for name, pairs in sets.items():
        cases = [Sample(clean, observed) for observed, clean in map(read_pair, pairs)]
        for ours in ("dehaze", "dehaze-hnu"):
            model = learned(twofold.load(ours, precision="exact"))
            methods = {**known, ours: model, f"{ours}, exposure fitted": exposed(model)}
            found.setdefault(name, {})[ours] = table(cases, methods, ours=ours)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with deblur and haze")
    parser.add_argument("--json", type=Path, help="where to write the numbers; parts that are not run stay as they are")
    parts = {"deblur": deblur, "haze": haze}
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    found = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    with torch.no_grad():
        for part in options.part:
            found[part] = parts[part](options.data)
            print(json.dumps({part: found[part]}, indent=2))
    if options.json:
        write_text(options.json, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
