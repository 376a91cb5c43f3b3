"""Photographs to try the page with: those that come with scikit-image, degraded by the library."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from twofold import images
from twofold.images import Picture

EXAMPLES = {
    "coffee-derain": "rain",
    "rocket-dehaze": "haze",
    "chelsea-deblur": "blur",
    "coffee-lowlight": "low light",
    "astronaut-underwater": "water",
}
"""Scenes of the demonstration, and what the page calls them."""

_lock = threading.Lock()


def example(key: str, folder: Path) -> Path | None:
    """The file of an example in `folder`, drawn on first use; None for an unknown one."""
    if key not in EXAMPLES:
        return None
    path = folder / f"{key}.png"
    with _lock:
        if not path.exists():
            from twofold import demo  # only here: it brings training along

            scene = next(scene for scene in demo.SCENES if scene.name == key)
            sample = scene.degradation(demo.photograph(scene.photograph), torch.Generator().manual_seed(0))
            images.write(path, Picture(sample.observed))
    return path
