"""What is added to a picture: noise and rain. y = x + n, and the guidance says where and how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import DataError, Sample, check_images
from twofold.settings import ByName, Count, Interval, Range, Share

NoiseLayout = Callable[[torch.Generator, tuple[float, float], tuple[int, int]], Tensor]
"""(generator, range of levels, (H, W)) → a map `(1, 1, H, W)` of levels."""

FARTHER = 0.65
"""Length, width and brightness of a layer of drawn rain, relative to the next nearer one."""


def uniform_between(generator: torch.Generator, low: float, high: float) -> float:
    """A number drawn evenly between `low` and `high`."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def quantised(images: Tensor) -> Tensor:
    """`(B, C, H, W)` clamped and rounded to the 256 levels of a file of 8 bits, as floats in [0, 1]."""
    return (images.clamp(0, 1) * 255).round() / 255


def uniform(generator: torch.Generator, level: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """One level everywhere."""
    return torch.full((1, 1, *size), uniform_between(generator, *level))


def halves(generator: torch.Generator, level: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Two levels, left and right (Gao et al. 2022, Fig. 6)."""
    return _grid(generator, level, size, 1, 2)


def quadrants(generator: torch.Generator, level: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Four levels, one a quadrant (Gao et al. 2022, Fig. 6)."""
    return _grid(generator, level, size, 2, 2)


def smooth(generator: torch.Generator, level: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Levels that change slowly, as light and gain do across a real picture."""
    low, high = level
    coarse = torch.rand(1, 1, 4, 4, generator=generator)
    return low + (high - low) * F.interpolate(coarse, size=size, mode="bicubic", align_corners=True).clamp(0, 1)


def _grid(
    generator: torch.Generator, level: tuple[float, float], size: tuple[int, int], rows: int, columns: int
) -> Tensor:
    low, high = level
    coarse = low + (high - low) * torch.rand(1, 1, rows, columns, generator=generator)
    return F.interpolate(coarse, size=size, mode="nearest")


NOISE_LAYOUTS: dict[str, NoiseLayout] = {
    "uniform": uniform,
    "halves": halves,
    "quadrants": quadrants,
    "smooth": smooth,
}
"""How levels lie on a picture, by the names that recipes use."""


@dataclass(frozen=True)
class GaussianNoise:
    """White Gaussian noise. Guidance `(B, 1, H, W)`: its standard deviation on the [0, 1] scale (0.01 is 2.55 grey
    levels).

    level: range that each sample draws from. layout: how levels lie on the picture. quantise: round to 8 bits, which
    also clamps; without it the observed picture may leave [0, 1], as the paper's does.
    """

    level: Range = (0.01, 0.05)
    layout: Annotated[NoiseLayout, ByName(NOISE_LAYOUTS)] = uniform
    quantise: bool = False
    kind: Literal["noise"] = field(default="noise", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        low, high = self.level
        if not 0 <= low <= high:
            raise ValueError(f"level: expected 0 <= low <= high, got {self.level}")
        if high > 1:
            raise ValueError(
                f"level is on the [0, 1] scale, got {self.level}; {high:g} grey levels are {high / 255:.4f}"
            )

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        check_images(clean, name="clean")
        size = (clean.shape[-2], clean.shape[-1])
        levels = torch.cat([self.layout(generator, self.level, size) for _ in clean]).to(clean)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        observed = clean + levels * noise
        return Sample(clean, quantised(observed) if self.quantise else observed, levels)


@dataclass(frozen=True)
class SaltAndPepper:
    """A share of the values becomes 0 or 1, evenly, each colour by itself. No guidance. share: in [0, 1].

    >>> grey = torch.full((1, 1, 200, 200), 0.5)
    >>> observed = SaltAndPepper(0.1)(grey, torch.Generator().manual_seed(0)).observed
    >>> [round(float((observed == value).float().mean()), 2) for value in (0.0, 0.5, 1.0)]
    [0.05, 0.9, 0.05]
    """

    share: Share = 0.1
    kind: Literal["salt_and_pepper"] = field(default="salt_and_pepper", kw_only=True, repr=False)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        check_images(clean, name="clean")
        draw = torch.rand(clean.shape, generator=generator).to(clean)
        salted = torch.where(draw < self.share, torch.ones_like(clean), clean)
        return Sample(clean, torch.where(draw < self.share / 2, torch.zeros_like(clean), salted))


def rain_region(observed: Tensor, clean: Tensor, *, threshold: float = 10 / 255) -> Tensor:
    """Where it rains, `(B, 1, H, W)`, 1 or 0: the brightest channel of observed − clean exceeds `threshold`.

    The data sets' own maps come from R of B = O + S·R (JORDER, Yang et al. 2017) with a threshold that is nowhere
    written.

    >>> rain_region(torch.tensor([0.02, 0.2]).expand(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    tensor([[[[0., 1.]]]])
    """
    # float32 rounds a step of exactly ten grey levels up at one brightness in eight: the margin keeps it dry at all
    return ((observed - clean).amax(1, keepdim=True) > threshold + 1e-6).to(clean)


MIST_LIGHT = 0.75  # grey level of the veil that far, unresolved rain adds


def _rained(clean: Tensor, streaks: Tensor, *, threshold: float, quantise: bool, mist: Tensor | float = 0.0) -> Sample:
    """mist: share of the light that far rain replaces, a number or `(B, 1, 1, 1)`; the region is that of streaks."""
    observed = (clean * (1 - mist) + MIST_LIGHT * mist + streaks).clamp(0, 1)
    if isinstance(mist, Tensor):
        region = (streaks > threshold + 1e-6).to(clean)
        return Sample(clean, quantised(observed) if quantise else observed, region)
    if quantise:
        observed = quantised(observed)
    return Sample(clean, observed, rain_region(observed, clean, threshold=threshold))


@dataclass(frozen=True)
class RainStreaks:
    """Drawn rain: soft straight streaks, each with its own length, width and brightness, in layers from near to far.

    Ranges are drawn from once per sample. angle: degrees from the vertical. spread: standard deviation of the streaks
    around it. length, width: pixels of the nearest layer, the width at half the brightness. density: summed area of
    the streaks as a share of the picture's; 0.1 is light, 1 heavy. strength: brightness of the brightest streaks on the
    [0, 1] scale. layers: each farther one is smaller and fainter by `FARTHER`, and all share the density evenly. mist:
    share of the light that a veil of far drops replaces. threshold: of the difference above which
    a pixel counts as rain, on the [0, 1] scale. quantise: round to 8 bits, as a file would.

    Prefer `HarvestedRain` where pairs are at hand: a network learns the streaks it has seen.
    """

    angle: Interval = (-25.0, 25.0)
    spread: float = 1.5
    length: Range = (15.0, 45.0)
    width: Range = (0.9, 2.2)
    density: Range = (0.05, 0.8)
    strength: Range = (0.25, 0.7)
    layers: Count = 3
    mist: Range = (0.0, 0.0)
    threshold: float = 10 / 255
    quantise: bool = True
    kind: Literal["streaks"] = field(default="streaks", kw_only=True, repr=False)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        check_images(clean, name="clean")
        streaks = torch.cat([self._streaks((clean.shape[-2], clean.shape[-1]), generator) for _ in clean])
        mist: Tensor | float = 0.0
        if self.mist[1] > 0:
            low, high = self.mist
            mist = (low + (high - low) * torch.rand(len(clean), 1, 1, 1, generator=generator)).to(clean)
        return _rained(clean, streaks.to(clean), threshold=self.threshold, quantise=self.quantise, mist=mist)

    def _streaks(self, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """One sample's rain, `(1, 1, H, W)`, the same in all colours: drops refract light of all wavelengths alike."""
        angle, length, width, density, strength = (
            uniform_between(generator, *limits)
            for limits in (self.angle, self.length, self.width, self.density, self.strength)
        )
        total = torch.zeros(size)
        for layer in range(self.layers):
            near = FARTHER**layer
            streaks = _Streaks(angle, self.spread, max(length * near, 3.0), max(width * near, 0.7))
            total += strength * near * streaks.drawn(size, density / self.layers, generator)
        return total[None, None]


class _Streaks(NamedTuple):
    """One layer's streaks: angle and spread in degrees, mean length and width in pixels."""

    angle: float
    spread: float
    length: float
    width: float

    def drawn(self, size: tuple[int, int], density: float, generator: torch.Generator) -> Tensor:
        """`(H, W)`, the brightest streak about 1. All are drawn at once, row by row, with a Gaussian across each."""
        if not -45 <= self.angle <= 45:  # lying streaks: the standing ones of the transposed picture
            standing = self._replace(angle=math.copysign(90, self.angle) - self.angle)
            return standing.drawn((size[1], size[0]), density, generator).T
        height, breadth = size
        margin = 0.75 * self.length  # half of the longest: streaks also enter from outside
        area = (height + 2 * margin) * (breadth + 2 * margin)
        count = round(density * area / (self.length * self.width))
        rows = torch.arange(-math.ceil(margin), math.ceil(margin) + 1).view(-1, 1)
        reach = math.ceil(1.2 * self.width)
        columns = torch.arange(1 - reach, reach + 1)
        canvas = torch.zeros(height * breadth + 1)  # the last cell takes what falls outside
        for start in range(0, count, 4096):  # in parts, so that the memory does not grow with the picture
            draws = torch.rand(5, min(4096, count - start), 1, 1, generator=generator)
            place_y, place_x, length, width, brightness = draws.unbind()
            leans = self.spread * torch.randn(place_y.shape, generator=generator)
            slope = torch.tan(torch.deg2rad(self.angle + leans))
            cosine = torch.rsqrt(1 + slope.square())
            centre_y = place_y * (height + 2 * margin) - margin
            centre_x = place_x * (breadth + 2 * margin) - margin
            y = centre_y.floor().long() + rows
            axis = centre_x + (y - centre_y) * slope
            x = axis.floor().long() + columns
            # nearly even along the streak and soft at both ends, as an exposure sees a falling drop
            end = (y - centre_y) / (self.length * (0.25 + 0.5 * length) * cosine)
            along = (1 - end.square().square()).clamp(min=0) * (0.3 + 0.7 * brightness)
            across = (x - axis) * cosine / (self.width * (0.6 + 0.8 * width))
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < breadth)
            cell = torch.where(inside, y * breadth + x, height * breadth)
            canvas.index_add_(0, cell.flatten(), (torch.exp2(-4 * across.square()) * along).flatten())
        return canvas[:-1].view(height, breadth)


def streak_layers(pictures: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Rain layers `observed − clean` of real pairs `(1, 3, H, W)`, kept as int16 grey levels `(3, H, W)`.

    A channel that the rain made white hides how much was added, and a plain difference would print the old picture
    there, in colour, on every new one. Rain adds to all channels alike (exactly so in Rain100), so a white channel
    takes what the channel with the most got.

    Raises: DataError where the two of a pair differ in size.

    >>> clean = torch.tensor([200, 240, 40]).view(1, 3, 1, 1) / 255
    >>> observed = torch.tensor([250, 255, 90]).view(1, 3, 1, 1) / 255
    >>> [layer.flatten().tolist() for layer in streak_layers([(observed, clean)])]
    [[50, 50, 50]]
    """
    layers = []
    for observed, clean in pictures:
        if observed.shape != clean.shape:
            raise DataError(
                f"a rainy picture is {tuple(observed.shape)} and its clean one {tuple(clean.shape)}; crop one"
            )
        added = ((observed - clean)[0] * 255).round().to(torch.int16)
        layers.append(added.where(observed[0] < 254.5 / 255, added.amax(0, keepdim=True)))
    return layers


@dataclass(frozen=True, eq=False)
class HarvestedRain:
    """Real streak layers laid on other photographs: flipped, scaled, shifted, made weaker or stronger, sometimes two
    at once.

    layers: of `streak_layers`. strength, scale: ranges; a layer is enlarged further where it would not cover the
    picture. double: share of samples that get a second layer.
    """

    layers: Sequence[Tensor]
    strength: tuple[float, float] = (0.6, 1.2)
    scale: tuple[float, float] = (0.8, 1.3)
    double: float = 0.1
    threshold: float = 10 / 255
    quantise: bool = True

    def __post_init__(self) -> None:
        if not self.layers:
            raise DataError("no rain layers: harvest them from pairs with streak_layers")

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        check_images(clean, channels=3, name="clean")
        streaks = torch.cat([self._streaks(clean.shape[-2], clean.shape[-1], generator) for _ in clean])
        return _rained(clean, streaks.to(clean), threshold=self.threshold, quantise=self.quantise)

    def _streaks(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        streaks = self._placed(height, width, generator)
        if torch.rand((), generator=generator) < self.double:
            streaks = streaks + self._placed(height, width, generator)
        return streaks

    def _placed(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        which, top, left, mirror, flip, scale, strength = torch.rand(7, generator=generator).tolist()
        layer = self.layers[int(which * len(self.layers))]
        scale = self.scale[0] + scale * (self.scale[1] - self.scale[0])
        strength = self.strength[0] + strength * (self.strength[1] - self.strength[0])
        scale = max(scale, height / layer.shape[1], width / layer.shape[2])  # mirrored at its end, rain would bend
        h, w = (max(1, round(side / scale)) for side in (height, width))
        part = _window(_window(layer, h, top, 1), w, left, 2)
        axes = [axis for axis, choice in ((2, mirror), (1, flip)) if choice < 0.5]
        part = (part.flip(axes) if axes else part)[None].float()
        gain: float = strength / 255
        return gain * F.interpolate(part, size=(height, width), mode="bilinear")


def _window(layer: Tensor, length: int, place: float, axis: int) -> Tensor:
    """`length` pixels of `layer` along `axis`, from `place` (0 to 1) on."""
    return layer.narrow(axis, int(place * (layer.shape[axis] - length + 1)), length)
