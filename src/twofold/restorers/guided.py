"""Reconstruction with hyper-guidance (Gao et al. 2022, eq. 1): a guide draws the map, the network restores by it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from twofold.contracts import GuidanceKind, Restored
from twofold.nets.guide import Guide, is_drawn


class Guided(nn.Module):
    """guide: observed → map. net: `(observed, guidance)` or `(observed, guidance, kernel)` → restored.

    A map that is given, or a function `(observed, current) -> map`, is used in place of the guide. With a guide of the
    stage kind the network asks for a new map at every stage, and the map returned is the one for the final picture.
    """

    def __init__(self, guide: Guide, net: nn.Module) -> None:
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
        return self.net.multiple  # type: ignore[return-value]

    def forward(
        self,
        observed: Tensor,
        *,
        guidance: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
        kernel: Tensor | None = None,
    ) -> Restored:
        if guidance is None:
            guidance = self.guide if self.guide.stage else self.guide(observed)
        image = self.net(observed, guidance) if kernel is None else self.net(observed, guidance, kernel)
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

    def forward(self, observed: Tensor, *, guidance: Tensor | None = None, kernel: Tensor | None = None) -> Restored:
        if guidance is not None:
            raise TypeError("this model takes no guidance")
        return Restored(self.net(observed) if kernel is None else self.net(observed, None, kernel))


def takes_kernel(net: nn.Module) -> bool:
    """Whether a network is told the blur kernel along with the picture."""
    return getattr(net, "takes_kernel", False)
