"""Blur with noise, y = k * x + n: where kernels come from, what makes an array a kernel, and how a photograph is
blurred by it.

Only the valid part of the convolution is kept, so that what lies beyond the border of the blurred picture is unknown,
as in a photograph; circular blur favours every method that divides in the Fourier domain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ConfigError, DataError, Degradation, ImageError, Sample, check_images
from twofold.degrade.additive import GaussianNoise, uniform_between
from twofold.files import read_matlab
from twofold.nets.fourier import convolve, crop, psf2otf
from twofold.settings import Chosen, Range, Rate

# Checks that tell a kernel from a photograph look at the rim only of arrays that are at least this large: a small
# kernel, or a line one pixel high, may well be full to its border.
SMALL_KERNEL = 16

Side = Annotated[int, Field(ge=3)]


def check_kernel(kernel: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Returns `kernel` as `(B, 1, h, w)`, odd-sided, not negative, each summing to 1; or raises.

    kernel: `(h, w)`, `(1 or 3, h, w)` or `(B, 1 or 3, h, w)`, in any unit: a picture of a kernel has grey levels, and
    is divided by its sum. Three channels are taken if they agree. A side that is even gets one empty row or column at
    its far end, which keeps the middle at n // 2, as MATLAB has it; the restored picture may then sit half a pixel
    aside, which no kernel can tell. size: (H, W) of the picture to deblur, which must be larger.

    Raises: ImageError if it is no array of that shape, colour, not finite, negative, all zero, larger than the
    picture, or looks like a photograph (or like a kernel printed black on white).

    >>> check_kernel(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
    tensor([[[[0.0000, 0.5000, 0.0000],
              [0.5000, 0.0000, 0.0000],
              [0.0000, 0.0000, 0.0000]]]])
    """
    shape = tuple(kernel.shape)
    if not 2 <= kernel.ndim <= 4 or kernel.numel() == 0:
        raise ImageError(f"kernel: expected (h, w) or (B, 1, h, w), got {shape}")
    kernel = kernel.reshape((1,) * (4 - kernel.ndim) + shape)
    kernel = kernel if kernel.dtype == torch.float64 else kernel.float()
    if not torch.isfinite(kernel).all():
        raise ImageError("kernel: holds NaN or infinite values; a blur kernel is a finite array of weights")
    peak = float(kernel.abs().max())
    if kernel.shape[1] == 3:
        if float((kernel - kernel[:, :1]).abs().max()) > 0.02 * peak:
            raise ImageError("kernel: its three channels differ; one kernel blurs all channels, so pass a grey one")
        kernel = kernel.mean(1, keepdim=True)
    if kernel.shape[1] != 1:
        raise ImageError(f"kernel: expected one channel, got {kernel.shape[1]} in {shape}")
    if peak == 0 or (kernel.sum((1, 2, 3)) == 0).any():
        raise ImageError("kernel: all its weights are zero, so it would leave nothing of the picture")
    least = float(kernel.min())
    if least < -1e-6 * peak:
        raise ImageError(f"kernel: has negative weights (least {least:.3g}); light is never subtracted, clip them")
    kernel = kernel.clamp_min(0)
    h, w = kernel.shape[-2:]
    if size is not None and (h >= size[0] or w >= size[1]):
        raise ImageError(
            f"kernel: {h}x{w} is not smaller than the picture, {size[0]}x{size[1]}; were kernel and picture swapped? "
            "If not, crop the kernel's empty border"
        )
    rim = torch.cat([kernel[..., 0, :], kernel[..., -1, :], kernel[..., :, 0], kernel[..., :, -1]], -1)
    flat = float(kernel.min()) > 0.999 * peak
    if min(h, w) >= SMALL_KERNEL and float(rim.mean()) > 0.1 * peak and not flat:
        raise ImageError(
            f"kernel: {h}x{w} with weight up to its rim looks like a photograph, or a kernel drawn black on white; "
            "a kernel is dark but for the path of the blur"
        )
    kernel = F.pad(kernel, (0, 1 - w % 2, 0, 1 - h % 2))
    return kernel / kernel.sum((1, 2, 3), keepdim=True)


