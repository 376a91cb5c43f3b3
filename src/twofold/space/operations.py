"""The candidates of the search (Zhu et al. 2022, Fig. 2): what may sit at a place of the Hadamard network.

All keep height and width, have no bias, and no norm or activation around them. A new one is one line in its table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import ConfigError


def convolve_same(features: Tensor, kernel: Tensor, *, dilation: int = 1) -> Tensor:
    """`features (B, C, H, W)` under an odd `kernel (outputs, C, k, k)`, zeros outside, same height and width."""
    size = kernel.shape[-1]
    if size == 1 and features.is_contiguous(memory_format=torch.channels_last):  # three times as fast as a convolution
        return F.linear(features.permute(0, 2, 3, 1), kernel[:, :, 0, 0]).permute(0, 3, 1, 2)
    return F.conv2d(features, kernel, padding=dilation * (size // 2), dilation=dilation)


class Skip(nn.Module):
    """SC: the input, `(B, C, H, W)`."""

    radius = 0

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        _same(inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        return features


class Convolution(nn.Module):
    """k-C, k-2-DC (dilation 2), k-RC and k-2-RDC (residual: plus the input): `(B, C, H, W)` → `(B, D, H, W)`."""

    def __init__(self, inputs: int, outputs: int, *, size: int, dilation: int = 1, residual: bool = False) -> None:
        super().__init__()
        if residual:
            _same(inputs, outputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        self.size = size
        self.dilation = dilation
        self.residual = residual
        self.radius = dilation * (size // 2)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d

    def forward(self, features: Tensor) -> Tensor:
        result = convolve_same(features, self.weight, dilation=self.dilation)
        return result + features if self.residual else result


class Dense(nn.Module):
    """k-DC of `(B, C, H, W)`: outer([x, ReLU(inner(x))]), two k×k convolutions."""

    def __init__(self, inputs: int, outputs: int, *, size: int) -> None:
        super().__init__()
        self.size = size
        self.inner = Convolution(inputs, inputs, size=size)
        self.outer = Convolution(2 * inputs, outputs, size=size)
        self.radius = self.inner.radius + self.outer.radius

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.outer(torch.cat([features, F.relu(self.inner(features))], 1))
        return result

    def visible_kernel(self) -> Tensor:
        """The half of the outer kernel that sees x itself: the linear part of the operation."""
        return self.outer.weight[:, : self.inner.weight.shape[1]]

    def hidden_kernel(self) -> Tensor:
        """The other half, which sees ReLU(inner(x))."""
        return self.outer.weight[:, self.inner.weight.shape[1] :]


def _same(inputs: int, outputs: int) -> None:
    if inputs != outputs:
        raise ConfigError(f"skip and residual operations keep the channels, got {inputs} in and {outputs} out; use k-C")


Candidate = Callable[[int, int], nn.Module]  # (inputs, outputs) → module with a `radius`

UNIT_CANDIDATES: dict[str, Candidate] = {
    "SC": Skip,
    "1-C": partial(Convolution, size=1),
    "3-C": partial(Convolution, size=3),
    "3-2-DC": partial(Convolution, size=3, dilation=2),
    "1-RC": partial(Convolution, size=1, residual=True),
    "3-RC": partial(Convolution, size=3, residual=True),
    "3-2-RDC": partial(Convolution, size=3, dilation=2, residual=True),
    "1-DC": partial(Dense, size=1),
    "3-DC": partial(Dense, size=3),
}
CONVERT_CANDIDATES: dict[str, Candidate] = {
    "5-C": partial(Convolution, size=5),
    "1-C": partial(Convolution, size=1),
    "3-C": partial(Convolution, size=3),
    "3-2-DC": partial(Convolution, size=3, dilation=2),
}
