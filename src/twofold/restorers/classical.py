"""Restorers without weights: the honest baselines a trained model has to beat, and what to use where none was trained.

Deblurring takes the blur kernel as `kernel` and the noise level as `guidance`; a level that is not given is estimated
from the picture and returned. Everything works on batches, grey or colour, channel by channel unless said otherwise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import kornia
import numpy as np
import skimage.exposure
import skimage.restoration
import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import DEPTH, NOISE_LEVEL, Guidance, GuidanceKind, ImageError, Restored, check_images
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
from twofold.restorers.underwater import candidates, statistics

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


@dataclass(frozen=True)
class Classical(ABC):
    """A restorer without weights, restored whole: what the `Restorer` contract asks, with the usual answers."""

    kind: ClassVar[GuidanceKind | None] = None
    channels: ClassVar[int] = 3
    takes_kernel: ClassVar[bool] = False
    halo: ClassVar[int | None] = None
    multiple: ClassVar[int] = 1

    def context(self, observed: Tensor) -> Tensor | None:
        """None: statistics of the whole image are taken at the call."""
        return None

    def estimate(self, observed: Tensor, context: Tensor | None = None) -> Guidance | None:
        """None: there is no guidance, or it is estimated at the call."""
        return None

    @abstractmethod
    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored: ...


@dataclass(frozen=True)
class Deblurring(Classical):
    """Deconvolution with the kernel; guidance is the noise level, estimated from the image where none is given."""

    kind: ClassVar[GuidanceKind | None] = NOISE_LEVEL
    channels: ClassVar[int] = 1
    takes_kernel: ClassVar[bool] = True

    def estimate(self, observed: Tensor, context: Tensor | None = None) -> Tensor:
        return estimate_noise_level(observed).expand(-1, -1, *observed.shape[-2:])


@dataclass(frozen=True)
class Wiener(Deblurring):
    """The best linear filter for pictures whose power falls as 1 / frequency², which those of the world about do.

    The scale of that spectrum is chosen so that the blurred model has the energy of the observed picture minus that
    of the noise. `observed (B, C, H, W)`, kernel `(B, 1, h, w)` → image; guidance: noise level `(B, 1, H, W)`, of
    which the mean power counts.
    """

    border: Border = field(default_factory=EdgeTaper)

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        observed, kernel, level, variance = deblurring(observed, guidance, kernel)
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
        image = inverse_step(extended, otf, variance * height * width * rough / scale + 1e-9)
        return Restored(crop(image, *margin(image, observed)), level)


@dataclass(frozen=True)
class RichardsonLucy(Classical):
    """Multiplicative updates for photon noise (Richardson 1972, Lucy 1974), by scikit-image. Stopping early is its only
    regularisation: more steps sharpen and then amplify noise. It takes no noise level into account, so guidance is
    refused."""

    channels: ClassVar[int] = 1
    takes_kernel: ClassVar[bool] = True
    steps: int = 20

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        if guidance is not None:
            raise ImageError("guidance: Richardson-Lucy has no use for a noise level; choose Wiener or HyperLaplacian")
        observed, kernel, _, _ = deblurring(observed, None, kernel)
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
class HyperLaplacian(Deblurring):
    """argmin over x of fidelity / 2 ‖k * x − y‖² + Σ |∇x|^exponent (Krishnan and Fergus 2009), by half-quadratic
    splitting.

    fidelity = weight / σ^(4/3). Taken as a probability the energy would have σ² there; with a prior this crude the
    least squared error on photographs at 1 to 7 % of noise asks for the smaller power. Guidance as in `Wiener`.
    """

    exponent: float = 2 / 3
    weight: float = 4.3
    border: Border = field(default_factory=BoundaryAdjustment)

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        observed, kernel, level, variance = deblurring(observed, guidance, kernel)
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
        return Restored(crop(image, *margin(image, observed)), level)


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


@dataclass(frozen=True)
class DarkChannel(Classical):
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

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        observed = full_precision(check_images(observed, channels=3))
        airlight = self._airlight(observed)
        depth = self.estimate(observed) if guidance is None else as_map(guidance)
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
class Gamma(Classical):
    """observed ** exponent. exponent: below 1 brightens; None brings the mean of each picture to `target`."""

    exponent: float | None = None
    target: float = 0.45

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
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
class Clahe(Classical):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of the brightness, by scikit-image.

    limit: of the slope, in (0, 1]; larger means more contrast, and more noise.
    """

    limit: float = 0.01

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        observed = full_precision(check_images(observed)).clamp(0, 1)

        def equalise(array: np.ndarray) -> np.ndarray:
            picture = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
            out = skimage.exposure.equalize_adapthist(picture, clip_limit=self.limit)
            return out[None] if len(array) == 1 else out.transpose(2, 0, 1)  # type: ignore[no-any-return]

        return Restored(torch.stack([numpy_map(picture, equalise) for picture in observed]))


@dataclass(frozen=True)
class GreyWorld(Classical):
    """Scales each channel so that all have the mean of the picture (Buchsbaum 1980): takes a colour cast away, and
    with it the
    colour of a picture that has one."""

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        observed = full_precision(check_images(observed))
        means = observed.mean((2, 3), keepdim=True)
        return Restored(observed * (means.mean(1, keepdim=True) / means.clamp_min(1e-4)))


