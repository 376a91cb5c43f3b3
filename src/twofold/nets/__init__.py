"""Networks, and `Network`: what each says of itself, so that restorers, tiles and training can rely on it."""

from __future__ import annotations

from torch import nn


class Network(nn.Module):
    """`forward(observed, guidance=None, ...)`: observed `(B, C, H, W)` → restored `(B, C, H, W)`, not clamped.

    halo: radius in pixels of what one output pixel depends on; None for the whole image. multiple: sides must be
    multiples of it. takes_kernel: whether `forward` takes the blur kernel as `kernel=`. stages: how often a guide that
    sees the current estimate is called for a map; 0 for a network that takes one map at the start. context_features:
    length of the global context that `forward` takes as `context=`; a network that has one computes it by
    `context(observed)`.
    """

    halo: int | None = 0
    multiple: int = 1
    takes_kernel: bool = False
    stages: int = 0
    context_features: int = 0
