"""Every degradation that a recipe can name. To add one, write its frozen dataclass and add it to `AnyDegradation`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from twofold.contracts import ConfigError, Degradation, Sample
from twofold.data.crops import as_floats, read_pairs
from twofold.data.folders import PairFolder, pairs_of
from twofold.degrade.additive import GaussianNoise, HarvestedRain, RainStreaks, SaltAndPepper, streak_layers
from twofold.degrade.blur import Blur
from twofold.degrade.hadamard import Haze, LowLight, Underwater


@runtime_checkable
class NeedsFiles(Protocol):
    """A degradation that is made of files; `from_files` reads them below a data root."""

    def from_files(self, root: Path) -> Degradation: ...


@dataclass(frozen=True)
class Harvested:
    """Real streak layers, `observed − clean` of pairs, laid on other photographs. pairs: folders of them."""

    pairs: Annotated[tuple[PairFolder, ...], Field(min_length=1)]
    kind: Literal["harvested"] = field(default="harvested", kw_only=True, repr=False)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        raise ConfigError("the rain layers have not been read; call from_files(root) first")

    def from_files(self, root: Path) -> HarvestedRain:
        """Raises: DataError where a folder holds no pairs."""
        rainy, clean = read_pairs(pairs_of(self.pairs, root))
        floats = ((as_floats([a]), as_floats([b])) for a, b in zip(rainy, clean, strict=True))
        return HarvestedRain(streak_layers(floats))


AnyDegradation = Annotated[
    GaussianNoise | SaltAndPepper | RainStreaks | Harvested | Blur | Haze | LowLight | Underwater,
    Field(discriminator="kind"),
]


def with_files(degradation: Degradation, root: Path) -> Degradation:
    """The degradation ready to be applied: what it is made of is read below `root`."""
    return degradation.from_files(root) if isinstance(degradation, NeedsFiles) else degradation
