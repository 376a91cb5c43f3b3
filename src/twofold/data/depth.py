"""Photographs with a depth for every pixel, from which haze is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from kornia.filters import guided_blur
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import felzenszwalb
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import DataError, Sample
from twofold.data.crops import CropCache, as_floats, grey_map, plan, read_all
from twofold.data.folders import Folder, Keep
from twofold.data.sources import Crops, Zoom, draw_zoom
from twofold.degrade.additive import uniform_between
from twofold.degrade.hadamard import Haze
from twofold.settings import Every, Range, Rate, Share


def read_depth(
    path: Path, *, disparity: bool = False, unit: Literal["percentile", "maximum"] = "percentile", limit: float = 1.0
) -> Tensor:
    """Depth `(1, H, W)` of a grey picture or of a `.mat` file, as RESIDE's outdoor set has it; unknown pixels (0 in the
    file) take the value of the nearest known one.

    disparity: the file holds shifts between two cameras, and depth is their inverse. The unit is the picture's own:
    depth is divided by its 95th percentile or by its maximum (as RESIDE's indoor set does), so that the far end of
    every scene is about 1, as `degrade.hadamard.Haze` expects. limit: share of the file's white from which on all
    depths are the same: sky and whatever haze hides anyway.

    Raises: DataError where nothing is known.
    """
    raw = grey_map(path)
    if path.suffix == ".mat":  # in a unit of its own: its largest value is its white
        raw = raw / raw.max().clamp_min(1e-12)
    known = raw > 0
    if not known.any():
        raise DataError(f"{path}: no depth is known anywhere in it")
    nearest = distance_transform_edt(~known[0].numpy(), return_distances=False, return_indices=True)
    filled = raw[:, torch.from_numpy(nearest[0]).long(), torch.from_numpy(nearest[1]).long()]
    depth = 1 / filled if disparity else filled.clamp(max=limit)
    far = depth.max() if unit == "maximum" else depth.quantile(0.95)
    return (depth / far).clamp(0.02, 4.0)


def made_up_depth(picture: Tensor, *, horizon: float = 0.4, near: float = 0.08) -> Tensor:
    """Depth `(1, H, W)` in (0, 1] for a photograph `(3, H, W)` of bytes without one; it keeps to the outlines in it.

    The picture falls into regions of like colour (Felzenszwalb and Huttenlocher 2004). What lies below the horizon is
    ground, and as far as its row says; what reaches above it stands upright where its foot is; what is bright, plain
    and touches the upper border is sky, at 1. A guided filter (He et al. 2013) ties it to the picture's edges. It is
    not true, but haze over it ends where things end, as real haze does; with depth that ignores the picture a network
    learns to look for edges that no real haze has.

    horizon: from the top. near: depth at the lower border.

    >>> wall = torch.zeros(3, 64, 64, dtype=torch.uint8)
    >>> wall[:, :24] = 220  # a bright plain sky
    >>> depth = made_up_depth(wall)[0, :, 32]
    >>> bool(depth[5] > 0.9), bool(depth[-1] < 0.1)
    (True, True)
    """
    _, height, width = picture.shape
    regions = torch.from_numpy(
        felzenszwalb(picture.permute(1, 2, 0).numpy(), scale=150, sigma=0.8, min_size=max(height * width // 800, 4))
    ).long()
    count = int(regions.max()) + 1
    colours = picture.float() / 255
    rows = torch.linspace(0, 1, height)[:, None].expand(height, width)

    def mean_of(values: Tensor) -> Tensor:
        sums = torch.zeros(count).index_add_(0, regions.flatten(), values.flatten())
        return sums / torch.bincount(regions.flatten(), minlength=count)

    def ground(at: Tensor) -> Tensor:
        return (near * (1 - horizon) / (at - horizon).clamp_min(1e-3)).clamp(max=1.0)

    top = torch.ones(count).scatter_reduce_(0, regions.flatten(), rows.flatten(), "amin")
    foot = torch.zeros(count).scatter_reduce_(0, regions.flatten(), rows.flatten(), "amax")
    light = colours.mean(0)
    steps = F.pad(light.diff(dim=0).abs(), (0, 0, 0, 1)) + F.pad(light.diff(dim=1).abs(), (0, 1))
    sky = (top == 0) & (foot < 0.8) & (mean_of(light) > 0.45) & (mean_of(steps) < 0.04)
    upright = torch.where(sky, torch.ones(count), ground(foot))[regions]
    depth = torch.where((top > horizon)[regions], ground(rows), upright)
    side = min(17, 2 * min(height, width) - 1)  # odd, and no wider than its mirrored border can fill
    smooth: Tensor = guided_blur(colours[None], depth[None, None], kernel_size=side, eps=1e-3)
    return smooth[0].clamp(0.02, 1.0)


@dataclass(frozen=True)
class HazyCrops:
    """The same crop of a photograph and of its depth, with new simulated haze. depths: `(1, H, W)` floats.

    For depth that is made up, bend: range of an exponent on it; veil: range of what even the nearest things have.
    """

    clean: CropCache
    depths: Sequence[Tensor]
    haze: Haze
    size: int
    bend: tuple[float, float] = (1.0, 1.0)
    veil: tuple[float, float] = (0.0, 0.0)
    zoom: Zoom = (1.0, 1.0)

    def __post_init__(self) -> None:
        for picture, depth in zip(self.clean.pictures, self.depths, strict=True):
            if picture.shape[1:] != depth.shape[1:]:
                raise DataError(f"a photograph of {tuple(picture.shape[1:])} has a depth of {tuple(depth.shape[1:])}")

    def __call__(self, generator: torch.Generator) -> Sample:
        choice, zoom = plan(generator), draw_zoom(generator, self.zoom)
        clean = as_floats([self.clean.crop(self.size, choice, zoom)])
        depth = CropCache(self.depths, self.clean.rotate).crop(self.size, choice, zoom)[None]
        bend, veil = uniform_between(generator, *self.bend), uniform_between(generator, *self.veil)
        return self.haze(clean, generator, depth=veil + (1 - veil) * depth**bend)

    def subset(self, chosen: Sequence[int]) -> HazyCrops:
        """The same source on the photographs of those numbers alone."""
        return replace(self, clean=self.clean.subset(chosen), depths=[self.depths[number] for number in chosen])


@dataclass(frozen=True)
class WithDepth:
    """Photographs with measured depth, files of the same name in two folders; haze is simulated on them.

    clean: folder of the photographs. haze: what is drawn. weight: how often this source is drawn, relative to the
    others. depth: folder of the depths; None makes one up that keeps to the picture's outlines. disparity, unit, limit:
    see `read_depth`. every, keep: see `folders.Folder`. bend: range of an exponent on the depth. veil: range of the
    depth of the nearest things.
    """

    clean: str
    depth: str | None = None
    disparity: bool = False
    unit: Literal["percentile", "maximum"] = "percentile"
    limit: Share = 1.0
    every: Every = 0
    keep: Keep = "rest"
    bend: Range = (1.0, 1.0)
    veil: Range = (0.0, 0.0)
    haze: Haze = field(default_factory=Haze)
    weight: Rate = 1.0
    kind: Literal["depth"] = field(default="depth", kw_only=True)

    def build(self, root: Path, crops: Crops) -> HazyCrops:
        """root: what the paths start from. Raises: DataError where its files cannot be used."""
        photographs, depths = self.read(root)
        return HazyCrops(CropCache(photographs), depths, self.haze, crops.size, self.bend, self.veil, crops.zoom)

    def cases(self, root: Path, *, channels: int = 3) -> list[tuple[str, Sample]]:
        """(name, sample) of every whole photograph under haze: picture n by what the seed n draws; colour alone."""
        seeded = (torch.Generator().manual_seed(number) for number in count())
        return [
            (f"{number:04d}", self.haze(as_floats([clean]), generator, depth=depth[None]))
            for number, (clean, depth, generator) in enumerate(zip(*self.read(root), seeded, strict=False))
        ]

    def read(self, root: Path) -> tuple[list[Tensor], list[Tensor]]:
        """Bytes `(3, H, W)` and depths `(1, H, W)` of every photograph."""
        files = self._folder.files(root)
        pictures = read_all(files)
        if self.depth is None:
            return pictures, [_made_up(file, picture) for file, picture in zip(files, pictures, strict=True)]
        read = partial(read_depth, disparity=self.disparity, unit=self.unit, limit=self.limit)
        return pictures, [read(_twin(file, root / self.depth)) for file in files]

    def origins(self) -> list[str]:
        """Every folder that is read, and which part of it, for a model's card."""
        return [f"{self._folder} with {self.depth or 'made-up depth'}"]

    @property
    def _folder(self) -> Folder:
        return Folder(self.clean, self.every, self.keep)


_MADE_UP: dict[Path, Tensor] = {}


def _made_up(file: Path, picture: Tensor) -> Tensor:
    """`made_up_depth`, once for each file: it takes a second, and both levels of a training read the same folder."""
    if file not in _MADE_UP:
        _MADE_UP[file] = made_up_depth(picture)
    return _MADE_UP[file]


def _twin(photograph: Path, folder: Path) -> Path:
    """Raises: DataError where the folder has no file of the photograph's name."""
    twins = sorted(folder.glob(f"{photograph.stem}.*")) if folder.is_dir() else []
    if not twins:
        raise DataError(
            f"{folder}: no depth called {photograph.stem}; it needs a picture or .mat for each of {photograph.parent}"
        )
    return twins[0]
