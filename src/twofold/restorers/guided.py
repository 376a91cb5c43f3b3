"""Reconstruction with hyper-guidance (Gao et al. 2022, eq. 1): a guide estimates a map, the network restores by it."""

from __future__ import annotations

from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from twofold.contracts import Guidance, GuidanceKind, Inputs, Restored, Restorer
from twofold.nets import Network
from twofold.nets.guide import Guide, UNetGuide, is_function
from twofold.tiling import tiled

GUIDE_TILE = 1024


class Guided(nn.Module, Restorer):
    """guide: observed → map. net: `(observed, guidance)` → restored, with the kernel and the context it asks for.

    A map that is given, or a function `(observed, current) -> map`, is used in place of the guide. With a guide of the
    stage kind the network calls for a new map at every stage, and the map returned is the one for the final image.

    Raises: ValueError for a stage guide with a network that asks for one map only.
    """

    forward = Restorer.__call__

    def __init__(self, guide: Guide | UNetGuide, net: Network) -> None:
        super().__init__()
        if guide.stage and not net.stages:
            raise ValueError(
                f"guide.stage: {type(net).__name__} takes one map at the start, so a guide cannot see its stages; "
                "leave stage out, or take prenet or deconvolution"
            )
        self.guide = guide
        self.net = net

    @property
    def kind(self) -> GuidanceKind:
        return self.guide.kind

    @property
    def channels(self) -> int:
        return self.guide.channels

    @property
    def takes_kernel(self) -> bool:
        return self.net.takes_kernel

    @property
    def halo(self) -> int | None:
        if self.net.halo is None:
            return None
        # a guide that sees the current estimate looks further at each stage, and once more for the map returned
        return self.net.halo + self.guide.halo * (1 + self.net.stages if self.guide.stage else 1)

    @property
    def multiple(self) -> int:
        return lcm(self.net.multiple, self.guide.multiple)

    def context(self, observed: Tensor) -> Tensor | None:
        """`(B, K)`: the features for the guide, then those for the network; None where both are local."""
        return joint_context(observed, self.guide, self.net)

    def estimate(self, observed: Tensor, context: Tensor | None = None) -> Guidance:
        """The guide's map `(B, 1, H, W)`; of the stage kind, the guide itself."""
        if self.guide.stage:
            return self.guide
        settings = arguments(self.guide, Inputs(context=context))
        if self.halo is not None or torch.is_grad_enabled():
            estimated: Tensor = self.guide(observed, **settings)
            return estimated
        # An image that is restored whole may be large, and the features of a guide on all of it would exceed memory.
        return tiled(
            lambda part: self.guide(part, **settings),
            observed,
            halo=self.guide.halo,
            multiple=self.guide.multiple,
            tile=GUIDE_TILE,
        )

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        guidance = self.estimate(observed, inputs.context) if inputs.guidance is None else inputs.guidance
        image = self.net(observed, guidance, **arguments(self.net, inputs, self.guide.context_features))
        return Restored(image, guidance(observed, image) if is_function(guidance) else guidance)


class Plain(nn.Module, Restorer):
    """A network alone: the baseline every guided model is measured against. net: observed (and kernel) → restored."""

    forward = Restorer.__call__

    def __init__(self, net: Network, *, channels: int = 3) -> None:
        super().__init__()
        self.net = net
        self._channels = channels

    @property
    def channels(self) -> int:
        return self._channels

    @property
    def takes_kernel(self) -> bool:
        return self.net.takes_kernel

    @property
    def halo(self) -> int | None:
        return self.net.halo

    @property
    def multiple(self) -> int:
        return self.net.multiple

    def context(self, observed: Tensor) -> Tensor | None:
        """`(B, K)` of the whole image `(B, C, H, W)`, or None for a network that is local."""
        return joint_context(observed, self.net)

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        return Restored(self.net(observed, **arguments(self.net, inputs)))


def joint_context(observed: Tensor, *parts: Any) -> Tensor | None:
    """The contexts of those parts that have one, side by side `(B, K)`. observed: the whole image, `(B, C, H, W)`."""
    found = [part.context(observed) for part in parts if part.context_features]
    return torch.cat(found, 1) if found else None


def arguments(part: Network | Guide | UNetGuide, inputs: Inputs, start: int = 0) -> dict[str, Tensor]:
    """What a guide or network is called with: the kernel, if there is one, and its features of the joined context.

    start: the place of its first feature in `inputs.context (B, K)`.
    """
    named = {} if inputs.kernel is None else {"kernel": inputs.kernel}
    if inputs.context is not None and part.context_features:
        named["context"] = inputs.context[:, start : start + part.context_features]
    return named
