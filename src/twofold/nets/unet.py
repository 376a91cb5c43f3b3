"""A U-Net of residual blocks without normalisation: the fast body of the shipped models.

Dense convolutions at several scales (Ronneberger et al. 2015) with additive skips. Its convolutions are local, so a
picture can be cut into tiles with a halo and gives the same result; what is global comes in as a context vector that is
computed once (see `twofold.nets.context`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.nets import Network
from twofold.nets.context import GlobalContext, Modulation, Output

Form = Literal["sum", "hadamard", "exposure", "map"]
LARGEST_EXPONENT = 4.0
"""Limit on |g| in exp(g): a Hadamard output amplifies at most 55 times."""


class Residual(nn.Module):
    """x `(B, C, H, W)` → x + conv(relu(conv(x))), 3×3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # a block starts as the identity: deep stacks train from the first step
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class Gated(nn.Module):
    """x + conv(a · b) with (a, b) = conv(x), 3×3: a product of halves in place of an activation (Chen et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x).chunk(2, 1)
        out: Tensor = x + self.second(first * second)
        return out


class UNet(Network):
    """observed `(B, C, H, W)`, guidance `(B, G, H, W)` and context `(B, K)` → restored `(B, C, H, W)`.

    widths: channels at each scale, every one half the size of the one before. blocks: residual blocks on the way down,
    at each scale; the way up mirrors them, except at the lowest scale, which is passed once. unshuffle: the first scale
    has 1/unshuffle of the picture's side, with its pixels as channels: most of the cost of a U-Net lies in its first
    scale. context: length of the context vector, 0 for a network that is local altogether. output: "sum" for observed +
    what the network adds; "hadamard" for observed · exp(g) + o, which solves y = u ∘ x + b for x (Zhu et al. 2022,
    eq. 1); "exposure" for observed · 2^guidance · exp(g) + o, where the guidance is in stops and so says most of u, and
    the network also sees the brightened image; "map" for `outputs` channels that are no image. Sides must be multiples
    of `multiple`. gated: blocks multiply halves of their channels in place of ReLU.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        guidance: int = 0,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (1, 1, 3),
        unshuffle: int = 1,
        context: int = 0,
        output: Form = "sum",
        outputs: int = 1,
        gated: bool = False,
    ) -> None:
        super().__init__()
        if output == "exposure" and guidance != 1:
            raise ValueError(f"output: 'exposure' needs one guidance channel, in stops, got {guidance}")
        if len(widths) != len(blocks):
            raise ValueError(f"expected as many widths as blocks, got {len(widths)} and {len(blocks)}")
        self.guidance = guidance
        self.unshuffle = unshuffle
        self.output = output
        self.multiple = unshuffle * 2 ** (len(widths) - 1)
        # a block at scale s reaches 2·2^s pixels, all but the lowest are passed twice; a change of scale costs one cell
        reach = sum((2 if s < len(widths) - 1 else 1) * n * 2 * 2**s for s, n in enumerate(blocks))
        self.reach = unshuffle * (2 + reach + 2 ** (len(widths) - 1)) + (unshuffle - 1)
        self.halo = self.reach
        self.context_features = context
        inputs = channels + guidance + (channels if output == "exposure" else 0)
        self.head = nn.Conv2d(inputs * unshuffle**2, widths[0], 3, padding=1)
        block = Gated if gated else Residual
        self.down_blocks = nn.ModuleList(
            nn.Sequential(*(block(w) for _ in range(n))) for w, n in zip(widths, blocks, strict=True)
        )
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.up_blocks = nn.ModuleList(
            nn.Sequential(*(block(w) for _ in range(n))) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        made = {"sum": channels, "hadamard": 2 * channels, "exposure": 2 * channels, "map": outputs}[output]
        local = output == "sum" and not context
        self.tail = (nn.Conv2d if local else Output)(widths[0], made * unshuffle**2, 3, padding=1)
        if not local:  # starts as the identity
            nn.init.zeros_(self.tail.weight)
            nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]
        if context:
            self.context = GlobalContext(channels=channels, features=context)
            self.modulate_down = nn.ModuleList(Modulation(context, w) for w in widths)
            self.modulate_up = nn.ModuleList(Modulation(context, w) for w in widths[:-1])
            self.modulate_output = Modulation(context, made)

    def forward(self, observed: Tensor, guidance: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """context: of the whole picture that `observed` is a tile of; None computes it from `observed`."""
        if (guidance is None) == bool(self.guidance):
            raise TypeError(f"this UNet was built for {self.guidance} guidance channels")
        if self.context_features and context is None:
            context = self.context(observed)
        x = observed if guidance is None else torch.cat([observed, guidance], 1)
        if self.output == "exposure" and guidance is not None:
            observed = observed * guidance.exp2()
            x = torch.cat([x, observed.clamp(max=2.0)], 1)
        x = self.head(F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x)
        skips: list[Tensor] = []
        for scale, blocks in enumerate(self.down_blocks):
            if context is not None:
                x = self.modulate_down[scale](x, context)
            x = blocks(x)
            if scale < len(self.downs):
                skips.append(x)
                x = self.downs[scale](x)
        for scale in reversed(range(len(self.ups))):
            x = self.ups[scale](x) + skips[scale]
            if context is not None:
                x = self.modulate_up[scale](x, context)
            x = self.up_blocks[scale](x)
        return self._picture(observed, x, context)

    def _picture(self, observed: Tensor, features: Tensor, context: Tensor | None) -> Tensor:
        change: Tensor = self.tail(features)
        if self.unshuffle > 1:
            change = F.pixel_shuffle(change, self.unshuffle)
        if context is not None:
            change = self.modulate_output(change, context)
        if self.output == "map":
            return change
        if self.output == "sum":
            return observed + change
        exponent, offset = change.chunk(2, 1)
        return observed * exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp() + offset
