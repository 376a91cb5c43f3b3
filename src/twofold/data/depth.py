"""Photographs with the distance of every pixel: what haze is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from twofold import images
from twofold.contracts import DataError, Sample
from twofold.data.crops import CropCache, as_floats, plan
from twofold.degrade.hadamard import Haze


def read_depth(path: Path, *, disparity: bool = False) -> Tensor:
    """Depth `(1, H, W)` of a grey picture; unknown pixels (0 in the file) take the value of the nearest known one.

    disparity: the file holds shifts between two cameras, and depth is their inverse. The unit is the picture's own:
    depth is divided by its 95th percentile, so that the far end of every scene is about 1, as `degrade.hadamard.Haze`
    expects.

    Raises: DataError where nothing is known.
    """
    raw = images.read(path).pixels[0, :1]
    known = raw > 0
    if not known.any():
        raise DataError(f"{path}: no depth is known anywhere in it")
    nearest = distance_transform_edt(~known[0].numpy(), return_distances=False, return_indices=True)
    filled = raw[:, torch.from_numpy(nearest[0]).long(), torch.from_numpy(nearest[1]).long()]
    depth = 1 / filled if disparity else filled
    return (depth / depth.quantile(0.95)).clamp(0.02, 4.0)


@dataclass(frozen=True)
class HazyCrops:
    """The same crop of a photograph and of its depth, with haze drawn anew over it. depths: `(1, H, W)` floats."""

    clean: CropCache
    depths: Sequence[Tensor]
    haze: Haze
    size: int

    def __post_init__(self) -> None:
        for picture, depth in zip(self.clean.pictures, self.depths, strict=True):
            if picture.shape[1:] != depth.shape[1:]:
                raise DataError(f"a photograph of {tuple(picture.shape[1:])} has a depth of {tuple(depth.shape[1:])}")

    def __call__(self, generator: torch.Generator) -> Sample:
        choice = plan(generator)
        clean = as_floats([self.clean.crop(self.size, choice)])
        depth = CropCache(self.depths, self.clean.turns).crop(self.size, choice)[None]
        return self.haze(clean, generator, depth=depth)
