"""Classical corrections of underwater images.

Each correction is a function of a pixel and of statistics of the whole image. The statistics are the context of the
`Restorer` contract: computed once, so that tiles equal the whole exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = 20
"""Numbers that `colour_statistics` returns for each image."""
CANDIDATES = 5
"""Images that `candidates` returns."""
SAMPLED = 1 << 18
"""Most pixels that the statistics are taken of; a larger image is sampled on a regular grid."""
_OUTSIDE = 0.005  # share of the values of all channels that a joint stretch clips at each end
_OUTSIDE_EACH = 0.01  # the same where each channel is stretched by itself


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
    low, high = low[:, :, None, None], high[:, :, None, None]
    return ((x - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
