"""GridDehazeNet (Liu, Ma, Shi and Chen 2019): a grid of dense blocks at three scales, joined by learned channel
weights.

Rows are scales, columns are depth. The left half of the columns passes features down, the right half up; where two
paths meet, each channel of both has a weight of its own. By default the published network, layer for layer: 958,051
parameters, 958,195 with one guidance channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.nets import Network


class DenseBlock(nn.Module):
    """x `(B, C, H, W)` + 1×1 fusion of `dense` 3×3 convolutions, each sees x and the outputs of those before."""

    def __init__(self, channels: int, *, growth: int = 16, dense: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels + i * growth, growth, 3, padding=1) for i in range(dense))
        self.fuse = nn.Conv2d(channels + dense * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in self.convs:
            features = torch.cat([features, F.relu(conv(features))], 1)
        out: Tensor = x + self.fuse(features)
        return out


class Down(nn.Module):
    """`(B, C, H, W)` → `(B, 2 C, H / 2, W / 2)`, odd sizes rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.widen = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.widen(F.relu(self.shrink(x))))


class Up(nn.Module):
    """`(B, C, h, w)` → `(B, C / 2, H, W)` of the given `size`, about twice as large."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.grow = nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1)
        self.narrow = nn.Conv2d(channels, channels // 2, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.relu(self.narrow(F.relu(self.grow(x, output_size=list(size)))))


class GridDehazeNet(Network):
    """observed `(B, 3, H, W)` and, if it was built for one, guidance `(B, G, H, W)` → restored `(B, 3, H, W)`, not
    negative.

    The observed picture is brought to [-1, 1] inside, the guidance is taken as it is, the output is in [0, 1] without
    a clamp. Sides of any length work; for tiles to agree with the whole picture they must start at multiples of
    `multiple`.

    guidance: its channels. width: channels of the first row; each row below has twice as many. rows: scales. columns:
    even. growth, dense: of the dense blocks. A small one for a CPU: `width=8, columns=4, growth=8, dense=3`.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        guidance: int = 0,
        width: int = 16,
        rows: int = 3,
        columns: int = 6,
        growth: int = 16,
        dense: int = 4,
    ) -> None:
        super().__init__()
        if columns < 2 or columns % 2 or rows < 1:
            raise ValueError(f"expected an even number of columns and at least one row, got {columns} and {rows}")
        self.guidance = guidance
        self.rows, self.columns, self.middle = rows, columns, columns // 2
        self.multiple = 2 ** (rows - 1)
        self.widths = [width * 2**row for row in range(rows)]
        # The farthest path goes straight down, along the lowest row and straight up: a way down reaches 1 fine and 1
        # coarse cell, a way up 2 fine ones, a dense block its convolutions.
        self.halo = 2 * (1 + dense) + (columns - 1) * dense * 2 ** (rows - 1) + 5 * (2 ** (rows - 1) - 1)

        def block(channels: int) -> DenseBlock:
            return DenseBlock(channels, growth=growth, dense=dense)

        self.head = nn.Conv2d(channels + guidance, width, 3, padding=1)
        self.enter = block(width)
        self.across = nn.ModuleList(nn.ModuleList(block(w) for _ in range(columns - 1)) for w in self.widths)
        self.downs = nn.ModuleList(nn.ModuleList(Down(w) for _ in range(self.middle)) for w in self.widths[:-1])
        self.ups = nn.ModuleList(nn.ModuleList(Up(w) for _ in range(self.middle)) for w in self.widths[1:])
        # [row, column, what comes along the row / across rows, channel]; the published array has unused entries too,
        # and its size is part of the count of parameters
        self.attention = nn.Parameter(torch.ones(rows, columns, 2, self.widths[-1]))
        self.leave = block(width)
        self.tail = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.constant_(self.tail.bias, 0.3)  # type: ignore[arg-type]  # the ReLU behind it must not start dead

    def forward(self, observed: Tensor, guidance: Tensor | None = None) -> Tensor:
        if (guidance is None) == bool(self.guidance):
            raise ImageError(
                f"guidance: this network is for {self.guidance} channels, got {'none' if guidance is None else 'some'}"
            )
        seen = 2 * observed - 1
        x = self.enter(self.head(seen if guidance is None else torch.cat([seen, guidance], 1)))
        column = [x]
        for row in range(1, self.rows):
            column.append(self.downs[row - 1][0](column[-1]))  # type: ignore[index]
        for place in range(1, self.middle):
            for row in range(self.rows):
                along = self.across[row][place - 1](column[row])  # type: ignore[index]
                above = None if row == 0 else self.downs[row - 1][place](column[row - 1])  # type: ignore[index]
                column[row] = self._meet(along, above, row, place)
        for place in range(self.middle, self.columns):
            for row in reversed(range(self.rows)):
                along = self.across[row][place - 1](column[row])  # type: ignore[index]
                below = None
                if row < self.rows - 1:
                    size = (along.shape[-2], along.shape[-1])
                    below = self.ups[row][place - self.middle](column[row + 1], size)  # type: ignore[index]
                column[row] = self._meet(along, below, row, place)
        return F.relu(self.tail(self.leave(column[0])))

    def _meet(self, along: Tensor, across: Tensor | None, row: int, place: int) -> Tensor:
        if across is None:
            return along
        weight = self.attention[row, place, :, : self.widths[row], None, None]
        return weight[0] * along + weight[1] * across
