"""Photographs to try the page with: those that come with scikit-image, degraded by the library."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from twofold import images
from twofold.contracts import Degradation
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.degrade.hadamard import Haze, LowLight, Underwater
from twofold.images import Picture


@dataclass(frozen=True)
class Example:
    """photograph: its name in `skimage.data`. label: what the page calls it. side: pixels at most, from its corner."""

    photograph: str
    degradation: Degradation
    label: str
    side: int = 640


EXAMPLES = {  # much as twofold.demo.SCENES, which would bring training along
    "coffee-rain": Example("coffee", RainStreaks(), "rain"),
    "rocket-haze": Example("rocket", Haze(beta=(1.0, 1.0), airlight=(0.85, 0.85)), "haze"),
    "astronaut-blur": Example(
        "astronaut", Blur(CameraShake(size=25, extent=(10.0, 16.0)), GaussianNoise((0.01, 0.01))), "blur", 400
    ),
    "coffee-dark": Example("coffee", LowLight(exposure=(0.04, 0.04)), "dark"),
    "astronaut-water": Example("astronaut", Underwater(), "water"),
}

_lock = threading.Lock()


def example(key: str, folder: Path) -> Path | None:
    """The file of an example in `folder`, drawn on first use; None for an unknown one."""
    if key not in EXAMPLES:
        return None
    path = folder / f"{key}.png"
    with _lock:
        if not path.exists():
            from skimage import data

            shown = EXAMPLES[key]
            clean = images.from_any(np.asarray(getattr(data, shown.photograph)())).pixels
            part = clean[..., : shown.side, : shown.side]
            observed = shown.degradation(part, torch.Generator().manual_seed(0)).observed
            images.write(path, Picture(observed))
    return path
