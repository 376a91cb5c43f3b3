"""How good a restored picture is: PSNR, SSIM in the variants the field reports, protocols that fix every choice.

The variants of SSIM differ by 0.005 to 0.02 on the same picture: each has one name here, and every table names its own.
Pictures are `(B, C, H, W)` with 0 for black and 1 for white. PSNR and SSIM do not change when pictures and their range
are scaled together, so "peak 255" of 8-bit files and peak 1 are the same thing, and only the latter occurs here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.contracts import ImageError
from twofold.nets.fourier import full_precision


def same_size(restored: Tensor, clean: Tensor) -> None:
    """Raises ImageError unless both are `(B, C, H, W)` of one shape: broadcasting would compare the wrong pixels."""
    if restored.ndim != 4 or restored.shape != clean.shape:
        raise ImageError(
            "expected restored and clean (B, C, H, W) of one shape, "
            f"got {tuple(restored.shape)} and {tuple(clean.shape)}; crop or resize one of them"
        )


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """`(B,)` float64: −10 log10 of each picture's mean squared error, in dB; infinite for equal pictures.

    The PSNR of a set is the mean of these, never the PSNR of the pooled error.

    >>> psnr(torch.full((1, 3, 2, 2), 0.6), torch.full((1, 3, 2, 2), 0.5))
    tensor([20.0000], dtype=torch.float64)
    """
    same_size(restored, clean)
    return -10 * (restored.double() - clean.double()).square().mean(dim=(1, 2, 3)).log10()


def matlab_y(images: Tensor) -> Tensor:
    """`(B, 1, H, W)`: the luma of MATLAB's `rgb2ycbcr`, 16/255 for black and 235/255 for white (ITU-R BT.601).

    images: RGB `(B, 3, H, W)`, or grey `(B, 1, H, W)`, which is taken as equal red, green and blue.

    >>> matlab_y(torch.ones(1, 3, 1, 1)) * 255
    tensor([[[[235.]]]])
    """
    return (_weighted(images, (65.481, 128.553, 24.966)) + 16) / 255


def grey(images: Tensor) -> Tensor:
    """`(B, 1, H, W)`: ITU-R BT.601 luma over the full range; grey pictures stay as they are, stored as RGB too."""
    return _weighted(images, (0.299, 0.587, 0.114))


def _weighted(images: Tensor, weights: tuple[float, float, float]) -> Tensor:
    if images.shape[1] == 1:
        return images * sum(weights)
    if images.shape[1] != 3:
        raise ImageError(f"expected 1 or 3 channels, got {tuple(images.shape)}; convert to RGB first")
    return (images * images.new_tensor(weights).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def ssim_gaussian_zero_padded(restored: Tensor, clean: Tensor) -> Tensor:
    """`(B,)`: the SSIM of training losses: 11x11 Gaussian, zeros outside the picture, one value for every pixel.

    Any size from 1x1; float32 inside autocast; differentiable, twice too.
    Zeros outside make the borders look alike, so values lie a little above those of the valid window: for training.

    >>> ssim_gaussian_zero_padded(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
    tensor([1.])
    """
    return _ssim(restored, clean, taps=_gaussian(clean.device), padding=5)


def ssim_gaussian_valid(restored: Tensor, clean: Tensor) -> Tensor:
    """`(B,)` float64: 11x11 Gaussian, windows inside the picture only, full resolution (as most programs for LOL).

    Raises: ImageError for a picture with a side below 11 pixels.

    Two flat pictures differ in the luminance factor alone: (2 · 0.1 · 0.2 + 0.0001) / (0.1² + 0.2² + 0.0001) = 0.8004

    >>> ssim_gaussian_valid(torch.full((1, 1, 16, 16), 0.1), torch.full((1, 1, 16, 16), 0.2))
    tensor([0.8004], dtype=torch.float64)
    """
    return _ssim(restored.double(), clean.double(), taps=_gaussian(clean.device), padding=0)


def ssim_wang(restored: Tensor, clean: Tensor) -> Tensor:
    """`(B,)` float64: the authors' `ssim.m` (Wang et al. 2004): as `ssim_gaussian_valid` after automatic downsampling.

    Pictures are averaged over f x f pixels and every f-th pixel is kept, f = the shorter side over 256, rounded, at
    least 1: 480x320 (Rain100) gives f = 1, 600x400 (LOL) gives f = 2 and another value than without.

    Raises: ImageError for a picture with a side below 11 pixels.
    """
    same_size(restored, clean)
    factor = max(1, int(min(clean.shape[-2:]) / 256 + 0.5))  # MATLAB rounds halves up, Python to even
    return ssim_gaussian_valid(_downsampled(restored.double(), factor), _downsampled(clean.double(), factor))


def ssim_skimage_uniform7(restored: Tensor, clean: Tensor) -> Tensor:
    """`(B,)` float64: scikit-image's default: flat 7x7 window, sample covariance, valid windows (GridDehazeNet's).

    Raises: ImageError for a picture with a side below 7 pixels.
    """
    taps = torch.full((7,), 1 / 7, dtype=torch.float64, device=clean.device)
    return _ssim(restored.double(), clean.double(), taps=taps, padding=0, sample_covariance=True)


def ssim_multiscale(restored: Tensor, clean: Tensor) -> Tensor:
    """`(B,)`: MS-SSIM as it is trained with (Zhao et al. 2017): l at the widest window times cs at all five, per pixel.

    Gaussian windows of standard deviation 0.5, 1, 2, 4 and 8 pixels at full resolution, no exponents; every channel by
    itself, then the mean. Windows are cut at the border of the picture and weighted to sum 1, so that any size from 1x1
    does; float32 inside autocast; differentiable, twice too.

    Two flat pictures differ in the luminance factor alone, as in `ssim_gaussian_valid`:

    >>> ssim_multiscale(*torch.tensor([0.1, 0.2], dtype=torch.float64).view(2, 1, 1, 1, 1).expand(-1, 1, 1, 16, 16))
    tensor([0.8004], dtype=torch.float64)
    """
    same_size(restored, clean)
    c1, c2 = 0.01**2, 0.03**2
    with torch.autocast(device_type=restored.device.type, enabled=False):
        x, y = (image.contiguous() for image in map(full_precision, (restored, clean)))
        planes = torch.stack((x, y, x * x + y * y, x * y))
        product = torch.ones_like(x)
        for deviation in (0.5, 1.0, 2.0, 4.0, 8.0):
            radius = int(3 * deviation + 0.5)
            taps = _gaussian(x.device, deviation, radius)
            inside = _windowed(torch.ones_like(x[:1, :1]), taps, radius)
            mean_x, mean_y, mean_squares, mean_xy = (_windowed(planes, taps, radius) / inside).unbind(0)
            means, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
            product = product * (2 * (mean_xy - means) + c2) / (mean_squares - squares + c2)
        luminance = (2 * means + c1) / (squares + c1)
        return (luminance * product).mean(dim=(1, 2, 3))


def _ssim(restored: Tensor, clean: Tensor, *, taps: Tensor, padding: int, sample_covariance: bool = False) -> Tensor:
    """`(B,)`: Wang et al. 2004, eq. (13), with K1 = 0.01 and K2 = 0.03, every channel by itself, then the mean.

    The two variances occur only as their sum, so four windowed means do (of x, y, x² + y², xy), and what depends on
    `clean` alone stays outside of the graph: 8x3x112x112 forward and backward in 8 ms on one thread.
    """
    same_size(restored, clean)
    size = taps.numel()
    if min(clean.shape[-2:]) + 2 * padding < size:
        raise ImageError(
            f"SSIM needs at least {size}x{size} pixels, got {tuple(clean.shape[-2:])}; use a larger picture"
        )
    c1, c2 = 0.01**2, 0.03**2
    with torch.autocast(device_type=restored.device.type, enabled=False):
        x, y = (image.contiguous() for image in map(full_precision, (restored, clean)))
        mean_y = _windowed(y, taps, padding)
        mean_x, mean_squares, mean_xy = _windowed(torch.stack((x, x * x + y * y, x * y)), taps, padding).unbind(0)
        product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        unbias = size**2 / (size**2 - 1) if sample_covariance else 1.0
        covariance, variances = unbias * (mean_xy - product), unbias * (mean_squares - squares)
        ssim = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
        return ssim.mean(dim=(1, 2, 3))


def _windowed(images: Tensor, taps: Tensor, padding: int) -> Tensor:
    """Mean under the window `taps ⊗ taps` around every pixel of `(..., H, W)`.

    All planes go as the channels of one picture through two depthwise convolutions: measured 25 times faster than
    planes as a batch, and faster than a product with a banded matrix or a sum of shifted pictures.
    """
    planes = images.reshape(1, -1, *images.shape[-2:])
    count = planes.shape[1]
    row = taps.to(planes).expand(count, 1, 1, -1)
    planes = F.conv2d(planes, row, padding=(0, padding), groups=count)
    planes = F.conv2d(planes, row.mT, padding=(padding, 0), groups=count)
    return planes.reshape(*images.shape[:-2], *planes.shape[-2:])


def _gaussian(device: torch.device, deviation: float = 1.5, radius: int = 5) -> Tensor:
    """`(2 radius + 1,)`: Gaussian of that many pixels, sum 1; made on the device, since a copy to it would wait."""
    distance = torch.arange(-radius, radius + 1, dtype=torch.float64, device=device)
    taps = torch.exp(-distance.square() / (2 * deviation**2))
    return taps / taps.sum()


def _downsampled(images: Tensor, factor: int) -> Tensor:
    """Every `factor`-th pixel of the average over `factor` x `factor` pixels, the picture mirrored at its border.

    An even window reaches one pixel further down and right than up and left, as MATLAB's `imfilter` has it.
    """
    if factor == 1:
        return images
    before, after = (factor - 1) // 2, factor // 2
    for dim in (2, 3):
        size = images.shape[dim]
        index = torch.arange(-before, size + after, device=images.device)
        index = torch.where(index < 0, -1 - index, torch.where(index >= size, 2 * size - 1 - index, index))
        images = images.index_select(dim, index)
    return F.avg_pool2d(images, factor)


SSIM: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wang": ssim_wang,
    "gaussian-valid": ssim_gaussian_valid,
    "gaussian-zero-padded": ssim_gaussian_zero_padded,
    "skimage-uniform7": ssim_skimage_uniform7,
}
"""Every variant by the name that tables print."""


class Score(NamedTuple):
    """How near restored pictures are to the clean ones: `(B,)` each, PSNR in dB."""

    psnr: Tensor
    ssim: Tensor


@dataclass(frozen=True)
class Protocol:
    """Every choice between a network's output and a number in a table.

    colour: what is compared: MATLAB's luma, all three channels alike, or grey.
    rounding: how the restored picture goes to 8 bits; "none" compares floats.
    clamp: whether the restored picture is clamped to [0, 1] first.
    border: pixels that are cut off at every side.
    gt_mean: whether the restored picture is first scaled to the mean grey of the clean one. It forgives every error of
        exposure, so a number made with it means nothing without the untouched input's score under the same protocol.
    ssim: a key of `SSIM`.
    perceptual: the distance that stands in its LPIPS column, a key of `nets.perceptual.DISTANCES`.
    """

    name: str
    colour: Literal["matlab-y", "rgb", "grey"]
    rounding: Literal["truncate", "round", "none"]
    ssim: str
    clamp: bool = True
    border: int = 0
    gt_mean: bool = False
    perceptual: str = "lpips_alexnet"
    used_for: str = ""

    def score(self, restored: Tensor, clean: Tensor) -> Score:
        """restored, clean: `(B, 1 or 3, H, W)` in [0, 1], of one shape; the clean pictures are taken as they are.

        Raises: ImageError where the shapes differ, no pixel is left inside the border, or the SSIM window does not fit.

        127.6 grey levels for a true 102 are written as 128 under `rgb` and as 127 under `y-matlab`, where luma also
        spans only 219 of 255 levels: 20 log10(255 / 26) = 19.83 dB, and 20 log10(255 / 25 * 255 / 219) = 21.49 dB.

        >>> clean = torch.full((1, 3, 16, 16), 102 / 255)
        >>> restored = torch.full((1, 3, 16, 16), 127.6 / 255)
        >>> [round(PROTOCOLS[name].score(restored, clean).psnr.item(), 2) for name in ("rgb", "y-matlab")]
        [19.83, 21.49]
        """
        same_size(restored, clean)
        if 2 * self.border >= min(clean.shape[-2:]):
            raise ImageError(f"nothing is left of {tuple(clean.shape)} inside a border of {self.border} pixels")
        restored, clean = self._compared(self.written(restored, clean)), self._compared(clean)
        return Score(psnr(restored, clean), SSIM[self.ssim](restored, clean))

    def written(self, restored: Tensor, clean: Tensor) -> Tensor:
        """The restored pictures as their file would hold them, `(B, 1 or 3, H, W)`."""
        if self.clamp:
            restored = restored.clamp(0, 1)
        if self.gt_mean:
            means = [grey(images).mean(dim=(1, 2, 3), keepdim=True) for images in (clean, restored)]
            restored = (restored * (means[0] / means[1].clamp_min(1e-8))).clamp(0, 1)
        # In float32, k / 255 * 255 is k for every grey level k, so truncation leaves a picture read from a file alone.
        if self.rounding == "truncate":
            return (restored.float() * 255).floor() / 255
        if self.rounding == "round":
            return (restored.float() * 255).round() / 255
        return restored

    def _compared(self, images: Tensor) -> Tensor:
        images = images.double()
        if self.border:
            images = images[..., self.border : -self.border, self.border : -self.border]
        if self.colour == "matlab-y":
            return matlab_y(images)
        return grey(images) if self.colour == "grey" else images


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("y-matlab", "matlab-y", "truncate", "wang", used_for="rain: Rain100L, Rain100H (PReNet and paper A)"),
        Protocol("rgb", "rgb", "round", "skimage-uniform7", used_for="haze, underwater: pictures as they are saved"),
        Protocol(
            "rgb-float", "rgb", "none", "skimage-uniform7", clamp=False, used_for="SOTS as GridDehazeNet and paper A"
        ),
        Protocol("grey", "grey", "round", "gaussian-valid", used_for="deconvolution of grey photographs"),
        Protocol("lol-rgb", "rgb", "round", "gaussian-valid", used_for="low light: LOL"),
        Protocol("lol-rgb-gtmean", "rgb", "round", "gaussian-valid", gt_mean=True, used_for="LOL, exposure forgiven"),
    )
}
"""Every protocol by the name that the command line takes and tables print."""
