"""The network that is searched: at every place a softmax-weighted sum of all candidates (Zhu et al. 2022, §2.3).

Candidates share work. Identity, plain, dilated and residual convolutions are linear in one input, so their weighted
sum is one convolution, whose kernel is the weighted sum of their kernels; so is the half of a dense candidate that
sees the input itself. Only what is left of a dense candidate, ReLU(inner(x)) and its convolution, needs passes of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from twofold.nets.hadamard import Cell, Place, radius_of
from twofold.space.operations import (
    CONVERT_CANDIDATES,
    UNIT_CANDIDATES,
    Candidate,
    Convolution,
    Dense,
    Skip,
    convolve_same,
)


class Mixture(nn.Module):
    """Σ softmax(logits)ᵢ · candidateᵢ(x), one logit a candidate.

    logits: starting values (n,), near 0. The first lead of one candidate over the others is chance: fix their seed.
    light: computes the insides of dense candidates twice in training; they are half of all that a unit keeps, and a
    tenth of its work.
    """

    identity: Tensor

    def __init__(
        self,
        candidates: Mapping[str, Candidate],
        place: Place,
        outputs: int,
        *,
        logits: Tensor,
        light: bool = False,
    ) -> None:
        super().__init__()
        self.light = light
        self.place = place
        self.logits = nn.Parameter(logits)
        self.candidates = nn.ModuleDict({name: make(place.inputs, outputs) for name, make in candidates.items()})
        self.radius = max(map(radius_of, self.candidates.values()))
        self.register_buffer("identity", torch.eye(outputs, place.inputs)[:, :, None, None], persistent=False)

    def weights(self) -> Tensor:
        """How much of each candidate: (n,), positive, sum 1."""
        return self.logits.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        terms: list[Tensor] = []
        kernels: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}  # by size and dilation: weights and kernels
        adding: list[Tensor] = []  # weights of the candidates that add their input
        hidden: list[Tensor] = []  # inner and outer kernels of the dense candidates, in turn
        for weight, candidate in zip(self.weights().unbind(), self.candidates.values(), strict=True):
            match candidate:
                case Skip():
                    adding.append(weight)
                case Convolution():
                    kernels.setdefault((candidate.size, candidate.dilation), []).append((weight, candidate.weight))
                    if candidate.residual:
                        adding.append(weight)
                case Dense():
                    kernels.setdefault((candidate.size, 1), []).append((weight, candidate.visible_kernel()))
                    hidden += [candidate.inner.weight, weight * candidate.hidden_kernel()]
                case _:
                    terms.append(weight * candidate(features))
        if adding:
            kernels.setdefault((1, 1), []).append((torch.stack(adding).sum(), self.identity))

        if hidden:
            # Kernels go in as arguments, because `functional_call` takes them back before the backward pass.
            if self.light and torch.is_grad_enabled():
                terms.append(checkpoint(_hidden_sum, features, *hidden, use_reentrant=False, preserve_rng_state=False))
            else:
                terms.append(_hidden_sum(features, *hidden))

        # A dilated kernel joins the plain ones where it fits inside the largest of them; else it is cheaper alone.
        merged: list[Tensor] = []
        extent = max((size for size, dilation in kernels if dilation == 1), default=0)
        for (size, dilation), members in kernels.items():
            kernel = _weighted_sum(members)
            if dilation * (size - 1) < extent:
                merged.append(_spread(kernel, dilation, extent))
            else:
                terms.append(convolve_same(features, kernel, dilation=dilation))
        if merged:
            terms.append(convolve_same(features, reduce(add, merged)))
        total: Tensor = reduce(add, terms)
        return total


def _hidden_sum(features: Tensor, *kernels: Tensor) -> Tensor:
    """Σ outer * ReLU(inner * x) over (inner, outer) kernels in turn."""
    pairs = zip(kernels[::2], kernels[1::2], strict=True)
    return reduce(add, [convolve_same(F.relu(convolve_same(features, inner)), outer) for inner, outer in pairs])


def _weighted_sum(members: list[tuple[Tensor, Tensor]]) -> Tensor:
    weights, kernels = zip(*members, strict=True)
    total: Tensor = torch.tensordot(torch.stack(weights), torch.stack(kernels), 1)
    return total


def _spread(kernel: Tensor, dilation: int, extent: int) -> Tensor:
    """The plain kernel (outputs, inputs, extent, extent) that does what a dilated one does."""
    size = kernel.shape[-1]
    if dilation > 1:
        kernel = F.pad(kernel[..., None, :, None], (0, dilation - 1, 0, 0, 0, dilation - 1))
        kernel = kernel.flatten(4, 5).flatten(2, 3)  # every tap is now followed by dilation − 1 zeros, the last one too
    margin = (extent - dilation * (size - 1) - 1) // 2
    end = margin - (dilation - 1)
    return F.pad(kernel, (margin, end, margin, end)) if margin or end else kernel


def mixtures(generator: torch.Generator, *, noise: float = 1e-3, light: bool = False) -> Cell:
    """The filling that makes a `HadamardNet` the supernet; logits start as `noise` · standard normal.

    light: see `Mixture`. `HadamardNet(checkpointed=True)` saves more, and costs more.

    >>> from twofold.nets.hadamard import HadamardNet
    >>> net = HadamardNet(mixtures(torch.Generator().manual_seed(0)), units=1)
    >>> sum(logits.numel() for logits in architecture(net).values())            # 8 × 9, and 9 × 4 at either end
    144
    """

    def cell(place: Place, outputs: int) -> Mixture:
        candidates = UNIT_CANDIDATES if place.in_unit else CONVERT_CANDIDATES
        logits = noise * torch.randn(len(candidates), generator=generator)
        return Mixture(candidates, place, outputs, logits=logits, light=light)

    return cell


def mixtures_of(net: nn.Module) -> dict[str, Mixture]:
    """Every mixture by its module name, in the order of the data."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Mixture)}


def architecture(net: nn.Module) -> dict[str, nn.Parameter]:
    """α: the logits of all places, by parameter name (as `torch.func.functional_call` takes them)."""
    return {f"{name}.logits": mixture.logits for name, mixture in mixtures_of(net).items()}


def network_weights(net: nn.Module) -> dict[str, nn.Parameter]:
    """ω: every parameter that is not architecture."""
    chosen = architecture(net)
    return {name: value for name, value in net.named_parameters() if name not in chosen}