def check_noise_level(level: float | Tensor) -> float | Tensor:
    """Returns `level`, a standard deviation on the [0, 1] scale (a number or a map `(B, 1, H, W)`), or raises
    ImageError.

    >>> check_noise_level(15.0)
    Traceback (most recent call last):
    twofold.contracts.ImageError: noise level: 15 is above 1, so it looks like grey levels; on the [0, 1] scale it is
    15/255 = 0.0588
    """
    values = torch.as_tensor(level)
    if not torch.isfinite(values).all():
        raise ImageError(
            "noise level: is not a finite number; give a standard deviation on the [0, 1] scale, like 0.02"
        )
    least, most = float(values.min()), float(values.max())
    if least < 0:
        raise ImageError(f"noise level: {least:g} is negative; a standard deviation is 0 or more")
    if most > 1:
        raise ImageError(
            f"noise level: {most:g} is above 1, so it looks like grey levels; "
            f"on the [0, 1] scale it is {most:g}/255 = {most / 255:.4f}"
        )
    return level


LARGEST_KERNEL = 4096**2
"""Values of the largest kernel file that is read."""


def read_kernel(path: str | Path) -> Tensor:
    """A checked kernel `(1, 1, h, w)` from a picture, `.npy`, `.mat` or text (`.dlm`, `.txt`, `.csv`: one row a line).

    Raises: ImageError if the file cannot be read, is no kernel (see `check_kernel`) or holds several.
    """
    path = Path(path)
    if path.suffix == ".mat":
        found = _matlab_kernels(path)
        if len(found) > 1:
            raise ImageError(f"kernel: {path} holds {len(found)} kernels; keep the wanted one in a file of its own")
        return found[0]
    try:
        if path.suffix == ".npy":
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # checks the size that the header promises
            if mapped.size > LARGEST_KERNEL:
                raise ValueError(f"its shape is {mapped.shape}, more than a kernel can have")
            array = torch.from_numpy(mapped.astype(np.float32))
        elif path.suffix in (".dlm", ".txt", ".csv"):
            rows = path.read_text().replace(",", " ").replace(";", " ").split("\n")
            array = torch.tensor([[float(word) for word in row.split()] for row in rows if row.strip()])
        else:
            from twofold.images import read  # only here: the rest of this module works without picture files

            array = read(path).pixels
    except (OSError, ValueError) as error:
        raise ImageError(f"kernel: {path} cannot be read: {error}") from error
    return check_kernel(array)


MATLAB_KERNELS = ("kernels", "f", "k", "kernel", "psf", "h")
"""Names of variables under which `.mat` files keep kernels: a cell array `kernels`, Levin's `f`, and what is usual."""


def _matlab_kernels(path: Path) -> tuple[Tensor, ...]:
    """Those of the first variable in `MATLAB_KERNELS`, or of the only variable there is."""
    try:
        variables = read_matlab(path)
    except DataError as error:
        raise ImageError(f"kernel: {error}") from error
    name = next((name for name in MATLAB_KERNELS if name in variables), None)
    if name is None and len(variables) == 1:
        (name,) = variables
    if name is None:
        raise ImageError(
            f"kernel: {path} holds no kernel: variables {', '.join(variables) or 'none'}, where one of "
            f"{', '.join(MATLAB_KERNELS)} is looked for"
        )
    return tuple(check_kernel(torch.from_numpy(np.asarray(array, np.float32))) for array in variables[name])


def read_kernels(path: str | Path) -> tuple[Tensor, ...]:
    """The different kernels of a folder or of a pattern (`sets/kernel*.png`), by name; those of a `.mat` file; or the
    one of another file. A kernel that is there several times, as in Levin's 32 files, is kept once.

    Raises: ImageError if there is none, or one cannot be read.
    """
    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if "*" in path.name:
        files = sorted(path.parent.glob(path.name))
    if not files:
        raise ImageError(f"kernel: {path} holds no files; put kernel files there")
    different: dict[tuple[tuple[int, ...], bytes], Tensor] = {}
    for file in files:
        for kernel in _matlab_kernels(file) if file.suffix == ".mat" else (read_kernel(file),):
            different.setdefault((tuple(kernel.shape), kernel.numpy().tobytes()), kernel)
    return tuple(different.values())


class Kernels(Protocol):
    """A source of kernels, all of one size so that they can be batched."""

    @property
    def size(self) -> int:
        """Side of every kernel, odd."""
        ...

    def __call__(self, generator: torch.Generator) -> Tensor:
        """`(1, 1, size, size)`, summing to 1."""
        ...


