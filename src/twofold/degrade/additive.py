"""What is added to a picture: noise and rain. y = x + n, and the guidance says where and how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import DataError, Sample, check_images

Layout = Callable[[torch.Generator, tuple[float, float], tuple[int, int]], Tensor]
"""(generator, range of levels, (H, W)) → a map `(1, 1, H, W)` of levels."""


def uniform_between(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def quantised(images: Tensor) -> Tensor:
    """Clamped and rounded to the 256 levels of a file of 8 bits, as a float in [0, 1]."""
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


@dataclass(frozen=True)
class GaussianNoise:
    """White Gaussian noise. Guidance `(B, 1, H, W)`: its standard deviation on the [0, 1] scale (0.01 is 2.55 grey
    levels).

    level: range that each sample draws from. layout: how levels lie on the picture. quantise: round to 8 bits, which
    also clamps; without it the observed picture may leave [0, 1], as the paper's does.
    """

    level: tuple[float, float] = (0.01, 0.05)
    layout: Layout = uniform
    quantise: bool = False

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


def rain_region(observed: Tensor, clean: Tensor, *, threshold: float = 10 / 255) -> Tensor:
    """Where it rains, `(B, 1, H, W)`, 1 or 0: the brightest channel of observed − clean exceeds `threshold`.

    The data sets' own maps come from R of B = O + S·R (JORDER, Yang et al. 2017) with a threshold that is nowhere
    written.
    """
    return ((observed - clean).amax(1, keepdim=True) > threshold).to(clean)


def _rained(clean: Tensor, streaks: Tensor, *, threshold: float, quantise: bool) -> Sample:
    observed = (clean + streaks).clamp(0, 1)
    if quantise:
        observed = quantised(observed)
    return Sample(clean, observed, rain_region(observed, clean, threshold=threshold))


@dataclass(frozen=True)
class RainStreaks:
    """Drawn rain: sparse drops, each smeared along the direction of the wind, in layers from near to far.

    angle: degrees from the vertical. length, width: pixels of the nearest layer. density: share of pixels in which a
    streak of the nearest layer begins. strength: brightness of a streak. layers: each farther one is shorter,
    thinner, denser, fainter. Ranges are drawn from once per sample.
    """

    angle: tuple[float, float] = (-25.0, 25.0)
    length: tuple[float, float] = (15.0, 45.0)
    width: tuple[float, float] = (0.6, 1.6)
    density: tuple[float, float] = (0.0005, 0.003)
    strength: tuple[float, float] = (0.25, 0.7)
    layers: int = 3
    threshold: float = 10 / 255
    quantise: bool = True

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        check_images(clean, name="clean")
        streaks = torch.cat([self._streaks(clean.shape[-2], clean.shape[-1], generator) for _ in clean])
        return _rained(clean, streaks.to(clean), threshold=self.threshold, quantise=self.quantise)

    def _streaks(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """One sample's rain, `(1, 1, H, W)`, the same in all colours: drops refract light of all wavelengths alike."""
        angle, length, thickness, density, strength = (
            uniform_between(generator, *limits)
            for limits in (self.angle, self.length, self.width, self.density, self.strength)
        )
        total = torch.zeros(1, 1, height, width)
        for layer in range(self.layers):
            near = 0.7**layer
            kernel = _line(length * near, max(thickness * near, 0.5), angle + uniform_between(generator, -4, 4))
            margin = kernel.shape[-1] // 2
            size = (1, 1, height + 2 * margin, width + 2 * margin)  # streaks also enter from outside
            drops = (torch.rand(size, generator=generator) < density / near).float()
            drops = drops * (0.4 + 0.6 * torch.rand(size, generator=generator))
            total = total + strength * near * F.conv2d(drops, kernel)
        return total


def _line(length: float, width: float, angle: float) -> Tensor:
    """A streak `(1, 1, k, k)`, 1 at its middle, Gaussian across, fading towards its ends; angle from the vertical."""
    half = math.ceil(length / 2 + 2 * width)
    axis = torch.arange(-half, half + 1, dtype=torch.float32)
    y, x = axis.view(-1, 1), axis.view(1, -1)
    lean = math.radians(angle)
    along = y * math.cos(lean) + x * math.sin(lean)
    across = x * math.cos(lean) - y * math.sin(lean)
    profile = torch.exp(-0.5 * (across / width) ** 2) * torch.sigmoid(2 * (length / 2 - along.abs()))
    return profile[None, None]


def streak_layers(pictures: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Rain layers `observed − clean` of real pairs `(1, 3, H, W)`, kept as int16 grey levels `(3, H, W)`.

    Raises: DataError where the two of a pair differ in size.
    """
    layers = []
    for observed, clean in pictures:
        if observed.shape != clean.shape:
            raise DataError(
                f"a rainy picture is {tuple(observed.shape)} and its clean one {tuple(clean.shape)}; crop one"
            )
        layers.append(((observed - clean)[0] * 255).round().to(torch.int16))
    return layers


@dataclass(frozen=True)
class HarvestedRain:
    """Real streak layers laid on other photographs: flipped, scaled, shifted, made weaker or stronger, sometimes two
    at once.

    layers: of `streak_layers`. strength, scale: ranges. double: share of samples that get a second layer.
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
        which, top, left, mirror, turn, scale, strength = torch.rand(7, generator=generator).tolist()
        layer = self.layers[int(which * len(self.layers))]
        scale = self.scale[0] + scale * (self.scale[1] - self.scale[0])
        strength = self.strength[0] + strength * (self.strength[1] - self.strength[0])
        h, w = (max(1, round(side / scale)) for side in (height, width))
        part = _window(_window(layer, h, top, 1), w, left, 2)
        axes = [axis for axis, choice in ((2, mirror), (1, turn)) if choice < 0.5]
        part = (part.flip(axes) if axes else part)[None].float()
        return F.interpolate(part, size=(height, width), mode="bilinear") * (strength / 255)


def _window(layer: Tensor, length: int, place: float, axis: int) -> Tensor:
    """`length` pixels of `layer` along `axis`, from `place` (0 to 1) on; a layer that is too short goes on mirrored."""
    full = layer.shape[axis]
    if length <= full:
        return layer.narrow(axis, int(place * (full - length + 1)), length)
    there = (torch.arange(length) + int(place * full)) % (2 * full)
    return layer.index_select(axis, torch.minimum(there, 2 * full - 1 - there))
