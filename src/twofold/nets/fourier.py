"""Blur and its regularised inverse in the Fourier domain, and what to do where the picture ends.

Convention, everywhere in the library: blurring is a true convolution, `(k * x)[i] = Σ_j k[j] x[i - j]`, and the
middle of a kernel of side n is the index `n // 2`. torch's own `conv2d` correlates, so it needs the kernel turned by
180 degrees.

All of this runs in float32 (float64 where the picture is), whatever the autocast: an FFT in half precision is
worthless, and the division amplifies its errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.solve.linear import Number, require_within


def full_precision(x: Tensor) -> Tensor:
    """`x`, of any shape, in float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def psf2otf(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """kernel `(B, 1, h, w)` → its transfer function on a circle of `size` (H, W): complex `(B, 1, H, W // 2 + 1)`.

    Multiplying `rfft2` of a picture by it convolves the picture with the kernel, circularly, without moving the
    picture.

    >>> shift = torch.zeros(1, 1, 3, 3); shift[0, 0, 1, 2] = 1.0  # one pixel to the right of the middle
    >>> x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]).expand(1, 1, 4, 4)
    >>> convolve(x, psf2otf(shift, (4, 4)))[0, 0, 0].round().tolist()
    [4.0, 1.0, 2.0, 3.0]
    """
    h, w = kernel.shape[-2:]
    if h > size[0] or w > size[1]:
        raise ImageError(
            f"kernel: {h}x{w} is larger than the picture, {size[0]}x{size[1]}; crop the kernel's empty border"
        )
    padded = F.pad(full_precision(kernel), (0, size[1] - w, 0, size[0] - h))
    otf: Tensor = torch.fft.rfft2(torch.roll(padded, (-(h // 2), -(w // 2)), (-2, -1)))
    return otf


def convolve(images: Tensor, otf: Tensor) -> Tensor:
    """k * x on the circle. images `(B, C, H, W)`, otf `(B, 1, H, W // 2 + 1)` from `psf2otf`."""
    images = full_precision(images)
    blurred: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * otf, s=images.shape[-2:])
    return blurred


def inverse_step(observed: Tensor, otf: Tensor, rho: Tensor | float, prior: Tensor | None = None) -> Tensor:
    """argmin over x of ‖k * x − observed‖² + rho ‖x − prior‖², on the circle, in closed form (Gao et al. 2022, §4.1).

    observed, prior `(B, C, H, W)`; no prior is a prior of zero. rho: positive, a number or `(B, 1, 1, 1)`.
    """
    observed = full_precision(observed)
    numerator = torch.conj(otf) * torch.fft.rfft2(observed)
    if prior is not None:
        numerator = numerator + rho * torch.fft.rfft2(full_precision(prior))
    solution: Tensor = torch.fft.irfft2(numerator / (_power(otf) + rho), s=observed.shape[-2:])
    return solution


@dataclass(frozen=True, eq=False)
class DataProx:
    """z ↦ argmin_x ½‖k * x − observed‖² + penalty/2 ‖x − z‖²: `inverse_step` as an operator of `twofold.solve`. What
    does not depend on z is computed once.

    Non-expansive: its Lipschitz constant is the largest ρ / (ρ + |k̂|²), below 1 where k̂ has no zero.

    observed: `(B, C, H, W)`. kernel: `(B or 1, 1, h, w)`. penalty: ρ > 0, a number or `(B, 1, 1, 1)`.

    >>> prox = DataProx(torch.full((1, 1, 4, 4), 2.0), torch.ones(1, 1, 1, 1), penalty=1.0)
    >>> prox(torch.zeros(1, 1, 4, 4))[0, 0, 0]                             # half-way between 2 and 0
    tensor([1., 1., 1., 1.])
    """

    observed: Tensor
    kernel: Tensor
    penalty: Number
    _data: Tensor = field(init=False, repr=False)
    _denominator: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_within(self.penalty, low=0, name="penalty")
        # Now and not on first use, which might be under no_grad and would cut the kernel off.
        otf = psf2otf(self.kernel, (self.observed.shape[-2], self.observed.shape[-1]))
        object.__setattr__(self, "_data", torch.conj(otf) * torch.fft.rfft2(full_precision(self.observed)))
        object.__setattr__(self, "_denominator", _power(otf) + self.penalty)

    @property
    def lipschitz(self) -> Tensor:
        """The exact Lipschitz constant, a scalar."""
        share: Tensor = self.penalty / self._denominator
        return share.max()

    def __call__(self, z: Tensor) -> Tensor:
        x = (self._data + self.penalty * torch.fft.rfft2(full_precision(z))) / self._denominator
        restored: Tensor = torch.fft.irfft2(x, s=z.shape[-2:])
        return restored.to(z.dtype)


def edge_taper(images: Tensor, kernel: Tensor, *, tapers: int = 3) -> Tensor:
    """Blends the borders of `images (B, C, H, W)` into their circularly blurred selves, so that opposite sides meet
    without a jump.

    The weight falls towards the border as the autocorrelation of the kernel's projections rises: the interior beyond
    one kernel is untouched. Kruse, Rother and Schmidt 2017 pass three times.
    """

    def fade(profile: Tensor, length: int) -> Tensor:
        n = profile.shape[-1]
        correlation = torch.fft.irfft(torch.fft.rfft(profile, n=2 * n).abs() ** 2, n=2 * n)[..., :n]
        weight = 1 - F.pad(correlation / correlation[..., :1], (0, max(length - n, 0)))[..., :length]
        return torch.minimum(weight, weight.flip(-1))

    kernel, images = full_precision(kernel), full_precision(images)
    height, width = images.shape[-2:]
    otf = psf2otf(kernel, (height, width))
    keep = fade(kernel.sum(-1), height)[..., :, None] * fade(kernel.sum(-2), width)[..., None, :]
    for _ in range(tapers):
        images = keep * images + (1 - keep) * convolve(images, otf)
    return images


class Border(Protocol):
    """How an image is extended to a periodic one, which the Fourier transform needs."""

    def extend(self, observed: Tensor, kernel: Tensor) -> Tensor:
        """observed `(B, C, H, W)` → the same with equal margins on opposite sides, ready for the first inverse step."""
        ...

    def renew(self, extended: Tensor, observed: Tensor, otf: Tensor, estimate: Tensor) -> Tensor:
        """What to take for the extended picture once there is an estimate `(B, C, H', W')` of the sharp one."""
        ...


@dataclass(frozen=True)
class Circular:
    """The picture is taken to repeat. Exact for circularly blurred test data, which real photographs never are."""

    def extend(self, observed: Tensor, kernel: Tensor) -> Tensor:
        return full_precision(observed)

    def renew(self, extended: Tensor, observed: Tensor, otf: Tensor, estimate: Tensor) -> Tensor:
        return extended


@dataclass(frozen=True)
class EdgeTaper:
    """The picture is continued by its border pixels for half a kernel, then tapered."""

    tapers: int = 3

    def extend(self, observed: Tensor, kernel: Tensor) -> Tensor:
        rows, columns = kernel.shape[-2] // 2, kernel.shape[-1] // 2
        padded = F.pad(full_precision(observed), (columns, columns, rows, rows), mode="replicate")
        return edge_taper(padded, kernel, tapers=self.tapers)

    def renew(self, extended: Tensor, observed: Tensor, otf: Tensor, estimate: Tensor) -> Tensor:
        return extended


@dataclass(frozen=True)
class BoundaryAdjustment:
    """Starts as an edge taper; afterwards the margin is what the estimate, blurred again, would show there.

    Kruse, Rother and Schmidt 2017, eq. (17): interior of the observed picture, exterior of k * x. It needs more than
    one step to differ from the taper.
    """

    start: EdgeTaper = EdgeTaper()

    def extend(self, observed: Tensor, kernel: Tensor) -> Tensor:
        return self.start.extend(observed, kernel)

    def renew(self, extended: Tensor, observed: Tensor, otf: Tensor, estimate: Tensor) -> Tensor:
        rows, columns = margin(extended, observed)
        inside = F.pad(torch.ones_like(observed[:1, :1]), (columns, columns, rows, rows)).bool()
        seen = F.pad(full_precision(observed), (columns, columns, rows, rows))
        return torch.where(inside, seen, convolve(estimate, otf))


def margin(extended: Tensor, observed: Tensor) -> tuple[int, int]:
    """(rows, columns) by which `extended (B, C, H, W)` is larger than `observed (B, C, h, w)` on every side."""
    return (extended.shape[-2] - observed.shape[-2]) // 2, (extended.shape[-1] - observed.shape[-1]) // 2


def center_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle `(…, h, w)` of images `(…, H, W)`, size (h, w); of an odd difference the last row or column goes too.

    >>> center_crop(torch.arange(5.0)[None], (1, 2))
    tensor([[1., 2.]])
    """
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def crop(images: Tensor, rows: int, columns: int) -> Tensor:
    """Images `(B, C, H, W)` without `rows` above and below and `columns` left and right."""
    return center_crop(images, (images.shape[-2] - 2 * rows, images.shape[-1] - 2 * columns))


def inverse_reach(kernel: Tensor, rho: float, *, size: int, tolerance: float = 1 / 255) -> int:
    """How far the inverse step looks: pixels beyond which all of a picture in [0, 1] changes a restored pixel by less
    than `tolerance`.

    kernel `(1, 1, h, w)`; the prior is taken to lie in [0, 1] too. Measured on a circle of `size`; `size // 2` means
    that the circle is too small to tell. Sharp-edged kernels have zeros in their transfer function and reach far: a
    disc at rho = 0.001 some hundred pixels, a Gaussian a dozen.
    """
    otf = psf2otf(kernel.double(), (size, size))
    power = _power(otf) + rho
    to_observed, to_prior = (
        torch.fft.irfft2(otf.conj() / power, s=(size, size)),
        torch.fft.irfft2(rho / power, s=(size, size)),
    )
    line = torch.arange(size, device=kernel.device)
    distance = torch.minimum(line, size - line)
    rings = torch.maximum(distance[:, None], distance).flatten()
    weight = torch.zeros(size // 2 + 1, dtype=torch.float64, device=kernel.device)
    weight.index_add_(0, rings, (to_observed.abs() + to_prior.abs()).flatten())
    beyond = weight.flip(0).cumsum(0).flip(0)  # [r]: all influence at distance r or more
    return int((beyond > tolerance).sum()) - 1


BLOCKS = tuple(factor * 2**power for power in range(5, 11) for factor in (4, 5, 6))  # 128 to 6144: fast to transform


def per_pixel(side: int) -> float:
    """Relative cost of a Fourier transform a pixel: what leaves the processor's cache is slower."""
    return max(1.0, side / 1024)


def inverse_step_tiled(
    observed: Tensor, kernel: Tensor, rho: float, prior: Tensor | None = None, *, tolerance: float = 1 / 255
) -> Tensor:
    """`inverse_step` of a large picture in overlapping blocks, within `tolerance` of the whole for pictures in [0, 1].

    observed, prior `(B, C, H, W)`, kernel `(1, 1, h, w)`: one for all. The memory beside the result is that of a few
    blocks, and the time a pixel hardly depends on the size of the picture. Pictures of a few megapixels, and kernels
    whose inverse reaches over 1000 pixels, are done whole.
    """
    height, width = observed.shape[-2:]
    size = 512
    while (reach := inverse_reach(kernel, rho, size=size, tolerance=tolerance)) > size // 3 and size < 4096:
        size *= 2

    def cost(block: int) -> float:
        step = block - 2 * reach
        return math.ceil(height / step) * math.ceil(width / step) * per_pixel(block) * block**2

    block = min((block for block in BLOCKS if block > max(2 * reach, *kernel.shape[-2:])), key=cost)
    # A whole picture has sides with large prime factors, as a rule: twice the work.
    if reach > size // 3 or 2 * per_pixel(max(height, width)) * height * width < cost(block):
        return inverse_step(observed, psf2otf(full_precision(kernel), (height, width)), rho, prior)
    step = block - 2 * reach
    otf = psf2otf(full_precision(kernel), (block, block))[0, 0]
    out = torch.empty_like(full_precision(observed))
    for top in range(0, height, step):
        for left in range(0, width, step):
            # the circle of the whole picture: what lies beyond one side is the other side
            rows = torch.arange(top - reach, top - reach + block, device=observed.device) % height
            columns = torch.arange(left - reach, left - reach + block, device=observed.device) % width
            high, wide = min(step, height - top), min(step, width - left)
            for plane in range(observed.shape[0] * observed.shape[1]):
                one = divmod(plane, observed.shape[1])
                before = None if prior is None else prior[one][rows][:, columns]
                done = inverse_step(observed[one][rows][:, columns], otf, rho, before)
                out[one][top : top + high, left : left + wide] = done[reach : reach + high, reach : reach + wide]
    return out


def _power(otf: Tensor) -> Tensor:
    """|otf|² from its parts: `abs` has no gradient where a transfer function vanishes, as blur kernels' do."""
    return otf.real**2 + otf.imag**2
