"""Estimating an unknown blur kernel from the image; any restorer that takes a kernel then removes the blur.

From coarse to fine, two steps alternate: an image with few edges (the number of nonzero gradients is penalised: Xu,
Zheng and Jia 2013; Pan et al. 2014), and the kernel that turns its edges into those of the observed image. Pixels that
the model cannot explain, such as clipped lights, and everything beyond the border are replaced by the model's
prediction, which removes the weight of outliers (in the spirit of Pan et al. 2016). The image of edges is discarded;
the kernel is the result.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ImageError, Progress, check_images
from twofold.degrade.blur import check_kernel, read_kernel
from twofold.images import Picture
from twofold.nets.fourier import EdgeTaper, convolve, crop, full_precision, margin, psf2otf
from twofold.restorers.deconvolution import derivatives

SCALE_STEP = math.sqrt(2)
SMALLEST_KERNEL = 5
STIFFEST = 1e3  # of the half-quadratic penalty; stiffer costs time and changes no kernel
CLIPPED = 0.99


@dataclass(frozen=True)
class KernelEstimate:
    """kernel `(1, 1, h, w)`, odd-sided, summing to 1, its centre of mass in the middle.

    confidence: in [0, 1]: how similar the kernels of the two halves of the image are, each estimated by itself (largest
    normalised cross-correlation); reduced where the kernel is close to a point, which any image gives and which means
    that no blur was found. Low: the blur varies over the image, there are too few edges, or the search failed. A high
    value does not prove the kernel right.
    """

    kernel: Tensor
    confidence: float


@dataclass(frozen=True)
class KernelSearch:
    """observed `(1, C, H, W)` → `KernelEstimate`. One kernel for the whole picture: camera shake, not things that move.

    size: side of the kernel in pixels, odd, rather too large; far too large costs time and robustness. edges: how many
    gradients the auxiliary picture may have at first; smaller keeps more. smooth: weight of the kernel's square,
    against noise in it. rounds: of picture and kernel a scale. window: only the middle of larger pictures is looked
    at, in pixels a side.
    """

    size: int = 31
    edges: float = 3e-2
    smooth: float = 0.02
    rounds: int = 5
    window: int = 512

    def __post_init__(self) -> None:
        if self.size < 3 or self.size % 2 == 0:
            raise ImageError(f"kernel size: expected an odd number from 3, got {self.size}")

    def __call__(self, observed: Tensor, progress: Progress | None = None) -> KernelEstimate:
        """Of one picture `(1, C, H, W)`. progress: called with (work done, work in all) first and after each round of
        the search; what it raises ends the search.
        """
        grey = full_precision(check_images(observed)).mean(1, keepdim=True)
        if len(grey) != 1:
            raise ImageError(f"observed: kernels are estimated from one picture at a time, got {len(grey)}")
        if min(grey.shape[-2:]) < 4 * self.size:
            raise ImageError(
                f"observed: {grey.shape[-2]}x{grey.shape[-1]} is too small to find a kernel of {self.size} pixels in; "
                "give a smaller size"
            )
        grey = crop(grey, max(0, (grey.shape[-2] - self.window) // 2), max(0, (grey.shape[-1] - self.window) // 2))
        grey, valid = without_clipped(grey)
        sizes = [self.size]
        while sizes[-1] > SMALLEST_KERNEL:
            sizes.append(max(SMALLEST_KERNEL, odd(sizes[-1] / SCALE_STEP)))
        kernel = torch.zeros(1, 1, sizes[-1], sizes[-1]).to(grey)
        middle = sizes[-1] // 2
        kernel[..., middle, middle : middle + 2] = (
            0.5  # a point would be a fixed point of the search: no blur explains all
        )
        edges = self.edges
        done, total = 0, self.rounds * sum(size**2 for size in sizes)  # a round costs as the pixels that it sees
        if progress:
            progress(done, total)
        for size in reversed(sizes):
            factor = size / self.size
            scaled, usable = grey, valid
            if factor < 1:
                scaled = F.interpolate(grey, scale_factor=factor, mode="bicubic", antialias=True, align_corners=False)
                usable = (F.interpolate(valid, size=scaled.shape[-2:], mode="area") > 0.9).to(grey)
            kernel = centre(tidy(F.interpolate(kernel, (size, size), mode="bicubic").clamp_min(0)))
            for _ in range(self.rounds):
                sharp, target = self._edges(scaled, usable, kernel, edges)
                kernel = centre(tidy(fit_kernel(sharp, target, size, self.smooth)))
                edges = max(edges / 1.1, 1e-4)  # first only the strongest edges, which are the surest
                done += size**2
                if progress:
                    progress(done, total)
        halves = torch.chunk(torch.arange(grey.shape[-1]), 2)
        left, right = (
            tidy(fit_kernel(sharp[..., columns], target[..., columns], self.size, self.smooth)) for columns in halves
        )
        point = torch.ones(1, 1, 1, 1).to(kernel)
        return KernelEstimate(kernel, similarity(left, right) * min(1.0, 2 * (1 - similarity(kernel, point))))

    def _edges(self, observed: Tensor, usable: Tensor, kernel: Tensor, edges: float) -> tuple[Tensor, Tensor]:
        """The picture with few edges that the kernel blurs into the observed one, and that one without its outliers.

        argmin ‖k * x − y‖² + edges ‖∇x‖₀ by half-quadratic splitting; both `(1, 1, H, W)`.
        """
        extended = image = EdgeTaper().extend(observed, kernel)
        rows, columns = margin(extended, observed)
        otf = psf2otf(kernel, (extended.shape[-2], extended.shape[-1]))
        down, across = derivatives(extended)
        power = otf.real**2 + otf.imag**2
        rough = down.real**2 + down.imag**2 + across.real**2 + across.imag**2
        inside = F.pad(usable, (columns, columns, rows, rows))
        seen = F.pad(observed, (columns, columns, rows, rows))
        penalty = 2 * edges
        while penalty < STIFFEST:
            spectrum = torch.fft.rfft2(image)
            size = image.shape[-2:]
            steps = [torch.fft.irfft2(spectrum * transfer, s=size) for transfer in (down, across)]
            kept = steps[0] ** 2 + steps[1] ** 2 > edges / penalty
            pull = sum(
                transfer.conj() * torch.fft.rfft2(step * kept)
                for transfer, step in zip((down, across), steps, strict=True)
            )
            blurred = otf.conj() * torch.fft.rfft2(extended)
            image = torch.fft.irfft2((blurred + penalty * pull) / (power + penalty * rough + 1e-9), s=size)
            predicted = convolve(image, otf)
            trust = inside * reliability(seen - predicted, inside)
            extended = trust * seen + (1 - trust) * predicted
            penalty *= 2
        return crop(image, rows, columns), crop(extended, rows, columns)


def without_clipped(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Clipped pixels filled from their surroundings, and 1 where a pixel is not clipped, else 0: both `(1, 1, H, W)`.

    Light beyond white breaks y = k * x, and its edges would be the strongest of all.
    """
    valid = (grey < CLIPPED).to(grey)
    if not valid.any():  # a white picture: nothing is to be learned from it either way
        valid = torch.ones_like(grey)
    side = 2 * (min(grey.shape[-2:]) // 16) + 1
    known = F.avg_pool2d(valid, side, 1, side // 2)
    around = F.avg_pool2d(grey * valid, side, 1, side // 2) / known.clamp_min(1e-6)
    filled = torch.where(known > 0, around, grey)
    return torch.where(valid > 0, grey, filled), valid


def reliability(residual: Tensor, inside: Tensor) -> Tensor:
    """`(1, 1, H, W)`: 1 where the residual is usual for the image, towards 0 for outliers (Geman-McClure weights)."""
    usual = residual.abs()[inside > 0].median() / 0.6745
    return 1 / (1 + (residual / (6 * usual + 1e-3)) ** 2) ** 2


def fit_kernel(sharp: Tensor, observed: Tensor, size: int, smooth: float) -> Tensor:
    """argmin over k ≥ 0 of ‖k * ∇sharp − ∇observed‖² + smooth · ‖∇sharp‖² ‖k‖², k of `size`: `(1, 1, size, size)`.

    The pictures enter through their correlations at shifts within the kernel alone, so the projected gradient steps
    (FISTA, Beck and Teboulle 2009) cost the same for a picture of any size.
    """
    window, spectra = hann(sharp), []
    for axis in (-2, -1):
        cause = torch.fft.rfft2(window * (sharp - sharp.roll(1, axis)))
        effect = torch.fft.rfft2(window * (observed - observed.roll(1, axis)))
        spectra.append((cause.real**2 + cause.imag**2, cause.conj() * effect))
    reach = size - 1  # largest shift between two places of a kernel
    power = spectra[0][0] + spectra[1][0]
    alike = torch.fft.irfft2(torch.complex(power, torch.zeros_like(power)), s=sharp.shape[-2:])
    alike = alike.roll((reach, reach), (-2, -1))[..., : 2 * size - 1, : 2 * size - 1]
    wanted = torch.fft.irfft2(spectra[0][1] + spectra[1][1], s=sharp.shape[-2:])
    wanted = wanted.roll((size // 2, size // 2), (-2, -1))[..., :size, :size]
    energy = alike[..., reach, reach].clamp_min(1e-12)
    alike, wanted = alike / energy, wanted / energy
    otf = psf2otf(alike, (2 * size + reach, 2 * size + reach))
    bound = float(otf.abs().max()) + smooth
    k: Tensor = wanted.clamp_min(0)
    ahead = k
    momentum = 1.0
    for _ in range(80):
        padded = F.pad(ahead, (0, size + reach, 0, size + reach))
        gradient = convolve(padded, otf)[..., :size, :size] - wanted + smooth * ahead
        new = (ahead - gradient / bound).clamp_min(0)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - k)
        k, momentum = new, following
    return k


def hann(images: Tensor) -> Tensor:
    """`(H, W)` for `(B, C, H, W)`: 1 inside, falling to 0 over the outer sixteenth of each side."""
    fades = []
    for length in images.shape[-2:]:
        distance = torch.arange(length).minimum(torch.arange(length).flip(0)) / max(length / 16, 1)
        fades.append(torch.sin(0.5 * math.pi * distance.clamp(max=1)) ** 2)
    return (fades[0][:, None] * fades[1]).to(images)


def tidy(kernel: Tensor) -> Tensor:
    """The kernel `(1, 1, h, w)` without weights under 1/20 of the largest, without small components; sum 1."""
    kernel = kernel * (kernel > 0.05 * kernel.max())
    labels, count = scipy.ndimage.label((kernel[0, 0] > 0).cpu().numpy(), structure=[[1, 1, 1]] * 3)
    parts = torch.from_numpy(labels).to(kernel.device)
    for part in range(1, count + 1):
        small = parts == part
        if float(kernel[0, 0][small].sum()) < 0.1 * float(kernel.sum()):
            kernel = kernel * ~small
    if float(kernel.sum()) <= 0:
        kernel = torch.zeros_like(kernel)
        kernel[..., kernel.shape[-2] // 2, kernel.shape[-1] // 2] = 1
    return kernel / kernel.sum()


def centre(kernel: Tensor) -> Tensor:
    """The kernel `(1, 1, h, w)` moved by whole pixels so that its centre of mass is in the middle, and cut there."""
    height, width = kernel.shape[-2:]
    down = float((kernel.sum(-1)[0, 0] * torch.arange(height).to(kernel)).sum()) - height // 2
    right = float((kernel.sum(-2)[0, 0] * torch.arange(width).to(kernel)).sum()) - width // 2
    rows, columns = round(down), round(right)
    pad = max(abs(rows), abs(columns))
    moved = F.pad(kernel, (pad, pad, pad, pad)).roll((-rows, -columns), (-2, -1))
    moved = crop(moved, pad, pad)
    return moved / moved.sum()


def similarity(one: Tensor, other: Tensor) -> float:
    """Largest normalised cross-correlation of two kernels `(1, 1, h, w)` over all shifts (Hu and Yang 2012), 0 to 1."""
    size = [a + b for a, b in zip(one.shape[-2:], other.shape[-2:], strict=True)]
    spectrum = torch.fft.rfft2(one, s=size) * torch.fft.rfft2(other, s=size).conj()
    correlation = torch.fft.irfft2(spectrum, s=size).max() / (one.norm() * other.norm())
    return min(max(float(correlation), 0.0), 1.0)


def odd(value: float) -> int:
    """The nearest odd number."""
    return 2 * round((value - 1) / 2) + 1


Kernel: TypeAlias = "str | os.PathLike[str] | Tensor | NDArray[Any] | KernelSearch"
"""A file, `(h, w)` numbers, "estimate", or how to search."""
SEARCH_SHARE = 0.8
"""Of the progress of a restoration whose kernel is searched for, the share that is the search."""


def is_search(kernel: Kernel | None) -> bool:
    """Whether the kernel has to be found in the picture."""
    return isinstance(kernel, KernelSearch) or (isinstance(kernel, str) and kernel == "estimate")


def kernel_for(
    picture: Picture, kernel: Kernel | None, *, progress: Progress | None = None
) -> tuple[Tensor | None, KernelEstimate | None]:
    """(checked kernel `(1, 1, h, w)`, what its estimation says): of a file, a tensor, an array, "estimate" or a search.

    progress: of a search.

    Raises: ImageError for what is no kernel, or one that is larger than the picture.
    """
    if kernel is None:
        return None, None
    if is_search(kernel):
        search = kernel if isinstance(kernel, KernelSearch) else KernelSearch()
        estimate = search(picture.pixels.float(), progress)
        return estimate.kernel, estimate
    size = (picture.pixels.shape[-2], picture.pixels.shape[-1])
    if isinstance(kernel, np.ndarray) and kernel.dtype.kind in "buif":
        kernel = torch.from_numpy(kernel.astype(np.float32))
    if not isinstance(kernel, (str, os.PathLike, Tensor)):
        got = f"an array of {kernel.dtype}" if isinstance(kernel, np.ndarray) else type(kernel).__name__
        raise ImageError(f"kernel: expected a file, a tensor or array (h, w) of numbers, or 'estimate', got {got}")
    checked = check_kernel(kernel if isinstance(kernel, Tensor) else read_kernel(Path(kernel)), size)
    if len(checked) != 1:
        raise ImageError(f"kernel: one picture has one kernel, got {len(checked)}")
    return checked.float(), None
