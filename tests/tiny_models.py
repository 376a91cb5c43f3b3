"""Models small enough for any test."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold import specs, zoo

TINY = specs.UNetSpec(widths=[8, 8], blocks=[1, 1])


def untrained(spec: specs.GuidedSpec | specs.PlainSpec, path: Path) -> Path:
    """Random weights, all different from zero, so that everything the model sees shows in what it returns."""
    torch.manual_seed(0)
    restorer = spec.build()
    with torch.no_grad():
        for parameter in restorer.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    zoo.save_restorer(path, restorer, spec)
    return path


class Convolutions(nn.Module):
    """What the fusing pass looks for, in one small network, and what it must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.gates = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
        self.mirrored = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.last = nn.Conv2d(6, 3, 3, padding="same")
        self.act = nn.ReLU()

    def forward(self, observed: Tensor, extra: Tensor | None = None) -> Tensor:
        x = self.act(self.first(observed))
        y = F.relu(x + self.second(x))  # residual: sum and activation join the convolution
        kept = self.first(observed) + 1  # the convolution is used again, the sum is with a number
        a, b = self.gates(y + kept).chunk(2, 1)
        z = torch.sigmoid(a) * torch.tanh(b)
        z = F.relu(F.relu(self.grouped(z)) + torch.sigmoid(z))  # the outer activation changes nothing
        z = self.mirrored(z).relu()
        out = self.last(z) + observed
        return out if extra is None else out * extra


def convolutions(seed: int = 0) -> Convolutions:
    torch.manual_seed(seed)
    return Convolutions()
