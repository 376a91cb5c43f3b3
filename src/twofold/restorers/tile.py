"""What is done to one tile of an image, as a function of tensors alone: `runtime` runs it in any precision."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from twofold.contracts import Guidance, GuidanceKind, Restorer
from twofold.nets.guide import is_function

Extra = Literal["kernel", "context", "guidance"]
"""What a tile may come with, in the order in which `Tile.forward` takes them."""

FULL_STRENGTH = 0.1
"""From this strength on the restorer's own image is returned; below, it is blended towards the observed one."""


class Tile(nn.Module):
    """observed `(B, C, h, w)`, strength `(1, 1, 1, 1)` and the extras → restored, and the map it used as last channel.

    extras: which of kernel, context and guidance are given, in this order. Strength is a tensor, so that one copy of
    the network serves all strengths. At strength 0 the result is exactly `observed`.
    """

    def __init__(self, restorer: Restorer, extras: tuple[Extra, ...] = ()) -> None:
        super().__init__()
        self.restorer = restorer
        self.extras = extras

    def forward(
        self,
        observed: Tensor,
        strength: Tensor,
        first: Tensor | None = None,
        second: Tensor | None = None,
        third: Tensor | None = None,
    ) -> Tensor:
        given: dict[str, Any] = dict(zip(self.extras, (first, second, third), strict=False))
        kind, guidance = self.restorer.kind, given.pop("guidance", None)
        if guidance is None:
            guidance = self.restorer.estimate(observed, given.get("context"))
        if kind is None or guidance is None:
            return blended(observed, self.restorer(observed, **given).image, strength)
        restored = self.restorer(observed, guidance=scaled(guidance, strength, kind), **given)
        image = blended(observed, restored.image, (strength / FULL_STRENGTH).clamp(max=1.0))
        assert restored.guidance is not None
        return torch.cat([image, restored.guidance], 1)


def blended(observed: Tensor, image: Tensor, share: Tensor) -> Tensor:
    """observed + share · (image − observed), `(B, C, H, W)`; exactly `observed` at 0 and exactly `image` at 1."""
    return torch.lerp(observed, image.to(observed.dtype), share.to(observed.dtype))


def scaled(guidance: Guidance, strength: Tensor, kind: GuidanceKind) -> Guidance:
    """The map `(B, 1, H, W)` times strength, a scalar, inside the range of its kind; for a function, of its result."""
    if is_function(guidance):
        return lambda observed, current: kind.scaled(guidance(observed, current), strength)
    # Back to the dtype of the map: times a tensor, unlike times a number, a bfloat16 map would become float32.
    return kind.scaled(guidance, strength).to(guidance.dtype)
