"""The losses that are searched: Σ λᵢ ℓᵢ with learnable λ ≥ 0 and relaxed feature layers (Zhu et al. 2022, Table 1).

β below is everything learnable here. What a search finds is a `LossSpec`, which plain training of any model reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import ConfigError
from twofold.losses import DistanceLoss, LayerLoss, Loss, LossSpec, loss_of
from twofold.nets.perceptual import FeatureNetwork


class FeatureChoice(nn.Module):
    """ℓ_f of images `(B, 3, H, W)`, a scalar: Σ over groups of Σ over layers of softmax(logits of the group) · mean
    |difference of that layer's features|.

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
        self.__dict__["network"] = network  # not a submodule: no part of β, of checkpoints or of `to(device)`
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
class Clipped:
    """λ itself is learned, and `LossSpace.project` sets what became negative to 0: as published.

    A λ that lands on 0 has a gradient still, and comes back only if that is negative; the sum of all λ is free.
    """

    def raw(self, count: int) -> Tensor:
        """The learned numbers `(count,)` at the start: every weight 1."""
        return torch.ones(count)

    def weights(self, raw: Tensor) -> Tensor:
        """`raw (n,)` → weights `(n,)`, at least 0."""
        return raw


@dataclass(frozen=True)
class Softplus:
    """λ = softplus(raw): always positive, needs no projection."""

    def raw(self, count: int) -> Tensor:
        """The learned numbers `(count,)` at the start: every weight 1."""
        return torch.ones(count).expm1().log()

    def weights(self, raw: Tensor) -> Tensor:
        """`raw (n,)` → weights `(n,)`, above 0."""
        return F.softplus(raw)


@dataclass(frozen=True)
class FixedSum:
    """λ = n · softmax(raw): their mean stays 1, so that a search cannot trade the loss against the learning rate."""

    def raw(self, count: int) -> Tensor:
        """The learned numbers `(count,)` at the start: every weight 1."""
        return torch.zeros(count)

    def weights(self, raw: Tensor) -> Tensor:
        """`raw (n,)` → weights `(n,)`, above 0, whose sum stays n."""
        return len(raw) * raw.softmax(0)


class LossSpace(nn.Module):
    """(restored, clean) → Σ λᵢ ℓᵢ, with every λ 1 at first.

    terms: losses by the name they have in tables and loss files; those that are modules may have learnable choices of
    their own, see `FeatureChoice`. constraint: how λ ≥ 0 is kept.

    Its parameters are β: `torch.func.functional_call(space, beta, (restored, clean))`. A first-order gradient in β is
    zero, because the upper loss does not see β: search with `OneStepUnrolled`.

    >>> space = LossSpace(searchable(["l1", "l2"]))
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
    def assume(self, found: LossSpec) -> None:
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

    def derive(self) -> LossSpec:
        """What was found so far."""
        weights = dict(zip(self.terms, self.weights().tolist(), strict=True))
        layers = {name: term.chosen() for name, term in self.terms.items() if isinstance(term, FeatureChoice)}
        return LossSpec(weights, layers)


def searchable(
    names: Iterable[str],
    *,
    folder: Path = Path(),
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> dict[str, Loss]:
    """The terms of a `LossSpace` by name, any of `twofold.losses.LOSSES`; a `LayerLoss` gets its layers to choose from.

    folder: holds the weights of the networks that perceptual losses need. generator: draws where the choices of layers
    start.

    Raises: WeightsError where weights are missing; ConfigError for an unknown loss.

    >>> list(searchable(["l1", "charbonnier"]))
    ['l1', 'charbonnier']
    """

    def term(name: str) -> Loss:
        match loss_of(name):
            case DistanceLoss() as distance:
                return distance.build(folder, device)
            case LayerLoss() as features:
                drawn = torch.Generator().manual_seed(0) if generator is None else generator
                logits = near_zero(features.groups, drawn)
                network = features.network(folder, device)
                return FeatureChoice(network, features.groups, logits=logits, scale=features.scale)
            case plain:
                return plain

    return {name: term(name) for name in names}
