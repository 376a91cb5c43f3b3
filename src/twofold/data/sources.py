"""Where one sample comes from: a source is a function of a generator, and nothing else.

Its specification, as recipes have it, stands beside it and builds it: `Synthetic` makes `SyntheticCrops`, `Paired`
makes `PairCrops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from twofold.contracts import DataError, Degradation, Sample
from twofold.data.crops import CropCache, as_floats, plan, read_bytes, read_pairs
from twofold.data.degradations import AnyDegradation, with_files
from twofold.data.folders import Folder, PairFolder, files_of, pairs_of
from twofold.degrade.additive import rain_region, uniform_between
from twofold.degrade.hadamard import exposure
from twofold.settings import ByName, Rate

Source = Callable[[torch.Generator], Sample]
Zoom = tuple[float, float]  # range of how much larger than the crop the part is that is cut out and reduced to it
GUIDANCE_RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"rain_region": rain_region, "exposure": exposure}
"""How a map follows from a pair (observed, clean), by the names that recipes use."""


@dataclass(frozen=True)
class Crops:
    """What a source shall give. size: side in pixels. zoom: range; the part that is cut out has `zoom` times that side
    and is reduced to it. channels: 3, or 1 for the luma of every picture.
    """

    size: int
    zoom: Zoom = (1.0, 1.0)
    channels: int = 3


@runtime_checkable
class Divisible(Protocol):
    """A source of clean pictures that can be divided by picture, as a search divides it into two halves."""

    @property
    def clean(self) -> CropCache: ...

    def __call__(self, generator: torch.Generator) -> Sample: ...

    def subset(self, chosen: Sequence[int]) -> Divisible:
        """The same source on the clean pictures of those numbers alone."""
        ...


def draw_zoom(generator: torch.Generator, zoom: Zoom) -> float:
    low, high = zoom
    return low if low == high else uniform_between(generator, low, high)


@dataclass(frozen=True)
class SyntheticCrops:
    """A clean crop, degraded anew at every draw. margin: extra pixels for degradations that return less than they are
    given.
    """

    clean: CropCache
    degradation: Degradation
    size: int
    margin: int = 0
    zoom: Zoom = (1.0, 1.0)

    def __call__(self, generator: torch.Generator) -> Sample:
        crop = self.clean.crop(self.size + self.margin, plan(generator), draw_zoom(generator, self.zoom))
        return self.degradation(as_floats([crop]), generator)

    def subset(self, chosen: Sequence[int]) -> SyntheticCrops:
        """The same source on the clean pictures of those numbers alone."""
        return replace(self, clean=self.clean.subset(chosen))


@dataclass(frozen=True)
class Synthetic:
    """Clean photographs, degraded anew at every draw. clean: their folders. degradation: what is applied. rotate: crops
    are also rotated by 90° and flipped; not for weather. weight: how often this source is drawn, relative to the
    others.
    """

    clean: Annotated[tuple[Folder, ...], Field(min_length=1)]
    degradation: AnyDegradation
    rotate: bool = False
    weight: Rate = 1.0
    kind: Literal["synthetic"] = field(default="synthetic", kw_only=True)

    def build(self, root: Path, crops: Crops) -> SyntheticCrops:
        """root: what the paths start from. Raises: DataError where its files cannot be used."""
        cache = CropCache.of(files_of(self.clean, root), rotate=self.rotate, channels=crops.channels)
        degradation = with_files(self.degradation, root)
        return SyntheticCrops(cache, degradation, crops.size, getattr(degradation, "margin", 0), crops.zoom)

    def cases(self, root: Path, *, channels: int = 3) -> list[tuple[str, Sample]]:
        """(name, sample) of every whole photograph, degraded once: picture n by what the seed n draws."""
        degradation = with_files(self.degradation, root)
        found = []
        for path, number in zip(files_of(self.clean, root), count(), strict=False):
            clean = as_floats([read_bytes(path, channels=channels)])
            found.append((path.stem, degradation(clean, torch.Generator().manual_seed(number))))
        return found

    def origins(self) -> list[str]:
        """Every folder that is read, and which part of it, for a model's card."""
        kernels = getattr(getattr(self.degradation, "kernels", None), "path", None)
        more = getattr(self.degradation, "pairs", ()) if kernels is None else [kernels]
        return [*map(str, self.clean), *map(str, more)]


