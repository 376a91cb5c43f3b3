"""A U-Net of residual blocks without normalisation: the fast workhorse of the shipped models.

Dense convolutions at several scales (Ronneberger et al. 2015) with additive skips. Nothing in it is global, so a
picture can be cut into tiles with a halo and gives the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """x + conv(relu(conv(x))), 3×3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # a block starts as the identity: deep stacks train from the first step
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class UNet(nn.Module):
    """observed `(B, C, H, W)` and guidance `(B, G, H, W)` → restored `(B, C, H, W)` = observed + what the network adds.

    widths: channels at full, half, quarter … resolution. blocks: residual blocks on the way down, at each scale; the
    way up mirrors them, except at the lowest scale, which is passed once. Sides must be multiples of
    `2 ** (len(widths) - 1)`.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        guidance: int = 0,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (1, 1, 3),
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"expected as many widths as blocks, got {len(widths)} and {len(blocks)}")
        self.guidance = guidance
        self.multiple = 2 ** (len(widths) - 1)
        # a block at scale s reaches 2·2^s pixels, all but the lowest are passed twice; a change of scale costs one cell
        reach = sum((2 if s < len(widths) - 1 else 1) * n * 2 * 2**s for s, n in enumerate(blocks))
        self.halo = 2 + reach + self.multiple
        self.head = nn.Conv2d(channels + guidance, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            nn.Sequential(*(Residual(w) for _ in range(n))) for w, n in zip(widths, blocks, strict=True)
        )
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.up_blocks = nn.ModuleList(
            nn.Sequential(*(Residual(w) for _ in range(n))) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        self.tail = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, observed: Tensor, guidance: Tensor | None = None) -> Tensor:
        if (guidance is None) == bool(self.guidance):
            raise TypeError(f"this UNet was built for {self.guidance} guidance channels")
        x = self.head(observed if guidance is None else torch.cat([observed, guidance], 1))
        skips = []
        for blocks, down in zip(self.down_blocks, [*self.downs, None], strict=True):
            x = blocks(x)
            if down is not None:
                skips.append(x)
                x = down(x)
        for blocks, up, skip in zip(
            reversed(list(self.up_blocks)), reversed(list(self.ups)), reversed(skips), strict=True
        ):
            x = blocks(up(x) + skip)
        restored: Tensor = observed + self.tail(x)
        return restored
