"""Deconvolution without learned weights: baselines for the trained models.

The kernel is given, the noise level is the guidance; a level that is not given is estimated from the image and
returned. Everything works on batches, grey or colour, channel by channel.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import skimage.restoration
import torch
from torch import Tensor

from twofold.contracts import NOISE_LEVEL, GuidanceKind, ImageError, Inputs, Restored, Restorer, check_images
from twofold.degrade.blur import check_kernel, check_noise_level
from twofold.nets.fourier import (
    Border,
    BoundaryAdjustment,
    EdgeTaper,
    crop,
    full_precision,
    inverse_step,
    margin,
    psf2otf,
)
from twofold.restorers.classical import as_map, numpy_map

# No photograph is free of noise: rounding to 8 bits alone leaves 1 / (255 sqrt(12)).
LEAST_NOISE = 1 / (255 * math.sqrt(12))


def estimate_noise_level(observed: Tensor) -> Tensor:
    """Standard deviation of white noise in `observed (B, C, H, W)`, one a picture: `(B, 1, 1, 1)`, on the [0, 1] scale.

    Median absolute diagonal Haar detail divided by 0.6745 (Donoho and Johnstone 1994), averaged over channels; at
    least what rounding to 8 bits leaves. Blur helps it, since the detail is then noise alone. Texture in sharp
    pictures raises it, noise that is not white, as after JPEG, lowers it.

    >>> noise = 0.05 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> round(estimate_noise_level(0.5 + noise).item(), 2)
    0.05
    """
    height, width = observed.shape[-2] // 2 * 2, observed.shape[-1] // 2 * 2
    if height == 0 or width == 0:
        raise ImageError(f"observed: the noise level needs at least 2x2 pixels, got {tuple(observed.shape)}")
    x = full_precision(observed)[..., :height, :width]
    diagonal = (x[..., ::2, ::2] - x[..., 1::2, ::2] - x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 2
    level = diagonal.abs().flatten(2).median(-1).values.mean(1) / 0.6745
    return level.clamp_min(LEAST_NOISE)[:, None, None, None]


class NoiseAware(Restorer):
    """Deconvolution whose guidance is the noise level `(B, 1, H, W)`, estimated from the image where none is given."""

    kind: ClassVar[GuidanceKind | None] = NOISE_LEVEL
    channels: ClassVar[int] = 1
    takes_kernel: ClassVar[bool] = True

    def estimate(self, observed: Tensor, context: Tensor | None = None) -> Tensor:
        """One level for every pixel, `(B, 1, H, W)`, a standard deviation on the [0, 1] scale."""
        return estimate_noise_level(observed).expand(-1, -1, *observed.shape[-2:])

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        observed, kernel = checked_blur(observed, inputs.kernel)
        level = self.estimate(observed) if inputs.guidance is None else as_map(inputs.guidance)
        check_noise_level(level)
        variance = full_precision(level).square().mean((1, 2, 3), keepdim=True).clamp_min(LEAST_NOISE**2)
        image = self._extended(observed, kernel, variance)
        return Restored(crop(image, *margin(image, observed)), level)

    @abstractmethod
    def _extended(self, observed: Tensor, kernel: Tensor, variance: Tensor) -> Tensor:
        """The restored image, and beyond its border what the method assumes there. variance: `(B, 1, 1, 1)`."""


@dataclass(frozen=True)
class Wiener(NoiseAware):
    """The best linear filter for images whose power falls as 1 / frequency², as that of photographs about does.

    The scale of that spectrum is chosen so that the blurred model has the energy of the observed picture minus that
    of the noise. `observed (B, C, H, W)`, kernel `(B, 1, h, w)` → image; guidance: noise level `(B, 1, H, W)`, of
    which the mean power counts.
    """

    border: Border = field(default_factory=EdgeTaper)

    def _extended(self, observed: Tensor, kernel: Tensor, variance: Tensor) -> Tensor:
        extended = self.border.extend(observed, kernel)
        height, width = extended.shape[-2], extended.shape[-1]
        otf = psf2otf(kernel, (height, width))
        rough = sum(transfer.real**2 + transfer.imag**2 for transfer in derivatives(extended))
        # Energy without the mean: Σ |Y|² = scale Σ |K|² / |D|² + noise. `rfft2` keeps half of the spectrum; so do
        # both sums.
        seen = torch.fft.rfft2(extended).abs().square().mean(1, keepdim=True)
        model = (otf.real**2 + otf.imag**2) / rough.clamp_min(1e-12)  # type: ignore[union-attr]
        seen[..., 0, 0], model[..., 0, 0] = 0, 0
        signal = (seen.sum((2, 3)) - variance[:, :, 0, 0] * seen[0, 0].numel() * height * width).clamp_min(1e-12)
        scale = (signal / model.sum((2, 3)))[:, :, None, None]
        return inverse_step(extended, otf, variance * height * width * rough / scale + 1e-9)


@dataclass(frozen=True)
class RichardsonLucy(Restorer):
    """Multiplicative updates for photon noise (Richardson 1972, Lucy 1974), by scikit-image. Stopping early is its only
    regularisation: more steps sharpen and then amplify noise. It has no noise level, so a map is refused.
    """

    channels: ClassVar[int] = 1
    takes_kernel: ClassVar[bool] = True
    steps: int = 20

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        observed, kernel = checked_blur(observed, inputs.kernel)
        extended = EdgeTaper().extend(observed, kernel)
        kernels = kernel.expand(len(observed), -1, -1, -1)

        def one(plane: Tensor, psf: Tensor) -> Tensor:
            return numpy_map(
                plane,
                lambda array: skimage.restoration.richardson_lucy(
                    array, psf.double().cpu().numpy(), num_iter=self.steps, clip=False, filter_epsilon=1e-6
                ),
            )

        image = torch.stack(
            [
                torch.stack([one(plane, psf[0]) for plane in planes])
                for planes, psf in zip(extended, kernels, strict=True)
            ]
        )
        return Restored(crop(image, *margin(image, observed)))


@dataclass(frozen=True)
class HyperLaplacian(NoiseAware):
    """argmin over x of fidelity / 2 ‖k * x − y‖² + Σ |∇x|^exponent (Krishnan and Fergus 2009), by half-quadratic
    splitting.

    fidelity = weight / σ^(4/3). Taken as a probability the energy would have σ² there; with a prior this crude the
    least squared error on photographs at 1 to 7 % of noise asks for the smaller power. Guidance as in `Wiener`.
    """

    exponent: float = 2 / 3
    weight: float = 4.3
    border: Border = field(default_factory=BoundaryAdjustment)

    def _extended(self, observed: Tensor, kernel: Tensor, variance: Tensor) -> Tensor:
        extended = image = self.border.extend(observed, kernel)
        otf = psf2otf(kernel, (image.shape[-2], image.shape[-1]))
        fidelity = self.weight / variance ** (2 / 3)
        down, across = derivatives(image)
        rough = down.real**2 + down.imag**2 + across.real**2 + across.imag**2
        penalty = 1.0
        while penalty < 256:  # the schedule of the paper: six steps, each 2√2 times stiffer
            spectrum = torch.fft.rfft2(image)
            pull = torch.zeros_like(spectrum)
            for transfer in (down, across):
                gradient = torch.fft.irfft2(spectrum * transfer, s=image.shape[-2:])
                pull = pull + transfer.conj() * torch.fft.rfft2(shrink(gradient, self.exponent, penalty))
            blurred = otf.conj() * torch.fft.rfft2(extended)
            ratio = penalty / fidelity
            image = torch.fft.irfft2(
                (blurred + ratio * pull) / (otf.real**2 + otf.imag**2 + ratio * rough + 1e-12), s=image.shape[-2:]
            )
            extended = self.border.renew(extended, observed, otf, image)
            penalty *= 2 * math.sqrt(2)
        return image


def shrink(v: Tensor, exponent: float, penalty: float) -> Tensor:
    """argmin over w of |w|^exponent + penalty / 2 (w − v)², elementwise, 0 < exponent < 1.

    Zero up to a threshold, beyond it the larger root, by fixed-point iteration (Zuo et al. 2013, generalised soft
    thresholding).

    >>> shrink(torch.tensor([0.1, 10.0]), 2 / 3, 1.0)
    tensor([0.0000, 9.6873])
    """
    rise = (2 * (1 - exponent) / penalty) ** (1 / (2 - exponent))
    threshold = rise + exponent / penalty * rise ** (exponent - 1)
    size = v.abs()
    w = size.clamp_min(threshold)
    for _ in range(4):
        w = size.clamp_min(threshold) - exponent / penalty * w ** (exponent - 1)
    return torch.where(size > threshold, torch.copysign(w, v), torch.zeros_like(v))


def checked_blur(observed: Tensor, kernel: Tensor | None) -> tuple[Tensor, Tensor]:
    """`observed (B, C, H, W)` in float32 and its kernel `(B or 1, 1, h, w)`. Raises: ImageError for what is neither."""
    observed = full_precision(check_images(observed))
    if kernel is None:
        raise ImageError("kernel: deconvolution needs a blur kernel (B, 1, h, w), got none; pass one or estimate it")
    return observed, check_kernel(kernel, (observed.shape[-2], observed.shape[-1])).to(observed)


def derivatives(images: Tensor) -> tuple[Tensor, Tensor]:
    """Transfer functions `(1, 1, H, W / 2 + 1)` of the differences to the pixel above and to the left, of periodic
    `images (B, C, H, W)`.
    """
    step = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 0.0]]).to(images)[None, None]
    size = (images.shape[-2], images.shape[-1])
    return psf2otf(step.mT, size), psf2otf(step, size)
