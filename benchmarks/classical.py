"""What can be had without weights: deblurring at four noise levels, blind deblurring, haze. The rows a trained model
has to beat.

    python benchmarks/classical.py --data DATA --json benchmarks/results/classical.json

PSNR of clamped pictures, mean over pictures. Deblurring: Set12 with the twelve validation kernels, one each, true
kernel and estimated noise. Blind: 336×336 cut-outs of Kodak24 with simulated camera shake of 10 to 22 pixels; the
restored picture is compared at the shift at which its kernel agrees best with the true one, since a kernel and a
picture may trade a shift.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import scipy.io
import torch
from torch import Tensor

from harness import means, parser, percent, score, table, write
from twofold import images
from twofold.contracts import Restorer
from twofold.degrade.additive import GaussianNoise
from twofold.degrade.blur import Blur, CameraShake, Given, centred, check_kernel
from twofold.restorers.blind import KernelSearch, similarity
from twofold.restorers.classical import DarkChannel
from twofold.restorers.deconvolution import HyperLaplacian, RichardsonLucy, Wiener


def deblur(data: Path) -> dict[str, Any]:
    kernels = scipy.io.loadmat(data / "deblur/kernels/kernels_12.mat")["kernels"].ravel()
    methods: dict[str, Restorer] = {
        "wiener": Wiener(),
        "richardson_lucy": RichardsonLucy(steps=10),
        "hyper_laplacian": HyperLaplacian(),
    }
    table = {}
    for level in (0.01, 0.03, 0.05, 0.07):
        rows = []
        for path, array in zip(images.find([data / "deblur/Set12"]), kernels, strict=True):
            degradation = Blur(Given((check_kernel(torch.from_numpy(array).float()),)), GaussianNoise((level, level)))
            sample = degradation(images.read(path).pixels[:, :1], torch.Generator().manual_seed(1))
            row = {"input": score(sample.observed, sample.clean)}
            for name, method in methods.items():
                row[name] = score(method(sample.observed, kernel=sample.kernel).image, sample.clean)
            rows.append(row)
        table[f"{level:g}"] = means(rows)
    return table


def aligned(kernel: Tensor, other: Tensor, side: int = 63) -> Tensor:
    """`kernel` in a larger square, at the shift where it is most like `other`."""
    one, two = centred(kernel, side), centred(other, side)
    correlation = torch.fft.irfft2(torch.fft.rfft2(two) * torch.fft.rfft2(one).conj(), s=(side, side))
    return one.roll(divmod(int(correlation.argmax()), side), (-2, -1))


def blind(data: Path, pictures: int) -> dict[str, Any]:
    restore, table = HyperLaplacian(), {}
    for level in (0.01, 0.03):
        rows = []
        for number, path in enumerate(images.find([data / "clean/Kodak24"])[:pictures]):
            clean = images.read(path).pixels.mean(1, keepdim=True)[..., 88 : 88 + 366, 88 : 88 + 366]
            degradation = Blur(CameraShake(size=31, extent=(10.0, 22.0)), GaussianNoise((level, level)))
            sample = degradation(clean, torch.Generator().manual_seed(number))
            start = time.process_time()
            estimate = KernelSearch(size=31)(sample.observed)
            seconds = time.process_time() - start
            shifted = aligned(estimate.kernel, sample.kernel)
            before = score(sample.observed, sample.clean)
            found = score(restore(sample.observed, kernel=shifted).image, sample.clean)
            rows.append(
                {
                    "input": before,
                    "estimated_kernel": found,
                    "true_kernel": score(restore(sample.observed, kernel=sample.kernel).image, sample.clean),
                    "similarity": similarity(estimate.kernel, sample.kernel),
                    "confidence": estimate.confidence,
                    "gained": float(found > before),
                    "seconds": seconds,
                }
            )
        both = torch.tensor([[row["similarity"], row["confidence"]] for row in rows]).T
        table[f"{level:g}"] = means(rows) | {"correlation_of_confidence": round(float(torch.corrcoef(both)[0, 1]), 3)}
    return table


def haze(data: Path) -> dict[str, Any]:
    table, folder = {}, data / "haze"
    for name in ("RESIDE_sample20", "HazeRD75"):
        rows = []
        for path in images.find([folder / name / "hazy"]):
            scene = path.stem if name == "RESIDE_sample20" else path.stem.rsplit("_", 1)[0]
            (truth,) = (folder / name / "clear").glob(f"{scene}.*")
            observed, clean = images.read(path).pixels, images.read(truth).pixels
            row = {"input": score(observed, clean)}
            for keep in (0.95, 0.8):
                row[f"dark_channel_{keep:g}"] = score(DarkChannel(keep=keep)(observed).image, clean)
            rows.append(row)
        table[name] = means(rows)
    return table


def deblur_table(result: dict[str, Any]) -> str:
    """Deconvolution without weights, with the true kernel."""
    body = [
        [percent(level), *(f"{facts[name]:.2f}" for name in ("input", "wiener", "richardson_lucy", "hyper_laplacian"))]
        for level, facts in result["deblur"].items()
    ]
    return table(["noise", "input", "Wiener", "Richardson-Lucy, 10 steps", "hyper-Laplacian"], body)


def blind_table(result: dict[str, Any]) -> str:
    """Deconvolution by an estimated kernel."""
    body = [
        [
            percent(level),
            *(f"{facts[name]:.2f}" for name in ("input", "estimated_kernel", "true_kernel", "similarity")),
            f"{facts['gained']:.0%}",
        ]
        for level, facts in result["blind"].items()
    ]
    head = ["noise", "input", "estimated kernel", "true kernel", "similarity of kernels", "pictures that gained"]
    return table(head, body)


def haze_table(result: dict[str, Any]) -> str:
    """The dark channel prior."""
    names = {"RESIDE_sample20": "RESIDE_sample20, outdoor", "HazeRD75": "HazeRD, 75 pictures"}
    body = [
        [names[name], *(f"{facts[key]:.2f}" for key in ("input", "dark_channel_0.95", "dark_channel_0.8"))]
        for name, facts in result["haze"].items()
    ]
    return table(["", "input", "keep = 0.95 (published, default)", "keep = 0.8"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "classical_deblur": deblur_table(result),
        "classical_blind": blind_table(result),
        "classical_haze": haze_table(result),
    }


def main() -> None:
    options = parser(__doc__, data="clean, deblur and haze")
    options.add_argument("--pictures", type=int, default=12, help="of Kodak24, for blind deblurring")
    arguments = options.parse_args()
    with torch.no_grad():
        result = {
            "deblur": deblur(arguments.data),
            "haze": haze(arguments.data),
            "blind": blind(arguments.data, arguments.pictures),
        }
    print(json.dumps(result, indent=2))
    write(arguments.json, result)


if __name__ == "__main__":
    main()
