"""The shipped models against what can be had without weights: deblurring at four noise levels, with a wrong noise
level assumed, and with an estimated kernel; haze by the scenes that no training saw.

    python benchmarks/shipped.py --data DATA --json benchmarks/results/shipped.json [--part deblur haze]

PSNR of clamped pictures, means over pictures; `gain` is the model's lead over the best classical method, with the 95 %
interval of the difference over pictures. Pictures, kernels and noise are those of benchmarks/classical.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import scipy.io
import torch
from torch import Tensor

import twofold
from harness import interval_of, parser, percent, read, score, span, table, write
from twofold import images
from twofold.contracts import Restorer, Sample
from twofold.data.pairs import every, find_pairs, read_pair
from twofold.degrade.additive import GaussianNoise
from twofold.degrade.blur import Blur, Given, check_kernel
from twofold.restorers.classical import DarkChannel
from twofold.restorers.deconvolution import HyperLaplacian, Wiener

Method = Callable[[Sample], Tensor]
LEVELS, ASSUMED = (0.01, 0.03, 0.05, 0.07), (0.01, 0.02, 0.03, 0.04, 0.05)


def compared(cases: list[Sample], methods: Mapping[str, Method], *, ours: str) -> dict[str, Any]:
    """Mean PSNR by method, and by how much `ours` leads the best of the others."""
    scores = {name: [score(method(case), case.clean) for case in cases] for name, method in methods.items()}
    others = [name for name in scores if name != "input" and not name.startswith(ours) and "fitted" not in name]
    best = max(others, key=lambda name: sum(scores[name]))
    lead = [a - b for a, b in zip(scores[ours], scores[best], strict=True)]
    found: dict[str, Any] = {name: round(sum(values) / len(values), 3) for name, values in scores.items()}
    return found | {
        "pictures": len(cases),
        "best_classical": best,
        "gain": round(sum(lead) / len(lead), 3),
        "gain_interval": interval_of(lead),
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
    """A classical method; level: the noise level given in place of its own estimate."""

    def restored(case: Sample) -> Tensor:
        given = None if level is None else torch.full_like(case.observed[:, :1], level)
        return restorer(case.observed, guidance=given, kernel=case.kernel).image

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
    """What a method restores, with the gain and the offset that fit the truth best: exposure corrected."""

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
        by_noise[f"{level:g}"] = compared(blurred(data, level), methods, ours="deblur")
    cases, assumed = blurred(data, 0.03), {}
    for level in ASSUMED:
        methods = {
            "wiener": by(wiener, level),
            "hyper_laplacian": by(sparse, level),
            "deblur_told": learned(model, level),
        }
        assumed[f"{level:g}"] = compared(cases, methods, ours="deblur_told")
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
            found.setdefault(name, {})[ours] = compared(cases, methods, ours=ours)
    return found


def deblur_table(result: dict[str, Any]) -> str:
    """The shipped model against what needs no weights, with the true kernel."""
    names = ("input", "wiener", "hyper_laplacian", "deblur")
    body = [
        [
            percent(level),
            *(f"{facts[name]:.2f}" for name in names),
            f"{facts['gain']:+.2f} ({span(facts['gain_interval'], sign='+')})",
        ]
        for level, facts in result["deblur"]["noise"].items()
    ]
    return table(["noise", "input", "Wiener", "hyper-Laplacian", "`deblur`", "lead (95 %)"], body)


def assumed_table(result: dict[str, Any]) -> str:
    """Told a wrong noise level, where 3 % is true; the last line estimates it."""
    found = result["deblur"]
    names = ("wiener", "hyper_laplacian", "deblur_told")
    body = [
        [percent(level), *(f"{facts[name]:.2f}" for name in names)] for level, facts in found["assumed_at_0.03"].items()
    ]
    own = found["noise"]["0.03"]
    body.append(["estimated", f"{own['wiener']:.2f}", f"{own['hyper_laplacian']:.2f}", f"**{own['deblur']:.2f}**"])
    return table(["assumed noise", "Wiener", "hyper-Laplacian", "`deblur`"], body)


def haze_table(result: dict[str, Any]) -> str:
    """The shipped models against the dark channel prior."""
    body = []
    for name, models in result["haze"].items():
        for model, facts in models.items():
            fitted = (f"{facts[f'{method}, exposure fitted']:.2f}" for method in ("dark_channel_0.8", model))
            body.append(
                [
                    f"{name} ({facts['pictures']} pictures)",
                    *(f"{facts[key]:.2f}" for key in ("input", "dark_channel_0.95", "dark_channel_0.8")),
                    f"`{model}` {facts[model]:.2f}",
                    f"{facts['gain']:+.2f} ({span(facts['gain_interval'], sign='+')})",
                    " / ".join(fitted),
                ]
            )
    head = ["", "input", "dark channel, keep = 0.95", "keep = 0.8", "model", "lead over the better one (95 %)"]
    return table([*head, "exposure fitted: keep = 0.8 / model"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "shipped_deblur": deblur_table(result),
        "shipped_assumed": assumed_table(result),
        "shipped_haze": haze_table(result),
    }


def main() -> None:
    made = parser(__doc__, data="deblur and haze")
    parts = {"deblur": deblur, "haze": haze}
    made.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    options = made.parse_args()
    found = read(options.json)
    with torch.no_grad():
        for part in options.part:
            found[part] = parts[part](options.data)
            print(json.dumps({part: found[part]}, indent=2))
    write(options.json, found)


if __name__ == "__main__":
    main()
