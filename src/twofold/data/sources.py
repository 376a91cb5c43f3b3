"""Where one sample comes from: a source is a function of a generator, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.contracts import Degradation, Sample
from twofold.data.crops import CropCache, as_floats, plan

Source = Callable[[torch.Generator], Sample]


@dataclass(frozen=True)
class SyntheticCrops:
    """A clean crop, spoilt anew at every draw. margin: extra pixels for degradations that return less than they are
    given.
    """

    clean: CropCache
    degradation: Degradation
    size: int
    margin: int = 0

    def __call__(self, generator: torch.Generator) -> Sample:
        crop = self.clean.crop(self.size + self.margin, plan(generator))
        return self.degradation(as_floats([crop]), generator)


@dataclass(frozen=True)
class PairCrops:
    """The same crop of both pictures of a real pair. guidance: a rule `(observed, clean) -> map`, or None."""

    observed: CropCache
    clean: CropCache
    size: int
    guidance: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, generator: torch.Generator) -> Sample:
        choice = plan(generator)
        observed, clean = (as_floats([cache.crop(self.size, choice)]) for cache in (self.observed, self.clean))
        return Sample(clean, observed, None if self.guidance is None else self.guidance(observed, clean))


@dataclass(frozen=True)
class Mixture:
    """Draws each sample from one of several sources, as often as its weight says."""

    sources: Sequence[Source]
    weights: Sequence[float]

    def __call__(self, generator: torch.Generator) -> Sample:
        draw = torch.rand((), generator=generator).item() * sum(self.weights)
        for source, weight in zip(self.sources, self.weights, strict=True):
            draw -= weight
            if draw < 0:
                return source(generator)
        return self.sources[-1](generator)
