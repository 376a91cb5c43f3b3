"""Training losses: `(restored, clean) -> scalar`, both `(B, C, H, W)` in [0, 1]; float32 inside autocast too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.metrics import same_size, ssim_gaussian_zero_padded
from twofold.nets.fourier import full_precision

Loss = Callable[[Tensor, Tensor], Tensor]


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference.

    >>> l1(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.5))
    tensor(0.2500)
    """
    return _difference(restored, clean).abs().mean()


def l2(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared difference.

    >>> l2(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.5))
    tensor(0.0625)
    """
    return _difference(restored, clean).square().mean()


def smooth_l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Huber loss with its bend at 1 (GridDehazeNet's): half of `l2` on [0, 1] pictures, and outliers beyond pull less.

    >>> smooth_l1(torch.full((1, 3, 2, 2), 2.5), torch.full((1, 3, 2, 2), 0.5))
    tensor(1.5000)
    """
    difference = _difference(restored, clean)
    return F.smooth_l1_loss(difference, torch.zeros_like(difference))


def charbonnier(restored: Tensor, clean: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Mean of √(difference² + epsilon²): `l1` with a rounded tip, so that its gradient is continuous at 0.

    >>> charbonnier(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.5))
    tensor(0.2500)
    """
    return (_difference(restored, clean).square() + epsilon**2).sqrt().mean()


def negative_ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """−SSIM, between −1 and 1, least for equal pictures: PReNet's and paper A's loss for rain (Gao et al. 2022, §5.3).

    SSIM variant `gaussian-zero-padded` of `twofold.metrics`, range 1. 8x3x112x112 forward and backward take 8 ms on one
    thread.

    >>> negative_ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.5))
    tensor(-1.)
    """
    return -ssim_gaussian_zero_padded(restored, clean).mean()


def ssim_distance(restored: Tensor, clean: Tensor) -> Tensor:
    """10 (1 − SSIM): loss (d) of the search space, with the factor of its authors' program (Zhu et al. 2022, Table 1).

    >>> ssim_distance(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.5))
    tensor(0.)
    """
    return 10 * (1 + negative_ssim(restored, clean))


def colour_angle(restored: Tensor, clean: Tensor) -> Tensor:
    """A tenth of the mean angle in degrees between the RGB vectors of both pictures (Zhu et al. 2022, Table 1, c).

    A pixel darker than one grey level in either picture has no colour and counts as 0. (Normalising it would give 90
    degrees for two black pixels, and a gradient without bound.) Angles below 0.08 degrees have no gradient.

    Orthogonal colours differ by 90 degrees:

    >>> red, green = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)
    >>> colour_angle(red, green)
    tensor(9.)
    """
    same_size(restored, clean)
    with torch.autocast(device_type=restored.device.type, enabled=False):
        restored, clean = map(full_precision, (restored, clean))
        # Sums of squares, not norms: torch reduces norms over dimension 1 of a contiguous batch eight times slower.
        lengths, darkest = restored.square().sum(dim=1) * clean.square().sum(dim=1), (1 / 255) ** 2
        coloured = (restored.square().sum(dim=1) > darkest) & (clean.square().sum(dim=1) > darkest)
        cosine = (restored * clean).sum(dim=1) / torch.where(coloured, lengths, 1.0).sqrt()
        angle = cosine.clamp(-0.999999, 0.999999).acos() * (180 / math.pi)
        return 0.1 * torch.where(coloured, angle, 0.0).mean()


def total_variation(restored: Tensor, clean: Tensor) -> Tensor:
    """Twice the mean squared steps down plus those across, of the restored picture alone (Zhu et al. 2022, Table 1, g).

    A step edge from 0 to 1 in the middle of four columns: one of three steps across is 1, so 2/3.

    >>> edge = torch.tensor([0.0, 0, 1, 1]).expand(1, 3, 4, 4)
    >>> total_variation(edge, edge)
    tensor(0.6667)
    """
    same_size(restored, clean)
    restored = full_precision(restored)
    down, across = restored.diff(dim=2), restored.diff(dim=3)
    return 2 * (_mean(down.square()) + _mean(across.square()))


def laplacian(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared 4-neighbour Laplacian inside the border of the restored picture alone (Zhu et al. 2022, Table 1, h).

    A ramp has none:

    >>> ramp = torch.linspace(0, 1, 5).expand(1, 3, 5, 5)
    >>> laplacian(ramp, ramp) < 1e-12
    tensor(True)
    """
    same_size(restored, clean)
    x = full_precision(restored)
    neighbours = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return _mean((neighbours - 4 * x[..., 1:-1, 1:-1]).square())


@dataclass(frozen=True)
class Perceptual:
    """The batch mean of a distance of `twofold.nets.perceptual`: losses (e) and (f) of Zhu et al. 2022, Table 1.

    distance: `(restored, clean) -> (B,)`, with its network on the device of the pictures.
    """

    distance: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, restored: Tensor, clean: Tensor) -> Tensor:
        return self.distance(restored, clean).mean()


def _difference(restored: Tensor, clean: Tensor) -> Tensor:
    same_size(restored, clean)
    restored, clean = map(full_precision, (restored, clean))
    return restored - clean


def _mean(values: Tensor) -> Tensor:
    """Mean, 0 for none: a picture one pixel wide has no steps across."""
    return values.sum() / max(values.numel(), 1)
