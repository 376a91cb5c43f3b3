"""Classical restorers without weights for haze, low light and water: baselines for the trained models.

Each restores the whole image at once, or from statistics of it. Everything works on batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import kornia
import numpy as np
import skimage.exposure
import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import DEPTH, Guidance, GuidanceKind, ImageError, Inputs, Restored, Restorer, check_images
from twofold.nets.fourier import full_precision

SAMPLED = 1 << 18
"""Most pixels that the statistics are taken of; a larger image is sampled on a regular grid."""
_OUTSIDE = 0.005  # share of the values of all channels that a joint stretch clips at each end
_OUTSIDE_EACH = 0.01  # the same where each channel is stretched by itself
_LARGEST_GAIN = 4.0  # of a stretch: where the water has left no red, there is only noise to amplify


@dataclass(frozen=True)
class DarkChannel(Restorer):
    """Haze removal by the dark channel prior (He, Sun and Tang 2009) with a guided filter (He, Sun and Tang 2010).

    In a clear outdoor view almost every patch has a pixel that is dark in some channel; what it is lighter by is
    haze. It fails where that is not so: sky, snow, white walls turn too dark. `observed (B, 3, H, W)` → image;
    guidance is the optical depth `(B, 1, H, W)`, −log transmission: a map that is given (say, true depth times beta)
    is used instead of the prior's.

    patch: side, in pixels. keep: part of the haze that is removed. least: smallest transmission, so that noise in
    dense haze is not amplified more than 1 / least times. radius, smooth: of the guided filter.
    """

    kind: ClassVar[GuidanceKind | None] = DEPTH
    patch: int = 15
    keep: float = 0.95
    least: float = 0.1
    radius: int = 60
    smooth: float = 1e-3

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        observed = full_precision(check_images(observed, channels=3))
        airlight = self._airlight(observed)
        depth = self.estimate(observed) if inputs.guidance is None else as_map(inputs.guidance)
        image = (observed - airlight) / torch.exp(-depth).clamp_min(self.least) + airlight
        return Restored(image, depth)

    def estimate(self, observed: Tensor, context: Tensor | None = None) -> Tensor:
        """Optical depth `(B, 1, H, W)` by the prior, refined by the guided filter."""
        observed = full_precision(observed)
        transmission = 1 - self.keep * self._dark(observed / self._airlight(observed))
        grey = observed.mean(1, keepdim=True)
        side = min(2 * self.radius + 1, *(2 * ((n - 1) // 2) + 1 for n in observed.shape[-2:]))
        # A wide filter at a coarser scale looks the same and does not cost radius² operations a pixel.
        coarse = max(1, min(side // 16, 4))
        transmission = kornia.filters.guided_blur(grey, transmission, side, self.smooth, "replicate", coarse)
        return -torch.log(transmission.clamp(1e-3, 1.0))

    def _dark(self, images: Tensor) -> Tensor:
        """Least value of all channels within the patch: `(B, 1, H, W)`."""
        least = images.amin(1, keepdim=True)
        return -F.max_pool2d(-least, 2 * (self.patch // 2) + 1, stride=1, padding=self.patch // 2)

    def _airlight(self, observed: Tensor) -> Tensor:
        """Mean colour where the dark channel is in its highest thousandth: `(B, 3, 1, 1)`."""
        dark = self._dark(observed).flatten(1)
        chosen = dark.topk(max(1, dark.shape[1] // 1000), dim=1).indices
        colours = observed.flatten(2).gather(2, chosen[:, None].expand(-1, 3, -1))
        return colours.mean(2)[:, :, None, None].clamp_min(1e-3)


@dataclass(frozen=True)
class Gamma(Restorer):
    """observed ** exponent. exponent: below 1 brightens; None brings the mean of each picture to `target`."""

    exponent: float | None = None
    target: float = 0.45

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        observed = full_precision(check_images(observed)).clamp(0, 1)
        if self.exponent is not None:
            return Restored(observed**self.exponent)
        low, high = torch.full_like(observed[:, :1, :1, :1], 0.02), torch.full_like(observed[:, :1, :1, :1], 20.0)
        for _ in range(20):  # the mean falls as the exponent grows: halve the bracket
            middle = (low * high).sqrt()
            bright = (observed**middle).mean((1, 2, 3), keepdim=True) > self.target
            low, high = torch.where(bright, middle, low), torch.where(bright, high, middle)
        return Restored(observed**low)


@dataclass(frozen=True)
class Clahe(Restorer):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of the brightness, by scikit-image.

    limit: of the slope, in (0, 1]; larger means more contrast, and more noise.
    """

    limit: float = 0.01

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        observed = full_precision(check_images(observed)).clamp(0, 1)

        def equalise(array: np.ndarray) -> np.ndarray:
            picture = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
            out = skimage.exposure.equalize_adapthist(picture, clip_limit=self.limit)
            return out[None] if len(array) == 1 else out.transpose(2, 0, 1)  # type: ignore[no-any-return]

        return Restored(torch.stack([numpy_map(picture, equalise) for picture in observed]))


