"""Where one sample comes from: a source is a function of a generator, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.contracts import DataError, Degradation, Sample
from twofold.data.crops import CropCache, as_floats, plan
from twofold.degrade.additive import uniform_between

Source = Callable[[torch.Generator], Sample]
Zoom = tuple[float, float]  # range of how much larger than the crop the part is that is cut out and reduced to it


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
