"""Reconstruction with hyper-guidance (Gao et al. 2022, eq. 1): a guide draws the map, the network restores by it."""

from __future__ import annotations

from collections.abc import Callable
from math import lcm

import torch
from torch import Tensor, nn

from twofold.contracts import GuidanceKind, Restored
from twofold.nets.guide import Guide, UNetGuide, is_drawn


class Guided(nn.Module):
    """guide: observed → map. net: `(observed, guidance)` or `(observed, guidance, kernel)` → restored.

    A map that is given, or a function `(observed, current) -> map`, is used in place of the guide. With a guide of the
    stage kind the network asks for a new map at every stage, and the map returned is the one for the final picture.
    """

    def __init__(self, guide: Guide | UNetGuide, net: nn.Module) -> None:
        super().__init__()
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
        return takes_kernel(self.net)

    @property
    def halo(self) -> int | None:
        if self.net.halo is None:
            return None
        # a guide that sees the current estimate looks further at each stage, and once more for the map returned
        times = 1 + self.net.recurrences if self.guide.stage else 1  # type: ignore[operator]
        return self.net.halo + self.guide.halo * times  # type: ignore[operator, return-value]

    @property
    def multiple(self) -> int:
        return lcm(self.net.multiple, self.guide.multiple)  # type: ignore[arg-type]

    def context(self, observed: Tensor) -> Tensor | None:
        """`(B, K)`, the guide's features and then the network's; None where both are local."""
        return joined_context(observed, self.guide, self.net)

    def draw(self, observed: Tensor, context: Tensor | None = None) -> Tensor:
        """The guide's map `(B, 1, H, W)`; context as `context(observed)` returns it."""
        own = features_of(self.guide)
        drawn: Tensor = self.guide(observed) if not own else self.guide(observed, part(context, 0, own))
        return drawn

    def forward(
        self,
        observed: Tensor,
        *,
        guidance: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        if guidance is None:
            guidance = self.guide if self.guide.stage else self.draw(observed, context)
        first, own = features_of(self.guide), features_of(self.net)
        more = [] if kernel is None else [kernel]
        steering = {"context": part(context, first, first + own)} if own else {}
        image = self.net(observed, guidance, *more, **steering)
        return Restored(image, guidance(observed, image) if is_drawn(guidance) else guidance)


class Plain(nn.Module):
    """A network alone: the baseline every guided model is measured against. net: observed (and kernel) → restored."""

    kind = None

    def __init__(self, net: nn.Module, *, channels: int = 3) -> None:
        super().__init__()
        self.net = net
        self.channels = channels

    @property
    def takes_kernel(self) -> bool:
        return takes_kernel(self.net)

    @property
    def halo(self) -> int | None:
        return self.net.halo  # type: ignore[return-value]

    @property
    def multiple(self) -> int:
        return self.net.multiple  # type: ignore[return-value]

    def context(self, observed: Tensor) -> Tensor | None:
        """`(B, K)`, or None for a network that is local."""
        return joined_context(observed, self.net)

    def forward(
        self,
        observed: Tensor,
        *,
        guidance: Tensor | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        if guidance is not None:
            raise TypeError("this model takes no guidance")
        if kernel is not None:
            return Restored(self.net(observed, None, kernel))
        return Restored(self.net(observed) if context is None else self.net(observed, context=context))


def features_of(part: nn.Module) -> int:
    """Length of the context vector that a guide or a network takes; 0 for one that is local."""
    return 0 if getattr(part, "context", None) is None else int(part.context.features)


def joined_context(observed: Tensor, *parts: nn.Module) -> Tensor | None:
    found = [part.context(observed) for part in parts if features_of(part)]
    return torch.cat(found, 1) if found else None


def part(context: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if context is None else context[:, start:stop]


def takes_kernel(net: nn.Module) -> bool:
    """Whether a network takes the blur kernel with the image."""
    return getattr(net, "takes_kernel", False)
