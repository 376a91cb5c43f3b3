"""Sources of samples: a source is a function of a generator only.

The specification of each source, as in recipes, is in this module too and builds it:
`Synthetic` makes `SyntheticCrops`, `Paired`
makes `PairCrops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol, overload, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from twofold.contracts import DataError, Degradation, Sample
from twofold.data.crops import CropCache, as_floats, grey_map, plan, read_bytes, read_pairs
from twofold.data.degradations import AnyDegradation, with_files
from twofold.data.folders import Folder, PairFolder, files_of, pairs_of
from twofold.data.pairs import Pair, middle
from twofold.degrade.additive import rain_region, uniform_between
from twofold.degrade.blur import Blur, Given
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
    def clean(self) -> CropCache:
        """The clean pictures it draws from."""

    def __call__(self, generator: torch.Generator) -> Sample: ...

    def subset(self, chosen: Sequence[int]) -> Divisible:
        """The same source on the clean pictures of those numbers alone."""
        ...


def draw_zoom(generator: torch.Generator, zoom: Zoom) -> float:
    """A zoom drawn evenly from the range `zoom`; nothing is drawn where both ends are equal."""
    low, high = zoom
    return low if low == high else uniform_between(generator, low, high)


@dataclass(frozen=True)
class SyntheticCrops:
    """A clean crop degraded again at every draw. margin: extra pixels for degradations that return less than they are
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
class Cases(Sequence[tuple[str, Sample]]):
    """Whole pictures by number, made when they are asked for: 640 of a megapixel would not fit into the memory."""

    numbers: range
    make: Callable[[int], tuple[str, Sample]]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, which: int) -> tuple[str, Sample]: ...
    @overload
    def __getitem__(self, which: slice) -> Cases: ...
    def __getitem__(self, which: int | slice) -> tuple[str, Sample] | Cases:
        if isinstance(which, slice):
            return replace(self, numbers=self.numbers[which])
        return self.make(self.numbers[which])


@dataclass(frozen=True)
class Synthetic:
    """Clean photographs degraded again at every draw. clean: their folders. degradation: what is applied. rotate: crops
    are also rotated by 90° and flipped; not for weather. weight: how often this source is drawn, relative to the
    others. each_kernel: `cases` blurs every photograph by every kernel, as the tables of Levin's and Sun's sets have
    it.
    """

    clean: Annotated[tuple[Folder, ...], Field(min_length=1)]
    degradation: AnyDegradation
    rotate: bool = False
    weight: Rate = 1.0
    each_kernel: bool = False
    kind: Literal["synthetic"] = field(default="synthetic", kw_only=True)

    def build(self, root: Path, crops: Crops) -> SyntheticCrops:
        """root: what the paths start from. Raises: DataError where its files cannot be used."""
        cache = CropCache.of(files_of(self.clean, root), rotate=self.rotate, channels=crops.channels)
        degradation = with_files(self.degradation, root)
        return SyntheticCrops(cache, degradation, crops.size, getattr(degradation, "margin", 0), crops.zoom)

    def cases(self, root: Path, *, channels: int = 3) -> Cases:
        """(name, sample) of every whole photograph, degraded when it is asked for: case n by what the seed n draws.

        Raises: DataError where its files cannot be used, or `each_kernel` is set and nothing is blurred by files.
        """
        whole = with_files(self.degradation, root)
        every = [("", whole)]
        if self.each_kernel:
            if not (isinstance(whole, Blur) and isinstance(whole.kernels, Given)):
                raise DataError("each_kernel: needs a degradation of kind blur with kernels of kind files")
            kernels = enumerate(whole.kernels.kernels, 1)
            every = [(f"-kernel{number}", replace(whole, kernels=Given((kernel,)))) for number, kernel in kernels]
        files = files_of(self.clean, root)
        couples = [(path, name, degradation) for path in files for name, degradation in every]

        def case(number: int) -> tuple[str, Sample]:
            path, name, degradation = couples[number]
            clean = as_floats([read_bytes(path, channels=channels)])
            return f"{path.stem}{name}", degradation(clean, torch.Generator().manual_seed(number))

        return Cases(range(len(couples)), case)

    def origins(self) -> list[str]:
        """Every folder that is read, and which part of it, for a model's card."""
        kernels = getattr(getattr(self.degradation, "kernels", None), "path", None)
        more = getattr(self.degradation, "pairs", ()) if kernels is None else [kernels]
        return [*map(str, self.clean), *map(str, more)]