@dataclass(frozen=True)
class PairCrops:
    """The same crop of both pictures of a real pair. guidance: a rule `(observed, clean) -> map`, or None.

    Raises: DataError where the two caches do not fit one another; read them with `crops.read_pairs`.
    """

    observed: CropCache
    clean: CropCache
    size: int
    guidance: Callable[[Tensor, Tensor], Tensor] | None = None
    zoom: Zoom = (1.0, 1.0)

    def __post_init__(self) -> None:
        sides = [[tuple(picture.shape) for picture in cache.pictures] for cache in (self.observed, self.clean)]
        if len(sides[0]) != len(sides[1]):
            raise DataError(
                f"pairs: {len(sides[0])} observed pictures and {len(sides[1])} clean ones; give one for one"
            )
        for number, (observed, clean) in enumerate(zip(*sides, strict=True)):
            if observed != clean:
                raise DataError(f"pair {number}: observed is {observed} and clean is {clean}; crop them to one size")
        if self.observed.rotate != self.clean.rotate:
            raise DataError("pairs: one side would be rotated and the other not; give both caches the same `rotate`")

    def __call__(self, generator: torch.Generator) -> Sample:
        choice, zoom = plan(generator), draw_zoom(generator, self.zoom)
        observed, clean = (as_floats([cache.crop(self.size, choice, zoom)]) for cache in (self.observed, self.clean))
        return Sample(clean, observed, None if self.guidance is None else self.guidance(observed, clean))

    def subset(self, chosen: Sequence[int]) -> PairCrops:
        """The same source on the pairs of those numbers alone."""
        return replace(self, observed=self.observed.subset(chosen), clean=self.clean.subset(chosen))


@dataclass(frozen=True)
class Paired:
    """Real pairs. pairs: their folders. weight: how often this source is drawn, relative to the others. guidance: how
    the map is derived from a pair; none for D_tr of a guided run is fine.
    """

    pairs: Annotated[tuple[PairFolder, ...], Field(min_length=1)]
    guidance: Annotated[Callable[[Tensor, Tensor], Tensor], ByName(GUIDANCE_RULES)] | None = None
    weight: Rate = 1.0
    kind: Literal["pairs"] = field(default="pairs", kw_only=True)

    def build(self, root: Path, crops: Crops) -> PairCrops:
        """root: what the paths start from. Raises: DataError where its files cannot be used."""
        observed, clean = map(CropCache, read_pairs(pairs_of(self.pairs, root), channels=crops.channels))
        return PairCrops(observed, clean, crops.size, self.guidance, crops.zoom)

    def origins(self) -> list[str]:
        """Every folder that is read, and which part of it, for a model's card."""
        return list(map(str, self.pairs))


@dataclass(frozen=True)
class SourceMixture:
    """Draws each sample from one of several sources, as often as its weight says.

    Raises: DataError where there is not one weight of 0 or more for each source, or all are 0.
    """

    sources: Sequence[Source]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.weights) or min(self.weights, default=0) < 0 or not sum(self.weights) > 0:
            raise DataError(
                f"mixture: {len(self.sources)} sources with weights {list(self.weights)}; give each one weight, none "
                "below 0 and not all 0"
            )

    def __call__(self, generator: torch.Generator) -> Sample:
        draw = torch.rand((), generator=generator).item() * sum(self.weights)
        for source, weight in zip(self.sources, self.weights, strict=True):
            draw -= weight
            if draw < 0:
                return source(generator)
        return self.sources[-1](generator)