@dataclass(frozen=True, eq=False)
class Given:
    """One of the given kernels `(1, 1, h, w)` at random, in the middle of a square that holds all of them."""

    kernels: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.kernels:
            raise ImageError("kernels: none were given; give at least one")

    @property
    def size(self) -> int:
        return max(max(kernel.shape[-2:]) for kernel in self.kernels)

    def __call__(self, generator: torch.Generator) -> Tensor:
        chosen = int(torch.randint(len(self.kernels), (), generator=generator))
        return centred(check_kernel(self.kernels[chosen]), self.size)


@dataclass(frozen=True)
class KernelFiles:
    """Kernels below a data folder: a folder or pattern of kernel files, one such file, or a `.mat` file of several.

    path: below the data root. `from_files` reads them; before that they are only named.
    """

    path: str
    kind: Literal["files"] = field(default="files", kw_only=True, repr=False)

    @property
    def size(self) -> int:
        raise ConfigError(f"the kernels of {self.path} have not been read; call from_files(root) first")

    def __call__(self, generator: torch.Generator) -> Tensor:
        raise ConfigError(f"the kernels of {self.path} have not been read; call from_files(root) first")

    def from_files(self, root: Path) -> Given:
        """Raises: ImageError where there is no kernel at `path` below `root`."""
        return Given(read_kernels(root / self.path))


@dataclass(frozen=True)
class CameraShake:
    """The path of a shaking hand during an exposure.

    The path is a random Fourier series whose amplitudes fall with the frequency, 1 / f ** roughness: slow drift with
    tremor on top. Its pace varies, so that it is brighter where the hand rests. It lies with its centre of mass in the
    middle of the square.

    size: side of the kernels, in pixels. extent: range of the path's longest side, in pixels. roughness: range; larger
    is smoother. thickness: standard deviation in pixels of the point that moves.
    """

    size: Side = 37
    extent: Range = (5.0, 27.0)
    roughness: Range = (1.2, 2.2)
    thickness: Range = (0.3, 0.8)
    kind: Literal["shake"] = field(default="shake", kw_only=True, repr=False)

    def __call__(self, generator: torch.Generator) -> Tensor:
        frequencies, times = torch.arange(1, 13), torch.linspace(0, 1, 600)
        draw = torch.randn(2, 2, len(frequencies), generator=generator)
        amplitudes = draw / frequencies ** uniform_between(generator, *self.roughness)
        # half a period over the exposure: a whole one would close every path
        phase = math.pi * frequencies[:, None] * times
        path = amplitudes[0] @ torch.cos(phase) + amplitudes[1] @ torch.sin(phase)
        path = path * uniform_between(generator, *self.extent) / (path.amax(1) - path.amin(1)).amax().clamp_min(1e-6)
        path = path - path.mean(1, keepdim=True)
        return spread(path, torch.ones_like(times), self.size, uniform_between(generator, *self.thickness))


@dataclass(frozen=True)
class Gaussian:
    """An isotropic Gaussian. size: side of the kernels. deviation: range of its standard deviation. Both in pixels."""

    size: Side = 25
    deviation: Range = (0.6, 3.0)
    kind: Literal["gaussian"] = field(default="gaussian", kw_only=True, repr=False)

    def __call__(self, generator: torch.Generator) -> Tensor:
        origin = torch.zeros(2, 1)
        return spread(origin, torch.ones(1), self.size, uniform_between(generator, *self.deviation))


@dataclass(frozen=True)
class Disc:
    """Defocus: an evenly filled circle with a soft rim. size: side of the kernels. radius: range. Both in pixels."""

    size: Side = 25
    radius: Range = (1.0, 8.0)
    kind: Literal["disc"] = field(default="disc", kw_only=True, repr=False)

    def __call__(self, generator: torch.Generator) -> Tensor:
        radius = uniform_between(generator, *self.radius)
        axis = torch.arange(self.size) - self.size // 2
        distance = torch.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
        kernel = (radius + 0.5 - distance).clamp(0, 1)
        return (kernel / kernel.sum())[None, None]