@dataclass(frozen=True)
class PairCrops:
    """The same crop of both pictures of a real pair. guidance: a rule `(observed, clean) -> map`, or None. maps: those
    of the pairs instead, floats `(1, H, W)` each.

    Raises: DataError where the two caches do not fit one another; read them with `crops.read_pairs`.
    """

    observed: CropCache
    clean: CropCache
    size: int
    guidance: Callable[[Tensor, Tensor], Tensor] | None = None
    zoom: Zoom = (1.0, 1.0)
    maps: CropCache | None = None

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
        if self.maps is not None:
            for number, (picture, map_) in enumerate(zip(sides[0], self.maps.pictures, strict=True)):
                if picture[1:] != tuple(map_.shape[1:]):
                    raise DataError(f"pair {number}: is {picture[1:]} and its map {tuple(map_.shape[1:])}; resize one")

    def __call__(self, generator: torch.Generator) -> Sample:
        choice, zoom = plan(generator), draw_zoom(generator, self.zoom)
        observed, clean = (as_floats([cache.crop(self.size, choice, zoom)]) for cache in (self.observed, self.clean))
        if self.maps is not None:
            return Sample(clean, observed, self.maps.crop(self.size, choice, zoom)[None])
        return Sample(clean, observed, None if self.guidance is None else self.guidance(observed, clean))

    def subset(self, chosen: Sequence[int]) -> PairCrops:
        """The same source on the pairs of those numbers alone."""
        maps = None if self.maps is None else self.maps.subset(chosen)
        return replace(self, observed=self.observed.subset(chosen), clean=self.clean.subset(chosen), maps=maps)


def read_maps(pairs: Sequence[Pair], observed: Sequence[Tensor], white: float) -> list[Tensor]:
    """The guidance maps of pairs that have one, floats `(1, H, W)`: grey pictures times `white`, or the only array of a
    `.mat` file as it is. A map that is a little larger than its observed picture is cropped to its middle, as clean
    pictures are.

    Raises: DataError or ImageError for a file that cannot be read or does not fit.
    """
    maps = []
    for pair, picture in zip(pairs, observed, strict=True):
        assert pair.map is not None
        drawn = grey_map(pair.map) * (1.0 if pair.map.suffix == ".mat" else white)
        maps.append(middle(drawn, (picture.shape[1], picture.shape[2]), name=str(pair.map)))
    return maps


@dataclass(frozen=True)
class Paired:
    """Real pairs. pairs: their folders. weight: how often this source is drawn, relative to the others. guidance: how
    the map is derived from a pair; none for D_tr of a guided run is fine. Where the pairs name `maps`, these are read
    instead. white: the value that a white pixel of such a map stands for.
    """

    pairs: Annotated[tuple[PairFolder, ...], Field(min_length=1)]
    guidance: Annotated[Callable[[Tensor, Tensor], Tensor], ByName(GUIDANCE_RULES)] | None = None
    weight: Rate = 1.0
    white: Rate = 1.0
    kind: Literal["pairs"] = field(default="pairs", kw_only=True)

    def build(self, root: Path, crops: Crops) -> PairCrops:
        """root: what the paths start from. Raises: DataError where its files cannot be used."""
        pairs = pairs_of(self.pairs, root)
        with_map = [folder.maps is not None for folder in self.pairs]
        if any(with_map) and (self.guidance is not None or not all(with_map)):
            raise DataError("pairs: give each folder its maps, or take one guidance rule for all; not both")
        observed, clean = map(CropCache, read_pairs(pairs, channels=crops.channels))
        maps = CropCache(read_maps(pairs, observed.pictures, self.white)) if any(with_map) else None
        return PairCrops(observed, clean, crops.size, self.guidance, crops.zoom, maps)

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
