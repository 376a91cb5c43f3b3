"""Global context: facts about the whole picture, computed once, that steer a network which is local otherwise.

A network with a bounded receptive field cannot know the exposure, the airlight or the colour cast of a photograph. It
gets them as a vector of `features` numbers: a thumbnail goes through a few convolutions, and quantiles of its colours
are added. Every tile of a large picture gets the same vector, so tiles equal the whole exactly.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

THUMBNAIL = 64
"""Side of the thumbnail in pixels."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class GlobalContext(nn.Module):
    """observed `(B, C, H, W)`, any size from 1×1 → context `(B, features)`, always computed in float32."""

    full_precision = True

    def __init__(self, *, channels: int = 3, features: int = 64) -> None:
        super().__init__()
        self.features = features
        widths = (channels, 16, 32, 48, 64)
        self.layers = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.hidden = nn.Linear(2 * widths[-1] + channels * len(QUANTILES), 2 * features)
        self.out = nn.Linear(2 * features, features)

    def forward(self, observed: Tensor) -> Tensor:
        with torch.autocast(observed.device.type, enabled=False):  # quantiles need more than bfloat16's 8 bits
            small = F.interpolate(observed.float(), (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
            x = small
            for layer in self.layers:
                x = F.relu(layer(x))
            ordered = small.flatten(2).sort(dim=2).values
            last = THUMBNAIL**2 - 1
            levels = torch.stack([ordered[..., round(q * last)] for q in QUANTILES], 2)
            facts = torch.cat([x.mean((2, 3)), x.amax((2, 3)), levels.flatten(1)], 1)
            context: Tensor = self.out(F.relu(self.hidden(facts)))
            return context


class Modulation(nn.Module):
    """features `(B, width, h, w)` and context `(B, K)` → features · (1 + gain) + offset, one pair for each channel.

    It starts as the identity. Perez et al. 2018 call it FiLM.
    """

    full_precision = True

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            gain, offset = self.linear(context.float())[:, :, None, None].chunk(2, 1)
        modulated: Tensor = torch.addcmul(offset.to(x.dtype), x, (1 + gain).to(x.dtype))
        return modulated


class Output(nn.Conv2d):
    """The last convolution, `(B, C, H, W)` → `(B, D, H, W)`, in float32: bfloat16 would round the image to 8 bits."""

    full_precision = True

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
