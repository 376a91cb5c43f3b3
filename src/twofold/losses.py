"""Training losses: `(restored, clean) -> scalar`, both `(B, C, H, W)` in [0, 1]; float32 inside autocast too.

`LOSSES` is the one table of them. A recipe trains with a weighted sum of its losses (`LossSpec`), and a search learns
the weights: to add a loss, write a function and give it a line in the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from twofold.contracts import ConfigError
from twofold.files import write_text
from twofold.metrics import same_size, ssim_gaussian_zero_padded, ssim_multiscale
from twofold.nets.fourier import full_precision
from twofold.nets.perceptual import (
    SQUEEZENET,
    VGG16,
    VGG19,
    FeatureDistance,
    FeatureNetwork,
    FeatureWeights,
    load_features,
    lpips_alexnet,
    perceptual_squeeze,
)
from twofold.settings import nearest

Loss = Callable[[Tensor, Tensor], Tensor]


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference.

    >>> l1(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.5))
    tensor(0.2500)
    """
    return _difference(restored, clean).abs().mean()


def l2(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared difference.

    >>> l2(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.5))
    tensor(0.0625)
    """
    return _difference(restored, clean).square().mean()


def smooth_l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Huber loss, quadratic below 1 and linear above (GridDehazeNet's): half of `l2` for pictures in [0, 1].

    >>> smooth_l1(torch.full((1, 3, 2, 2), 2.5), torch.full((1, 3, 2, 2), 0.5))
    tensor(1.5000)
    """
    difference = _difference(restored, clean)
    return F.smooth_l1_loss(difference, torch.zeros_like(difference))


def charbonnier(restored: Tensor, clean: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Mean of √(difference² + epsilon²): `l1`, smoothed so that its gradient is continuous at 0.

    >>> charbonnier(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.5))
    tensor(0.2500)
    """
    return (_difference(restored, clean).square() + epsilon**2).sqrt().mean()


def negative_ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """−SSIM, between −1 and 1, least for equal pictures: PReNet's and paper A's loss for rain (Gao et al. 2022, §5.3).

    SSIM variant `gaussian-zero-padded` of `twofold.metrics`, range 1. 8x3x112x112 forward and backward take 8 ms on one
    thread.

    >>> negative_ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.5))
    tensor(-1.)
    """
    return -ssim_gaussian_zero_padded(restored, clean).mean()


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """10 (1 − SSIM): loss (d) of the search space, with the factor of its authors' program (Zhu et al. 2022, Table 1).

    >>> ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.5))
    tensor(0.)
    """
    return 10 * (1 + negative_ssim(restored, clean))


def ms_ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """1 − MS-SSIM over five Gaussian windows at full resolution (Zhao et al. 2017), `ssim_multiscale` of `metrics`.

    They train with 0.84 of it and 0.16 of `l1`, which they weight by the widest window.

    >>> ms_ssim(*torch.tensor([0.1, 0.2], dtype=torch.float64).view(2, 1, 1, 1, 1).expand(-1, 1, 3, 16, 16))
    tensor(0.1996, dtype=torch.float64)
    """
    return 1 - ssim_multiscale(restored, clean).mean()


def colour(restored: Tensor, clean: Tensor) -> Tensor:
    """A tenth of the mean angle in degrees between the RGB vectors of both pictures (Zhu et al. 2022, Table 1, c).

    A pixel darker than one grey level in either picture has no colour and counts as 0. (Normalising it would give 90
    degrees for two black pixels, and a gradient without bound.) Angles below 0.08 degrees have no gradient.

    Orthogonal colours differ by 90 degrees:

    >>> red, green = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)
    >>> colour(red, green)
    tensor(9.)
    """
    same_size(restored, clean)
    with torch.autocast(device_type=restored.device.type, enabled=False):
        restored, clean = map(full_precision, (restored, clean))
        # Sums of squares, not norms: torch reduces norms over dimension 1 of a contiguous batch eight times slower.
        lengths, darkest = restored.square().sum(dim=1) * clean.square().sum(dim=1), (1 / 255) ** 2
        coloured = (restored.square().sum(dim=1) > darkest) & (clean.square().sum(dim=1) > darkest)
        cosine = (restored * clean).sum(dim=1) / torch.where(coloured, lengths, 1.0).sqrt()
        angle = cosine.clamp(-0.999999, 0.999999).acos() * (180 / math.pi)
        return 0.1 * torch.where(coloured, angle, 0.0).mean()


def tv(restored: Tensor, clean: Tensor) -> Tensor:
    """Total variation: twice the mean squared steps down plus those across, of the restored
    picture alone (Zhu et al. 2022, Table 1, g).

    A step edge from 0 to 1 in the middle of four columns: one of three steps across is 1, so 2/3.

    >>> edge = torch.tensor([0.0, 0, 1, 1]).expand(1, 3, 4, 4)
    >>> tv(edge, edge)
    tensor(0.6667)
    """
    same_size(restored, clean)
    restored = full_precision(restored)
    down, across = restored.diff(dim=2), restored.diff(dim=3)
    return 2 * (_mean(down.square()) + _mean(across.square()))


def laplacian(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared 4-neighbour Laplacian inside the border of the restored picture alone (Zhu et al. 2022, Table 1, h).

    A ramp has none:

    >>> ramp = torch.linspace(0, 1, 5).expand(1, 3, 5, 5)
    >>> laplacian(ramp, ramp) < 1e-12
    tensor(True)
    """
    same_size(restored, clean)
    x = full_precision(restored)
    neighbours = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return _mean((neighbours - 4 * x[..., 1:-1, 1:-1]).square())


