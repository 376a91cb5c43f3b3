"""The judge: it classifies images as clear or degraded. Its output on validation images is what a loss search
minimises.

It is trained once per task on clear and degraded crops, then held fixed and in evaluation mode (Zhu et al. 2022, §2.2).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.nets.perceptual import IMAGENET_DEVIATION, IMAGENET_MEAN


def clear_loss(logit: Tensor) -> Tensor:
    """Cross entropy of a judge's verdict `(B,)` with the label "clear", mean over the batch: what a search minimises.

    >>> clear_loss(torch.zeros(2))
    tensor(0.6931)
    """
    return F.softplus(-logit).mean()


def verdict_loss(logit: Tensor, clear: Tensor) -> Tensor:
    """Cross entropy of verdicts `(B,)` with labels `(B,)`, 1 for clear and 0 for degraded: what trains a judge."""
    return F.binary_cross_entropy_with_logits(logit, clear)


class Judge(nn.Module):
    """pictures `(B, 3, H, W)` in [0, 1] → logit `(B,)`, above 0 for clear.

    width: channels of the first layer; they double at each of three halvings. Smooth activations and norms within a
    picture: its verdict has second derivatives, and does not depend on the other pictures of a batch.
    """

    def __init__(self, *, width: int = 16) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        self.normalise = Normalise()
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            self.layers.append(nn.Conv2d(inputs, outputs, 3, stride=1 if inputs == 3 else 2, padding=1, bias=False))
            self.layers.append(nn.GroupNorm(4, outputs))
            self.layers.append(nn.SiLU())
        # Damage shows in the spread of features as much as in their mean: haze lowers it, noise raises it.
        self.fc = nn.Linear(2 * widths[-1], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.layers(self.normalise(pictures)).flatten(2)
        spread = (features.var(dim=2, correction=0) + 1e-6).sqrt()
        logit: Tensor = self.fc(torch.cat([features.mean(dim=2), spread], 1))
        return logit.squeeze(1)


class ResNetJudge(nn.Module):
    """ResNet-50 (He et al. 2016) with one output, the judge of the paper: `(B, 3, H, W)` in [0, 1] → logit `(B,)`.

    Parameters are named as in the field's standard weight files, so that `load_state_dict(…, strict=False)` without
    the file's `fc` takes ImageNet's. Batch norm makes pictures of one batch see one another in training: judge in
    evaluation mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=2)
        self.fc = nn.Linear(2048, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(self.normalise(pictures))))
        features = F.max_pool2d(features, 3, stride=2, padding=1)
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logit: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logit.squeeze(1)


class Normalise(nn.Module):
    """RGB `(B, 3, H, W)` in [0, 1] → mean 0 and deviation 1 in each channel over ImageNet."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        return (pictures - self.mean) / self.deviation


class Bottleneck(nn.Module):
    """`(B, inputs, H, W)` → `(B, 4 width, H / stride, W / stride)`: 1×1, 3×3 with the stride, 1×1; a shortcut."""

    def __init__(self, inputs: int, width: int, *, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(features)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        shortcut = features if self.downsample is None else self.downsample(features)
        return F.relu(self.bn3(self.conv3(inner)) + shortcut)


def _stage(inputs: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(4 * width, width, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, width, stride=stride), *rest)
