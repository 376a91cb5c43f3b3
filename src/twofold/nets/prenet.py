"""PReNet (Ren et al., CVPR 2019): one small residual network run several times, a convolutional LSTM as its memory.

The four gates are one convolution here; the arithmetic and the number of parameters are those of the published network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import Guidance
from twofold.nets import Network
from twofold.nets.guide import is_function


class PReNet(Network):
    """observed `(B, C, H, W)` and guidance `(B, G, H, W)` → restored `(B, C, H, W)`, not clamped.

    168,963 parameters for RGB, 169,251 with one guidance channel. `recurrences` may be changed after training: fewer
    are faster, and each costs 13 pixels of halo. Guidance may be a function `(observed, current) -> map`, called at
    each recurrence.
    """

    multiple = 1

    def __init__(self, *, channels: int = 3, guidance: int = 0, recurrences: int = 6, width: int = 32) -> None:
        super().__init__()
        self.recurrences = recurrences
        self.guidance = guidance
        self.head = nn.Conv2d(2 * channels + guidance, width, 3, padding=1)
        self.gates = nn.Conv2d(2 * width, 4 * width, 3, padding=1)  # input, forget, cell, output
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)])
            for _ in range(5)
        )
        self.tail = nn.Conv2d(width, channels, 3, padding=1)

    @property
    def halo(self) -> int:  # type: ignore[override]
        """13 pixels for each recurrence."""
        return 13 * self.recurrences  # head, gates, ten block convolutions, tail

    @property
    def stages(self) -> int:  # type: ignore[override]
        """A guide of the stage kind is called at each recurrence."""
        return self.recurrences

    def forward(self, observed: Tensor, guidance: Guidance | None = None) -> Tensor:
        blocks: Any = self.blocks
        current = observed
        memory = hidden = None
        for _ in range(self.recurrences):
            seen = [observed, current]
            if self.guidance:
                if guidance is None:
                    raise TypeError("this PReNet was built with guidance: pass a map or a function that draws it")
                seen.append(guidance(observed, current) if is_function(guidance) else guidance)
            x = F.relu(self.head(torch.cat(seen, 1)))
            if hidden is None or memory is None:
                hidden = memory = torch.zeros_like(x)
            i, f, g, o = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            x = hidden = torch.sigmoid(o) * torch.tanh(memory)
            for first, second in blocks:
                x = F.relu(F.relu(second(F.relu(first(x)))) + x)
            current = self.tail(x) + observed
        return current


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the published PyTorch weights, under this module's names.

    Raises: KeyError naming the first missing entry, for a file that is not a PReNet's.
    """
    out: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        out[f"head.{part}"] = state[f"conv0.0.{part}"]
        out[f"gates.{part}"] = torch.cat([state[f"conv_{gate}.0.{part}"] for gate in "ifgo"])
        out[f"tail.{part}"] = state[f"conv.0.{part}"] if f"conv.0.{part}" in state else state[f"conv.{part}"]
        for block in range(5):
            for ours, theirs in ((0, 0), (1, 2)):
                out[f"blocks.{block}.{ours}.{part}"] = state[f"res_conv{block + 1}.{theirs}.{part}"]
    return out