@dataclass(frozen=True)
class DistanceLoss:
    """The batch mean of a distance that a trained network measures: loss (e) of Zhu et al. 2022, Table 1, and others.

    read: folder of weight files → module `(restored, clean) -> (B,)`. Raises WeightsError where the weights are
    missing, damaged or of another network.
    """

    read: Callable[[Path], nn.Module]

    def build(self, folder: Path, device: torch.device | str = "cpu") -> Loss:
        """folder: holds the weights, see `twofold.nets.perceptual.load_features`. Raises: WeightsError."""
        distance = self.read(folder).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

        def loss(restored: Tensor, clean: Tensor) -> Tensor:
            value: Tensor = distance(restored, clean)
            return value.mean()

        return loss


@dataclass(frozen=True)
class LayerLoss:
    """scale · Σ over layers of mean |difference of their features|: loss (f) of Zhu et al. 2022, Table 1.

    groups: layers of the network, of which a search chooses one a group.
    """

    weights: FeatureWeights
    groups: tuple[tuple[int, ...], ...]
    scale: float = 1.0

    def network(self, folder: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
        """folder: holds the weights, see `twofold.nets.perceptual.load_features`. Raises: WeightsError."""
        network: FeatureNetwork = load_features(self.weights, folder).to(
            device,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )
        return network

    def build(self, layers: tuple[int, ...], folder: Path, device: torch.device | str = "cpu") -> Loss:
        """layers: numbers of the network's layers. Raises: WeightsError."""
        distance = FeatureDistance(self.network(folder, device), layers)
        return lambda restored, clean: self.scale * distance(restored, clean).mean()


def perceptual_vgg16(folder: Path) -> FeatureDistance:
    """GridDehazeNet's (Liu et al. 2019): mean squared difference of relu1_2, 2_2 and 3_3 of VGG16, not normalised.

    Raises: WeightsError where the weights are missing, damaged, or of another network.
    """
    published = load_features(VGG16, folder)
    plain = FeatureNetwork(published.features, mean=(0, 0, 0), deviation=(1, 1, 1), smallest=published.smallest)
    return FeatureDistance(plain, (3, 8, 15), weights=(1 / 3, 1 / 3, 1 / 3), power=2)


VGG19_GROUPS = (tuple(range(4)), tuple(range(5, 9)), tuple(range(10, 18)), tuple(range(19, 27)))  # as published
SQUEEZENET_GROUPS = ((0, 1), (3, 4, 5), (7, 8, 9, 10), (12,))  # likewise without the poolings
SQUEEZENET_SCALE = 1 / 255  # its features are in grey levels; scaled so, the loss is about as large as the others

LOSSES: dict[str, Loss | DistanceLoss | LayerLoss] = {
    "l1": l1,
    "l2": l2,
    "smooth_l1": smooth_l1,
    "charbonnier": charbonnier,
    "negative_ssim": negative_ssim,
    "ssim": ssim,
    "ms_ssim": ms_ssim,
    "colour": colour,
    "tv": tv,
    "laplacian": laplacian,
    "perceptual_squeeze": DistanceLoss(perceptual_squeeze),
    "perceptual_vgg16": DistanceLoss(perceptual_vgg16),
    "lpips_alexnet": DistanceLoss(lpips_alexnet),
    "features_squeeze": LayerLoss(SQUEEZENET, SQUEEZENET_GROUPS, SQUEEZENET_SCALE),
    "features_vgg19": LayerLoss(VGG19, VGG19_GROUPS),
}
"""Every loss by the name that recipes, loss files and tables use."""

PUBLISHED = ("l1", "l2", "colour", "ssim", "lpips_alexnet", "features_vgg19", "tv", "laplacian")
"""The eight losses of Zhu et al. 2022, Table 1."""

PLAIN = ("l1", "l2", "colour", "ssim", "tv", "laplacian")
"""Those of the eight that need no network."""


def loss_of(name: str) -> Loss | DistanceLoss | LayerLoss:
    """The entry of `LOSSES`. Raises: ConfigError for an unknown name, with the nearest known one."""
    if name not in LOSSES:
        raise ConfigError(f"unknown loss {name!r}; {nearest(name, LOSSES)}")
    return LOSSES[name]


@dataclass(frozen=True)
class LossSpec:
    """A loss as a recipe or a loss file has it: Σ weight · loss.

    weights: by the names of `LOSSES`. layers: of every `LayerLoss` among them, the layers it compares.

    Raises: ConfigError for a negative or infinite weight, an unknown loss, missing layers, or no weight above 0.
    """

    weights: Mapping[str, float]
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            entry = loss_of(name)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ConfigError(f"the weight of {name} is {weight!r}; it must be finite and at least 0")
            if weight and isinstance(entry, LayerLoss) and not self.layers.get(name):
                raise ConfigError(f"{name} names no layers; add them under `layers`")
        if not any(self.weights.values()):
            raise ConfigError("no loss has a weight above 0")

    def build(self, folder: Path) -> Loss:
        """The loss for training; terms of weight 0 are not computed.

        folder: holds the weights of the networks that perceptual losses need. They are read when the loss is first
        called on a device, which then raises WeightsError where they are missing.
        """

        @cache
        def terms(device: torch.device) -> list[tuple[float, Loss]]:
            return [(weight, self._term(name, folder, device)) for name, weight in self.weights.items() if weight]

        def loss(restored: Tensor, clean: Tensor) -> Tensor:
            return torch.stack([weight * term(restored, clean) for weight, term in terms(restored.device)]).sum()

        return loss

    def _term(self, name: str, folder: Path, device: torch.device) -> Loss:
        match loss_of(name):
            case DistanceLoss() as distance:
                return distance.build(folder, device)
            case LayerLoss() as features:
                return features.build(self.layers[name], folder, device)
            case plain:
                return plain

    @classmethod
    def of(cls, facts: Any) -> LossSpec:
        """From a mapping, as YAML has it: of weights alone, or of `weights` and `layers`.

        Raises: ConfigError where it is not one.

        >>> LossSpec.of({"l1": 1.38, "ssim": 1.23}) == LossSpec.of({"weights": {"l1": 1.38, "ssim": 1.23}})
        True
        """
        if isinstance(facts, LossSpec):
            return facts
        if not isinstance(facts, Mapping):
            raise ConfigError(f"expected losses by name with their weights, got {facts!r}")
        if "weights" not in facts and "layers" not in facts:
            return cls(dict(facts))
        unknown = [key for key in facts if key not in ("weights", "layers")]
        if unknown:
            raise ConfigError(f"unknown key {unknown[0]!r} of a loss; there are weights and layers")
        weights, layers = facts.get("weights"), facts.get("layers") or {}
        if not isinstance(weights, Mapping) or not isinstance(layers, Mapping):
            raise ConfigError(f"weights and layers of a loss go by name, got {weights!r} and {layers!r}")
        try:
            return cls(dict(weights), {str(name): tuple(map(int, numbers)) for name, numbers in layers.items()})
        except TypeError as error:
            raise ConfigError(f"layers of a loss are lists of numbers, got {dict(layers)!r}") from error

    def to_yaml(self) -> str:
        """As text that `from_yaml` reads."""
        facts: dict[str, Any] = {"weights": dict(self.weights)}
        if self.layers:
            facts["layers"] = {name: list(layers) for name, layers in self.layers.items()}
        return yaml.safe_dump(facts, sort_keys=False)

    def write(self, path: Path) -> None:
        """As a loss file, which `from_yaml` reads."""
        write_text(path, self.to_yaml())

    @classmethod
    def from_yaml(cls, text: str) -> LossSpec:
        """Raises: ConfigError where the text is no loss file.

        >>> LossSpec.from_yaml("weights: {l1: 1.38, ssim: 1.23}").weights
        {'l1': 1.38, 'ssim': 1.23}
        """
        try:
            return cls.of(yaml.safe_load(text))
        except (yaml.YAMLError, ConfigError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"not a loss file: {reason}; use a loss.yaml that a search wrote") from error


def _difference(restored: Tensor, clean: Tensor) -> Tensor:
    same_size(restored, clean)
    restored, clean = map(full_precision, (restored, clean))
    return restored - clean


def _mean(values: Tensor) -> Tensor:
    """Mean, 0 for none: a picture one pixel wide has no steps across."""
    return values.sum() / max(values.numel(), 1)