@dataclass(frozen=True)
class GreyWorld(Restorer):
    """Scales each channel so that all have the mean of the picture (Buchsbaum 1980): this removes a
    colour cast, and also the colour of an image that is of one colour."""

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        observed = full_precision(check_images(observed))
        means = observed.mean((2, 3), keepdim=True)
        return Restored(observed * (means.mean(1, keepdim=True) / means.clamp_min(1e-4)))


@dataclass(frozen=True)
class UnderwaterStretch(Restorer):
    """The mean of three stretches: of the image's channels, of the channels after red compensation and grey world, and
    of all its channels together (see `candidates`): functions of a pixel and of statistics of the whole image, which
    are the context.
    """

    halo: ClassVar[int | None] = 0

    def context(self, observed: Tensor) -> Tensor:
        """`(B, 20)`: statistics of the whole image."""
        return colour_statistics(observed)

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        observed = full_precision(check_images(observed, channels=3))
        stats = self.context(observed) if inputs.context is None else inputs.context
        return Restored(candidates(observed, stats)[:, 2:].mean(1))


@dataclass(frozen=True)
class MultiScaleRetinex(Restorer):
    """Brightness relative to its surroundings at several scales (Jobson, Rahman and Woodell 1997), colours kept.

    The brightness is replaced by mean over scales of log(brightness / surroundings), stretched from its 1st to its 99th
    percentile; each pixel keeps the ratio of its channels (Petro, Sbert and Morel 2014). scales: in pixels.
    """

    scales: tuple[float, ...] = (15.0, 80.0, 250.0)

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        observed = full_precision(check_images(observed)).clamp(0, 1)
        brightness = observed.mean(1, keepdim=True) + 1 / 255
        relative = sum(torch.log(brightness / wide_blur(brightness, scale)) for scale in self.scales)
        flat = relative.flatten(1)  # type: ignore[union-attr]
        ends = torch.stack([percentile(flat, part) for part in (0.01, 0.99)])
        low, high = ends[:, :, None, None, None]
        gain = ((relative - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) / brightness
        # no channel beyond white: the colour stays, the pixel is less bright
        return Restored(observed * torch.minimum(gain, 1 / observed.amax(1, keepdim=True).clamp_min(1e-3)))


def percentile(values: Tensor, part: float) -> Tensor:
    """The value `(B,)` below which `part` of each row of `values (B, N)` lies; `torch.quantile` ends at 16 million."""
    rank = min(max(1, round(part * values.shape[1])), values.shape[1])
    return values.kthvalue(rank, dim=1).values


def wide_blur(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of `(B, C, H, W)`. deviation: in pixels; a wide blur is computed on a coarser image."""
    factor = max(1, min(int(deviation / 4), min(images.shape[-2:]) // 4))
    coarse = F.avg_pool2d(images, factor, ceil_mode=True, count_include_pad=False) if factor > 1 else images
    narrow = deviation / factor
    side = [min(2 * math.ceil(3 * narrow) + 1, 2 * n - 1) for n in coarse.shape[-2:]]
    out: Tensor = kornia.filters.gaussian_blur2d(coarse, (side[0], side[1]), (narrow, narrow), "reflect")
    return F.interpolate(out, images.shape[-2:], mode="bilinear") if factor > 1 else out


def as_map(guidance: Guidance) -> Tensor:
    """Raises: ImageError for a function of stages, which these methods do not have."""
    if not isinstance(guidance, Tensor):
        raise ImageError(f"guidance: expected a map (B, 1, H, W), got {type(guidance).__name__}")
    return guidance


def numpy_map(tensor: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """`function` of the tensor of any shape as float64 array, back in the dtype and on the device of the tensor."""
    return torch.from_numpy(np.ascontiguousarray(function(tensor.double().cpu().numpy()))).to(tensor)


def colour_statistics(observed: Tensor) -> Tensor:
    """`(B, 3, H, W)` in [0, 1] → `(B, 20)`: what `candidates` needs to know of the whole image.

    Channel means; gains of the grey world after red compensation; limits of the stretches of the observed image (each
    channel), of the compensated one (each channel, then all together).
    """
    every = max(1, round((observed.shape[-2] * observed.shape[-1] / SAMPLED) ** 0.5))
    x = observed[..., ::every, ::every].float().clamp(0, 1)
    means = x.mean((2, 3))
    compensated = _compensated(x, means)
    level = compensated.mean((2, 3))
    gains = level.mean(1, keepdim=True) / level.clamp_min(1e-4)
    balanced = (compensated * gains[:, :, None, None]).clamp(0, 1)
    low, high = _limits(x.flatten(2), _OUTSIDE_EACH)
    low_each, high_each = _limits(balanced.flatten(2), _OUTSIDE_EACH)
    low_all, high_all = _limits(balanced.flatten(1)[:, None], _OUTSIDE)
    return torch.cat([means, gains, low, high, low_each, high_each, low_all, high_all], 1)


def candidates(observed: Tensor, stats: Tensor) -> Tensor:
    """`(B, 3, H, W)` and `colour_statistics` of the whole image → `(B, 5, 3, H, W)` in [0, 1].

    The image itself; red compensation and grey world; each channel of the image stretched; each channel of the
    compensated image stretched; all its channels stretched together.
    """
    x = observed.float().clamp(0, 1)
    means, gains, low, high, low_each, high_each, low_all, high_all = torch.split(stats, [3, 3, 3, 3, 3, 3, 1, 1], 1)
    balanced = (_compensated(x, means) * gains[:, :, None, None]).clamp(0, 1)
    stretched = [
        _stretched(x, low, high),
        _stretched(balanced, low_each, high_each),
        _stretched(balanced, low_all, high_all),
    ]
    return torch.stack([x, balanced, *stretched], 1)


def _compensated(x: Tensor, means: Tensor) -> Tensor:
    """Red, and blue where it is below green, regain what water took (Ancuti et al. 2018, eq. 4)."""
    red, green, blue = x.unbind(1)
    r, g, b = (mean[:, None, None] for mean in means.unbind(1))
    red = red + (g - r).clamp(min=0) * (1 - red) * green
    blue = blue + (g - b).clamp(min=0) * (1 - blue) * green
    return torch.stack([red, green, blue], 1).clamp(0, 1)


def _limits(values: Tensor, outside: float) -> tuple[Tensor, Tensor]:
    """Quantiles `outside` and 1 − `outside` of `(B, C, N)`: two of `(B, C)`."""
    ordered = values.sort(2).values
    last = ordered.shape[2] - 1
    return ordered[..., round(outside * last)], ordered[..., round((1 - outside) * last)]


def _stretched(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """low … high, stretched to 0 … 1; a narrower range only by `_LARGEST_GAIN`, and left at its own level."""
    low, high = low[:, :, None, None], high[:, :, None, None]
    width = (high - low).clamp_min(1e-3)
    gain = (1 / width).clamp(max=_LARGEST_GAIN)
    return (gain * (x - low) + low * (1 - gain * width)).clamp(0, 1)
