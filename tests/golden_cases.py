"""What every shipped model restores in the golden test: three crops of bundled photographs, degraded with fixed seeds.

Plain float32 on one thread, so that the same machine gives the same bits each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from skimage import data as photographs

from twofold import api, images, zoo
from twofold.contracts import Degradation, Restored, Sample
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.degrade.hadamard import Haze, LowLight, Underwater
from twofold.metrics import psnr

FOLDER = Path(__file__).parent / "golden"
HEIGHT, WIDTH = 48, 64
CROPS = {"astronaut": (64, 176), "chelsea": (80, 120), "coffee": (120, 250)}  # top and left
SHAKE = Blur(CameraShake(size=17, extent=(5.0, 9.0)), GaussianNoise((0.01, 0.01)))
DEGRADATIONS: dict[str, Degradation] = {
    "deconvolution": SHAKE,
    "haze": Haze(beta=(1.0, 1.0), airlight=(0.85, 0.85)),
    "rain": RainStreaks(),
    "lowlight": LowLight(exposure=(0.04, 0.04)),
    "underwater": Underwater(),
}
"""By the task on the model's card."""


def restored(name: str) -> Iterator[tuple[str, Sample, Restored]]:
    """(name of the photograph, its degraded crop, what the shipped model `name` makes of it)."""
    degradation = DEGRADATIONS[zoo.cards()[name].task]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = api.load(name, device="cpu", precision="exact")
        for seed, (photograph, (top, left)) in enumerate(CROPS.items()):
            clean = images.from_any(np.asarray(getattr(photographs, photograph)())).pixels
            border = SHAKE.kernels.size - 1 if degradation is SHAKE else 0  # the blur crops what its kernel cannot see
            clean = clean[..., top : top + HEIGHT + border, left : left + WIDTH + border]
            sample = degradation(clean, torch.Generator().manual_seed(seed))
            yield photograph, sample, model(sample.observed, kernel=sample.kernel)
    finally:
        torch.set_num_threads(before)


def golden_psnr(name: str) -> float:
    """Mean PSNR in dB of the restored crops."""
    scores = [psnr(result.image.clamp(0, 1), sample.clean).item() for _, sample, result in restored(name)]
    return sum(scores) / len(scores)