@dataclass(frozen=True)
class Line:
    """Straight motion at even pace in any direction. size: side of the kernels. length: range. thickness: standard
    deviation of the line. All in pixels.
    """

    size: Side = 25
    length: Range = (3.0, 21.0)
    thickness: Rate = 0.4
    kind: Literal["line"] = field(default="line", kw_only=True, repr=False)

    def __call__(self, generator: torch.Generator) -> Tensor:
        length, angle = uniform_between(generator, *self.length), uniform_between(generator, 0.0, math.pi)
        along = torch.linspace(-0.5, 0.5, 200) * length
        path = torch.stack([along * math.sin(angle), along * math.cos(angle)])
        return spread(path, torch.ones_like(along), self.size, self.thickness)


AnyKernels = Annotated[CameraShake | KernelFiles | Gaussian | Disc | Line, Field(discriminator="kind")]


@dataclass(frozen=True)
class Blur:
    """clean `(B, C, H, W)` → observed `(B, C, H - m, W - m)` with m = kernels.size - 1: k * x + n where it is fully
    known.

    `clean` of the sample is the matching middle of the picture, `kernel` the kernels `(B, 1, size, size)`, `guidance`
    the noise map of `noise`. kernels: what draws a kernel for each picture. noise: added after the blur. Every picture
    of the batch draws its own kernel. A noise that quantises (`GaussianNoise(quantise=True)`) gives what a file of 8
    bits would hold.
    """

    kernels: Annotated[Kernels, Chosen(AnyKernels)] = CameraShake()
    noise: Annotated[Degradation, Chosen(GaussianNoise)] = field(default_factory=GaussianNoise)
    kind: Literal["blur"] = field(default="blur", kw_only=True, repr=False)

    @property
    def margin(self) -> int:
        """Rows and columns that a picture loses: it is blurred only where the kernel sees nothing but picture."""
        return self.kernels.size - 1

    def from_files(self, root: Path) -> Blur:
        """The same with kernels that are read, where they are files below `root`."""
        return replace(self, kernels=self.kernels.from_files(root)) if isinstance(self.kernels, KernelFiles) else self

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        clean = check_images(clean, name="clean")
        kernels = torch.cat([self.kernels(generator) for _ in range(len(clean))]).to(clean)
        radius = self.kernels.size // 2
        sharp = crop(clean, radius, radius)
        return self.noise(blur(clean, kernels), generator)._replace(clean=sharp, kernel=kernels)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """k * x, valid part: images `(B, C, H, W)`, kernels `(B, 1, h, w)` or `(1, 1, h, w)` of odd sides → `(B, C,
    H-h+1, W-w+1)`.

    >>> right = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> blur(torch.arange(5.0).reshape(1, 1, 1, 5), right).round().abs()  # it moves right
    tensor([[[[0., 1., 2.]]]])
    """
    h, w = kernels.shape[-2:]
    if images.shape[-2] < h or images.shape[-1] < w:
        raise ImageError(
            f"clean: {images.shape[-2]}x{images.shape[-1]} is smaller than the {h}x{w} kernel; take larger crops"
        )
    # On a circle, then without what wrapped around: the valid part is the same, and a large kernel costs no more than
    # a small one.
    blurred = convolve(images, psf2otf(kernels, (images.shape[-2], images.shape[-1])))
    return crop(blurred, h // 2, w // 2).to(images.dtype)


def spread(path: Tensor, weights: Tensor, size: int, thickness: float) -> Tensor:
    """A kernel `(1, 1, size, size)` from points: path `(2, N)` in pixels from the middle (down, right), each a small
    Gaussian.

    What lies outside of the square is lost; the rest is scaled to sum 1.
    """
    axis = torch.arange(size, device=path.device, dtype=path.dtype) - size // 2
    spots = torch.exp(-((axis[:, None] - path[:, None, :]) ** 2) / (2 * thickness**2))
    # A thin spot between two pixels would weigh less than one on a pixel; the floor keeps what lies outside weightless.
    down, right = spots / spots.sum(1, keepdim=True).clamp_min(0.25 * thickness * math.sqrt(2 * math.pi))
    kernel = (down * weights) @ right.mT
    scaled: Tensor = (kernel / kernel.sum())[None, None]
    return scaled


def centred(kernel: Tensor, size: int) -> Tensor:
    """kernel `(1, 1, h, w)` of odd sides in the middle of a `size` × `size` square of zeros."""
    rows, columns = (size - kernel.shape[-2]) // 2, (size - kernel.shape[-1]) // 2
    return F.pad(kernel, (columns, columns, rows, rows))