@dataclass(frozen=True)
class UnderwaterStretch(Classical):
    """The mean of three stretches: of the image's channels, of the channels after red compensation and grey world, and
    of all its channels together (see `nets.mixture.candidates`)."""

    halo: ClassVar[int | None] = 0

    def context(self, observed: Tensor) -> Tensor:
        """`(B, 20)`: statistics of the whole image."""
        return statistics(observed)

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        observed = full_precision(check_images(observed, channels=3))
        stats = self.context(observed) if context is None else context
        return Restored(candidates(observed, stats)[:, 2:].mean(1))


@dataclass(frozen=True)
class MultiScaleRetinex(Classical):
    """Brightness relative to its surroundings at several scales (Jobson, Rahman and Woodell 1997), colours kept.

    The brightness is replaced by mean over scales of log(brightness / surroundings), stretched from its 1st to its 99th
    percentile; each pixel keeps the ratio of its channels (Petro, Sbert and Morel 2014). scales: in pixels.
    """

    scales: tuple[float, ...] = (15.0, 80.0, 250.0)

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        observed = full_precision(check_images(observed)).clamp(0, 1)
        brightness = observed.mean(1, keepdim=True) + 1 / 255
        relative = sum(torch.log(brightness / wide_blur(brightness, scale)) for scale in self.scales)
        flat = relative.flatten(1)  # type: ignore[union-attr]
        ends = torch.stack([percentile(flat, part) for part in (0.01, 0.99)])
        low, high = ends[:, :, None, None, None]
        gain = ((relative - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) / brightness
        # no channel beyond white: the colour stays, the pixel is less bright
        return Restored(observed * torch.minimum(gain, 1 / observed.amax(1, keepdim=True).clamp_min(1e-3)))


CLASSICAL: dict[str, Classical] = {
    "wiener": Wiener(),
    "richardson-lucy": RichardsonLucy(),
    "hyper-laplacian": HyperLaplacian(),
    "dark-channel": DarkChannel(),
    "gamma": Gamma(),
    "clahe": Clahe(),
    "grey-world": GreyWorld(),
    "retinex": MultiScaleRetinex(),
    "underwater-stretch": UnderwaterStretch(),
}
"""By the names that cards and the command line use."""


def percentile(values: Tensor, part: float) -> Tensor:
    """The value `(B,)` below which `part` of each row of `values (B, N)` lies; `torch.quantile` ends at 16 million."""
    rank = min(max(1, round(part * values.shape[1])), values.shape[1])
    return values.kthvalue(rank, dim=1).values


def wide_blur(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of any width at the price of a narrow one: a wide blur is done on a coarser picture."""
    factor = max(1, min(int(deviation / 4), min(images.shape[-2:]) // 4))
    coarse = F.avg_pool2d(images, factor, ceil_mode=True, count_include_pad=False) if factor > 1 else images
    narrow = deviation / factor
    side = [min(2 * math.ceil(3 * narrow) + 1, 2 * n - 1) for n in coarse.shape[-2:]]
    out: Tensor = kornia.filters.gaussian_blur2d(coarse, (side[0], side[1]), (narrow, narrow), "reflect")
    return F.interpolate(out, images.shape[-2:], mode="bilinear") if factor > 1 else out


def deblurring(
    observed: Tensor, guidance: Guidance | None, kernel: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checked observed and kernel, noise level as a map `(B, 1, H, W)`, its mean power `(B, 1, 1, 1)`."""
    observed = full_precision(check_images(observed))
    if kernel is None:
        raise ImageError("kernel: deconvolution needs a blur kernel (B, 1, h, w), got none; pass one or estimate it")
    kernel = check_kernel(kernel, (observed.shape[-2], observed.shape[-1])).to(observed)
    if guidance is None:
        guidance = estimate_noise_level(observed).expand(-1, -1, *observed.shape[-2:])
    guidance = as_map(guidance)
    check_noise_level(guidance)
    variance = full_precision(guidance).square().mean((1, 2, 3), keepdim=True).clamp_min(LEAST_NOISE**2)
    return observed, kernel, guidance, variance


def as_map(guidance: Guidance) -> Tensor:
    """Raises: ImageError for a function of stages, which these methods do not have."""
    if not isinstance(guidance, Tensor):
        raise ImageError(f"guidance: expected a map (B, 1, H, W), got {type(guidance).__name__}")
    return guidance


def derivatives(images: Tensor) -> tuple[Tensor, Tensor]:
    """Transfer functions of the differences to the pixel above and to the left, on the circle of `images`."""
    step = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 0.0]]).to(images)[None, None]
    size = (images.shape[-2], images.shape[-1])
    return psf2otf(step.mT, size), psf2otf(step, size)


def numpy_map(tensor: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """`function` of the tensor as float64 array, back in the dtype and on the device of the tensor."""
    return torch.from_numpy(np.ascontiguousarray(function(tensor.double().cpu().numpy()))).to(tensor)
