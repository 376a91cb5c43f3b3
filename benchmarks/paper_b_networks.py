"""The networks of Fig. 6 of paper B that are not searched: MBLLEN (Lv et al. 2018), and a small one of its kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EnhancementNet(nn.Module):
    """MBLLEN-like (Lv et al. 2018): features of growing depth, each enhanced by a branch of its own, then merged.

    (B, 3, H, W) → the same. Not their network: a small one of its kind.
    """

    def __init__(self, *, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.features = nn.ModuleList(nn.Conv2d(a, width, 3, padding=1) for a in (3, *[width] * (depth - 1)))
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU(),
                nn.Conv2d(width // 2, width // 2, 5, padding=2), nn.ReLU(),
                nn.Conv2d(width // 2, 3, 5, padding=2),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.merge = nn.Conv2d(3 * depth, 3, 1)

    def forward(self, observed: Tensor) -> Tensor:
        found, x = [], observed
        for features, branch in zip(self.features, self.branches, strict=True):
            x = F.relu(features(x))
            found.append(branch(x))
        result: Tensor = self.merge(torch.cat(found, 1))
        return result


class MBLLEN(nn.Module):
    """MBLLEN as published (Lv et al. 2018): ten 3x3 convolutions, after each an enhancement branch, 1x1 to merge.

    (B, 3, H, W), sides of at least 13 pixels → the same. A branch goes down by three 5x5 convolutions without padding
    and up again by three transposed ones, with 8, 8, 16, 32, 16, 8 and 3 channels; everything is rectified, the result
    too.

    >>> sum(p.numel() for p in MBLLEN().parameters())
    450171
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList(nn.Conv2d(a, 32, 3, padding=1) for a in (3, *[32] * 9))
        self.branches = nn.ModuleList(self._branch() for _ in self.features)
        self.merge = nn.Conv2d(3 * len(self.features), 3, 1)

    @staticmethod
    def _branch() -> nn.Sequential:
        down = [nn.Conv2d(32, 8, 3, padding=1), nn.Conv2d(8, 8, 5), nn.Conv2d(8, 16, 5), nn.Conv2d(16, 32, 5)]
        up = [nn.ConvTranspose2d(32, 16, 5), nn.ConvTranspose2d(16, 8, 5), nn.ConvTranspose2d(8, 3, 5)]
        return nn.Sequential(*(part for layer in (*down, *up) for part in (layer, nn.ReLU())))

    def forward(self, observed: Tensor) -> Tensor:
        found, x = [], observed
        for features, branch in zip(self.features, self.branches, strict=True):
            x = F.relu(features(x))
            found.append(branch(x))
        return F.relu(self.merge(torch.cat(found, 1)))
