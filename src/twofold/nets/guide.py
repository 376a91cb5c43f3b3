"""The proxy network of hyper-guidance: it estimates, from the degraded image, the map that steers the restoration.

Gao et al. 2022, §3.2 and Fig. 1: four 3×3 convolutions, ReLU between them. The width is not printed; 32 is that of the
noise estimator the paper cites.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import GuidanceKind
from twofold.nets.unet import UNet

if TYPE_CHECKING:
    from typing_extensions import TypeIs


def is_function(guidance: object) -> TypeIs[Callable[[Tensor, Tensor], Tensor]]:
    """Whether a guidance is a function `(observed, current) -> map` rather than a map.

    `callable` will not do: it is also true of the stand-ins with which torch.fx traces a network.
    """
    return isinstance(guidance, FunctionType | nn.Module)


class Guide(nn.Module):
    """observed `(B, C, H, W)` → guidance `(B, 1, H, W)` inside the range of its kind.

    kind: what the map means; a share (rain region) ends in a sigmoid, an amount (noise level, depth) in a softplus.
    stage: the guide also sees the current estimate and gives a new map at every stage of the reconstruction.

    Weights start as He et al. 2015 draw them, without biases. From torch's own start, less than half as large, the map
    stayed constant for the first 1,600 steps of a small training.
    """

    halo = 4
    multiple = 1
    context_features = 0

    def __init__(self, kind: GuidanceKind, *, channels: int = 3, width: int = 32, stage: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.channels = channels
        self.stage = stage
        seen = 2 * channels if stage else channels
        self.layers = nn.Sequential(
            nn.Conv2d(seen, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, observed: Tensor, current: Tensor | None = None) -> Tensor:
        if self.stage:
            observed = torch.cat([observed, observed if current is None else current], 1)
        return in_range(self.layers(observed), self.kind)


class UNetGuide(nn.Module):
    """The same with a receptive field that depth, rain or noise can be estimated from, and with global context.

    body: a `UNet` whose output is a "map"; observed `(B, C, H, W)` and context `(B, K)` → `(B, 1, H, W)`.
    """

    stage = False
    context_features: int

    def __init__(self, kind: GuidanceKind, body: UNet, *, channels: int = 3) -> None:
        super().__init__()
        self.kind = kind
        self.channels = channels
        self.body = body
        self.halo: int = body.reach
        self.multiple = body.multiple
        self.context_features = body.context_features

    def context(self, observed: Tensor) -> Tensor:
        """`(B, K)`; only where `context_features` is not 0."""
        context: Tensor = self.body.context(observed)
        return context

    def forward(self, observed: Tensor, context: Tensor | None = None) -> Tensor:
        return in_range(self.body(observed, None, context), self.kind)


def in_range(raw: Tensor, kind: GuidanceKind) -> Tensor:
    """A network's unbounded output `(B, 1, H, W)` as a map inside the range of its kind."""
    if kind.high == kind.white:  # a share, from none to all
        return torch.sigmoid(raw)
    # an amount: at the start about an eighth of what the kind shows as white, which is the middle of common values
    return (kind.white * F.softplus(raw - 2.0)).clamp(kind.low, kind.high)
