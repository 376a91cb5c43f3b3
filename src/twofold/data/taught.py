"""Degraded photographs without a clean one: a classical restorer makes the target of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from twofold.contracts import Restorer
from twofold.data.crops import CropCache, as_floats, read_all
from twofold.data.folders import Folder, files_of
from twofold.data.sources import Crops, PairCrops
from twofold.restorers.classical import UnderwaterStretch
from twofold.settings import ByName, Rate

TEACHERS: dict[str, Restorer] = {"underwater-stretch": UnderwaterStretch()}
"""Restorers that make targets, by the names that recipes use."""


@dataclass(frozen=True)
class Taught:
    """Real degraded photographs without truth; a classical restorer makes the target of each, on the whole image."""

    observed: Annotated[tuple[Folder, ...], Field(min_length=1)]
    teacher: Annotated[Restorer, ByName(TEACHERS)]
    weight: Rate = 1.0
    kind: Literal["taught"] = field(default="taught", kw_only=True)

    def build(self, root: Path, crops: Crops) -> PairCrops:
        """root: what the paths start from. Raises: DataError where its files cannot be used."""
        pictures = read_all(files_of(self.observed, root))
        targets = [taught(picture, self.teacher) for picture in pictures]
        return PairCrops(CropCache(pictures), CropCache(targets), crops.size, None, crops.zoom)

    def origins(self) -> list[str]:
        """Every folder that is read, and which part of it, for a model's card."""
        return list(map(str, self.observed))


def taught(picture: Tensor, teacher: Restorer) -> Tensor:
    """What the teacher makes of an image, both as bytes `(3, H, W)`."""
    image = teacher(as_floats([picture])).image[0]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
