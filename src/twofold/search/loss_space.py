"""The losses that are searched: Σ λᵢ ℓᵢ with learnable λ ≥ 0 and relaxed feature layers (Zhu et al. 2022, Table 1).

β below is everything learnable here. What a search finds is a `LossFile`, which plain training of any model reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import ConfigError
from twofold.files import write_text
from twofold.losses import Loss, colour_angle, l1, l2, laplacian, ssim_distance, total_variation
from twofold.nets.fourier import full_precision
from twofold.nets.perceptual import DirectionDistance, FeatureNetwork

PLAIN: dict[str, Loss] = {  # the six that need no weights of a feature network
    "l1": l1,
    "l2": l2,
    "colour": colour_angle,
    "ssim": ssim_distance,
    "tv": total_variation,
    "laplacian": laplacian,
}
SSIM_EXPONENTS = (1.0, 1.0, 1.0)
VGG19_GROUPS = (tuple(range(4)), tuple(range(5, 9)), tuple(range(10, 18)), tuple(range(19, 27)))  # as published
SQUEEZENET_GROUPS = ((0, 1), (3, 4, 5), (7, 8, 9, 10), (12,))  # likewise without the poolings
SQUEEZENET_SCALE = 1 / 255  # its features are in grey levels; so scaled, they weigh about as much as the other losses


class FeatureChoice(nn.Module):
    """ℓ_f: Σ over groups of Σ over layers of softmax(logits of the group) · mean |difference of that layer's features|.

    groups: numbers of the network's layers, one of each group is found in the end. logits: starting values, one
    tensor a group. scale: factor on the whole.
    """

    network: FeatureNetwork

    def __init__(
        self,
        network: FeatureNetwork,
        groups: Sequence[Sequence[int]],
        *,
        logits: Sequence[Tensor],
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.__dict__["network"] = network  # used, not owned: it is no part of β, of checkpoints or of `to(device)`
        self.groups = tuple(tuple(group) for group in groups)
        self.scale = scale
        self.logits = nn.ParameterList(nn.Parameter(start) for start in logits)

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        layers = list(chain(*self.groups))
        with torch.no_grad():
            truth = self.network(clean, layers)
        found = self.network(restored, layers)
        apart = torch.stack([(x.float() - y.float()).abs().mean() for x, y in zip(found, truth, strict=True)])
        return self.scale * (torch.cat([logits.softmax(0) for logits in self.logits]) @ apart)

    def chosen(self) -> tuple[int, ...]:
        """The likeliest layer of each group."""
        return tuple(group[int(logits.argmax())] for group, logits in zip(self.groups, self.logits, strict=True))


def near_zero(groups: Sequence[Sequence[int]], generator: torch.Generator) -> list[Tensor]:
    """Starting logits for `FeatureChoice`, 0.001 · standard normal, as published."""
    return [1e-3 * torch.randn(len(group), generator=generator) for group in groups]


@dataclass(frozen=True)
class PoweredSsim:
    """10 (1 − luminance^a · contrast^b · structure^c), Wang et al. 2004, eq. (12); `ssim_distance` where all are 1.

    Structure may be negative, where a power is not defined: it counts as 10⁻⁴ at least, with no gradient below.
    """

    exponents: tuple[float, float, float] = SSIM_EXPONENTS

    def __call__(self, restored: Tensor, clean: Tensor) -> Tensor:
        if self.exponents == SSIM_EXPONENTS:
            return ssim_distance(restored, clean)
        with torch.autocast(device_type=restored.device.type, enabled=False):
            x, y = map(full_precision, (restored, clean))
            mean_x, mean_y, xx, yy, xy = (_blurred(image) for image in (x, y, x * x, y * y, x * y))
            c1, c2 = 0.01**2, 0.03**2
            # The small number keeps the roots' gradients finite on flat pictures.
            var_x, var_y = ((s - m * m).clamp_min(0) + 1e-8 for s, m in ((xx, mean_x), (yy, mean_y)))
            deviations = (var_x * var_y).sqrt()
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            contrast = (2 * deviations + c2) / (var_x + var_y + c2)
            structure = (xy - mean_x * mean_y + 1e-8 + c2 / 2) / (deviations + c2 / 2)
            a, b, c = self.exponents
            return 10 * (1 - (luminance**a * contrast**b * structure.clamp_min(1e-4) ** c).mean())


def _blurred(images: Tensor) -> Tensor:
    """11×11 Gaussian window, deviation 1.5, zeros outside."""
    taps = torch.exp(-((torch.arange(11, device=images.device, dtype=images.dtype) - 5) ** 2) / (2 * 1.5**2))
    taps = (taps / taps.sum()).expand(images.shape[1], 1, 1, 11)
    down = F.conv2d(images, taps.transpose(2, 3), padding=(5, 0), groups=images.shape[1])
    return F.conv2d(down, taps, padding=(0, 5), groups=images.shape[1])


@dataclass(frozen=True)
class Clipped:
    """λ itself is learned, and `LossSpace.project` sets what became negative to 0: as published.

    A λ that lands on 0 has a gradient still, and comes back only if that is negative; the sum of all λ is free.
    """

    def raw(self, count: int) -> Tensor:
        return torch.ones(count)

    def weights(self, raw: Tensor) -> Tensor:
        return raw


@dataclass(frozen=True)
class Softplus:
    """λ = softplus(raw): always positive, needs no projection."""

    def raw(self, count: int) -> Tensor:
        return torch.ones(count).expm1().log()

    def weights(self, raw: Tensor) -> Tensor:
        return F.softplus(raw)


@dataclass(frozen=True)
class FixedSum:
    """λ = n · softmax(raw): their mean stays 1, so that a search cannot trade the loss against the learning rate."""

    def raw(self, count: int) -> Tensor:
        return torch.zeros(count)

    def weights(self, raw: Tensor) -> Tensor:
        return len(raw) * raw.softmax(0)


class LossSpace(nn.Module):
    """(restored, clean) → Σ λᵢ ℓᵢ, with every λ 1 at first.

    terms: losses by the name they have in tables and loss files; those that are modules may have learnable choices of
    their own, see `FeatureChoice`. constraint: how λ ≥ 0 is kept.

    Its parameters are β: `torch.func.functional_call(space, beta, (restored, clean))`. A first-order gradient in β is
    zero, because the upper loss does not see β: search with `OneStepUnrolled`.

    >>> space = LossSpace({"l1": l1, "l2": l2})
    >>> space(torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8)).item()                    # 0.5 + 0.25
    0.75
    """

    def __init__(self, terms: Mapping[str, Loss], *, constraint: Clipped | Softplus | FixedSum = Clipped()) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.choices = nn.ModuleDict(
            {name: term for name, term in self.terms.items() if isinstance(term, FeatureChoice)}
        )
        self.constraint = constraint
        self.raw = nn.Parameter(constraint.raw(len(self.terms)))

    def weights(self) -> Tensor:
        """λ (n,), in the order of the terms."""
        return self.constraint.weights(self.raw)

    def values(self, restored: Tensor, clean: Tensor) -> Tensor:
        """ℓ (n,), unweighted, in the order of the terms."""
        return torch.stack([term(restored, clean) for term in self.terms.values()])

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        return self.weights() @ self.values(restored, clean)

    @torch.no_grad()
    def project(self) -> None:
        """λ ← max(λ, 0), to be called after each step; nothing where the constraint keeps λ positive by itself."""
        if isinstance(self.constraint, Clipped):
            self.raw.clamp_(min=0)

    @torch.no_grad()
    def assume(self, found: LossFile) -> None:
        """Takes over what a search found, in place: weights, 0 for those it does not name, and one layer a group.

        Raises: ConfigError for another constraint than `Clipped`, and for losses that this space does not have.
        """
        foreign = [name for name, weight in found.weights.items() if weight and name not in self.terms]
        if foreign or not isinstance(self.constraint, Clipped):
            raise ConfigError(f"this loss space cannot take over {', '.join(foreign) or 'weights: it is not clipped'}")
        self.raw.copy_(torch.tensor([found.weights.get(name, 0.0) for name in self.terms]))
        for name, choice in ((n, t) for n, t in self.terms.items() if isinstance(t, FeatureChoice)):
            for group, logits in zip(choice.groups, choice.logits, strict=True):
                chosen = [float(layer in found.layers.get(name, ())) for layer in group]
                logits.copy_(100 * torch.tensor(chosen))  # a softmax of 1 and 0 up to rounding

    def derive(self) -> LossFile:
        """What was found so far."""
        weights = dict(zip(self.terms, self.weights().tolist(), strict=True))
        layers = {name: term.chosen() for name, term in self.terms.items() if isinstance(term, FeatureChoice)}
        powered = [term.exponents for term in self.terms.values() if isinstance(term, PoweredSsim)]
        return LossFile(weights, layers, powered[0] if powered else SSIM_EXPONENTS)


Feature = FeatureNetwork | DirectionDistance


@dataclass(frozen=True)
class LossFile:
    """A loss as a file: λ by name, the feature layers of each term that has some, the exponents inside SSIM.

    Raises: ConfigError for a negative or infinite weight, an unknown loss, or none above 0.
    """

    weights: Mapping[str, float]
    layers: Mapping[str, tuple[int, ...]]
    ssim_exponents: tuple[float, float, float] = SSIM_EXPONENTS

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"loss file: the weight of {name} is {weight}; it must be finite and at least 0")
            if name not in PLAIN and not name.startswith(("features-", "perceptual-", "lpips-")):
                near = difflib.get_close_matches(name, [*PLAIN, "features-…", "perceptual-…", "lpips-…"], 1, 0.0)[0]
                raise ConfigError(f"loss file: there is no loss {name!r}; the nearest is {near!r}")
            if name.startswith("features-") and not self.layers.get(name):
                raise ConfigError(f"loss file: {name} names no layers; add them under `layers`")
        if not any(self.weights.values()):
            raise ConfigError("loss file: no loss has a weight above 0")

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the terms in use that `build` must be given feature networks for."""
        return tuple(name for name, weight in self.weights.items() if weight and name not in PLAIN)

    def build(self, features: Mapping[str, Feature] | None = None) -> Loss:
        """The loss for training; terms of weight 0 are not computed.

        features: for each name in `needs`, a `FeatureNetwork` ("features-…") or a distance ("perceptual-…", "lpips-…").

        Raises: ConfigError where one is missing.
        """
        given = features or {}
        missing = [name for name in self.needs if name not in given]
        if missing:
            raise ConfigError(f"the loss needs a feature network for {', '.join(missing)}; say where its weights are")
        terms = [(weight, self._term(name, given.get(name))) for name, weight in self.weights.items() if weight]

        def loss(restored: Tensor, clean: Tensor) -> Tensor:
            return torch.stack([weight * term(restored, clean) for weight, term in terms]).sum()

        return loss

    def _term(self, name: str, feature: Feature | None) -> Loss:
        if isinstance(feature, DirectionDistance):
            return mean_distance(feature)
        if isinstance(feature, FeatureNetwork):
            layers = self.layers[name]
            logits = [torch.zeros(1, device=feature.mean.device) for _ in layers]
            scale = SQUEEZENET_SCALE if name == "features-squeeze" else 1.0
            return FeatureChoice(feature, [(n,) for n in layers], logits=logits, scale=scale)
        return PoweredSsim(self.ssim_exponents) if name == "ssim" else PLAIN[name]

    def to_yaml(self) -> str:
        facts: dict[str, Any] = {"weights": dict(self.weights)}
        if self.layers:
            facts["layers"] = {name: list(layers) for name, layers in self.layers.items()}
        if self.ssim_exponents != SSIM_EXPONENTS:
            facts["ssim_exponents"] = list(self.ssim_exponents)
        return yaml.safe_dump(facts, sort_keys=False)

    def write(self, path: Path) -> None:
        write_text(path, self.to_yaml())

    @classmethod
    def from_yaml(cls, text: str) -> LossFile:
        """Raises: ConfigError where the text is no loss file.

        >>> LossFile.from_yaml("weights: {l1: 1.38, ssim: 1.23}").weights
        {'l1': 1.38, 'ssim': 1.23}
        """
        try:
            facts = yaml.safe_load(text)
            unknown = set(facts) - {"weights", "layers", "ssim_exponents"}
            if unknown:
                raise ConfigError(f"loss file: unknown key {min(unknown)!r}; there are weights, layers, ssim_exponents")
            weights = {str(name): float(weight) for name, weight in facts["weights"].items()}
            layers = {str(name): tuple(map(int, numbers)) for name, numbers in facts.get("layers", {}).items()}
            a, b, c = map(float, facts.get("ssim_exponents", SSIM_EXPONENTS))
        except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            reason = " ".join(str(error).split())
            raise ConfigError(f"not a loss file: {reason}; use a loss.yaml that a search wrote") from error
        return cls(weights, layers, (a, b, c))


def mean_distance(distance: DirectionDistance) -> Loss:
    """A distance `(B,)` as a loss: its mean over the batch."""

    def loss(restored: Tensor, clean: Tensor) -> Tensor:
        value: Tensor = distance(restored, clean)
        return value.mean()

    return loss


def published_terms(
    *, features: tuple[str, FeatureChoice] | None = None, distance: DirectionDistance | None = None
) -> dict[str, Loss]:
    """The eight losses of Table 1, or as many as there are feature networks for.

    features: (name, term) such as ("features-squeeze", …). distance: enters by its own name.
    """
    perceptual: dict[str, Loss] = {}
    if distance is not None:
        perceptual[distance.name] = mean_distance(distance)
    if features is not None:
        perceptual[features[0]] = features[1]
    return {
        **{name: PLAIN[name] for name in ("l1", "l2", "colour", "ssim")},
        **perceptual,
        **{name: PLAIN[name] for name in ("tv", "laplacian")},
    }
