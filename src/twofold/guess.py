"""Suggests the degradation of a photograph from a few image statistics. It is a suggestion and often finds nothing:
the thresholds were chosen by eye on pictures of the usual data sets; docs/web-page.md says how often they are right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

Array = NDArray[np.float32]
_SMALL, _CROP = 320, 640
MODELS = {
    "rain": "derain",
    "haze": "dehaze",
    "deconvolution": "deblur",
    "lowlight": "lowlight",
    "underwater": "underwater",
}
"""The model that is taken for a task unless another is named."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Guess:
    """task: as in the model cards, or None where nothing stands out. reason: what was seen, in a few words."""

    task: str | None
    reason: str


NOTHING = Guess(None, "no clear sign of damage")


def guess(pixels: Tensor) -> Guess:
    """The damage that a photograph `(1, 1 or 3, H, W)` in [0, 1] shows most clearly.

    >>> import torch
    >>> guess(torch.full((1, 3, 64, 64), 0.02)).task
    'lowlight'
    """
    seen = statistics(pixels)
    if seen.red < 0.68 and seen.saturation > 0.08:
        return Guess("underwater", f"red is only {seen.red:.0%} of green or blue")
    if seen.brightness < 0.15 or seen.highlights < 0.45:
        return Guess("lowlight", f"it is dark, {seen.brightness:.0%} of white on average")
    if seen.streaks > 0.8 or (seen.streaks > 0.55 and seen.bright > 0):
        return Guess("rain", f"upright streaks lie over {seen.streaks:.0%} of it")
    if seen.darkest > 0.2 and seen.saturation < 0.2:
        return Guess("haze", f"hardly any place is dark, the darkest have {seen.darkest:.0%} of white")
    if seen.softness > 0.36:
        return Guess("deconvolution", "no edge is sharp")
    return NOTHING


@dataclass(frozen=True)
class Statistics:
    """brightness, highlights: mean and 95th percentile of the luminance. red: mean over that of the stronger of green
    and blue. saturation: mean of the largest minus the smallest channel. darkest: 10th percentile of the dark channel
    (He, Sun and Tang 2009). softness: share of the fine differences that a 9 × 9 mean leaves (after Crete et al.
    2007). streaks: share of the places where short upright lines are stronger than level ones. bright: skewness of
    those lines; positive where they are brighter than what is beside them.
    """

    brightness: float
    highlights: float
    red: float
    saturation: float
    darkest: float
    softness: float
    streaks: float
    bright: float


def statistics(pixels: Tensor) -> Statistics:
    """Colour of the whole picture `(1, C, H, W)` made small; fine structure of its middle, pixel by pixel."""
    rgb = pixels.detach().float().clamp(0, 1).expand(-1, 3, -1, -1)
    height, width = rgb.shape[-2:]
    scale = min(1.0, _SMALL / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = _array(F.interpolate(rgb, size=size, mode="bilinear", antialias=True))
    top, left = max(0, height // 2 - _CROP // 2), max(0, width // 2 - _CROP // 2)
    fine = _array(rgb[..., top : top + _CROP, left : left + _CROP]) @ _LUMA
    luma = small @ _LUMA
    dark = ndimage.minimum_filter(small.min(2), size=max(3, min(size) // 20))
    lines, level = _lines(fine, 1), _lines(fine, 0)
    red, green, blue = (float(mean) for mean in small.reshape(-1, 3).mean(0))
    down, across = _differences(fine)
    down_left, across_left = _differences(ndimage.uniform_filter(fine, 9))
    total = float((down + across).sum())
    lost = float(np.maximum(down + across - down_left - across_left, 0).sum())
    return Statistics(
        brightness=float(luma.mean()),
        highlights=float(np.percentile(luma, 95)),
        red=red / (max(green, blue) + 1e-3),
        saturation=float((small.max(2) - small.min(2)).mean()),
        darkest=float(np.percentile(dark, 10)),
        softness=1 - lost / total if total > 1e-3 * fine.size else 0.0,
        streaks=_share(lines, level),
        bright=float((lines**3).mean() / ((lines**2).mean() ** 1.5 + 1e-9)),
    )


def _array(pixels: Tensor) -> Array:
    array: Array = pixels[0].permute(1, 2, 0).cpu().numpy()
    return array


def _differences(values: Array) -> tuple[Array, Array]:
    """Absolute differences to the pixel below and to the right, where both are."""
    if min(values.shape) < 2:
        return np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)
    return np.abs(np.diff(values, axis=0))[:, :-1], np.abs(np.diff(values, axis=1))[:-1]


def _lines(values: Array, across: int) -> Array:
    """What differs from its surroundings across an axis, and not along the other: lines a few pixels wide."""
    differing = values - ndimage.uniform_filter1d(values, 7, axis=across)
    along: Array = ndimage.uniform_filter1d(differing, 9, axis=1 - across)
    return along


def _share(upright: Array, level: Array) -> float:
    """Of places 48 pixels apart, those where upright lines are clearly stronger."""
    a, b = (ndimage.uniform_filter(np.abs(lines), 48)[::48, ::48] for lines in (upright, level))
    return float((a > 1.25 * b + 0.002).mean())
