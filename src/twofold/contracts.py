"""What the parts of the library promise one another: four shapes of data, two kinds of callables, one family of errors.

Every picture inside the library is a floating-point tensor `(B, C, H, W)`, RGB or grey, 0 for black and 1 for white.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor


class TwofoldError(Exception):
    """Anything a user can fix. The message is one line: what was wrong, what was seen, what to do."""


class ImageError(TwofoldError, ValueError):
    """A picture, or a tensor that should be one, cannot be used."""


class DataError(TwofoldError, ValueError):
    """A folder of pictures cannot be used for training or evaluation."""


class ConfigError(TwofoldError, ValueError):
    """A recipe holds an unknown key or a value of the wrong type."""


class WeightsError(TwofoldError, ValueError):
    """A model file is missing, damaged, of another model, or of a kind that is never loaded."""


@dataclass(frozen=True)
class GuidanceKind:
    """What a guidance map says about each pixel, and what scaling it means.

    low, high: range of a legal value; `high` is None where there is no upper bound.
    white: the value that a white pixel stands for when a map is kept as a picture.
    strength: one sentence on what a strength other than 1 does.
    """

    name: str
    low: float
    high: float | None
    white: float
    meaning: str
    strength: str

    def scaled(self, guidance: Tensor, strength: float | Tensor) -> Tensor:
        """`guidance (B, G, H, W)` times `strength`, kept inside the range of the kind.

        >>> RAIN_REGION.scaled(torch.tensor([[[[0.4, 0.8]]]]), 1.5)
        tensor([[[[0.6000, 1.0000]]]])
        """
        return (guidance * strength).clamp(self.low, self.high)


NOISE_LEVEL = GuidanceKind(
    "noise_level",
    0.0,
    1.0,
    0.25,
    "standard deviation of the noise on the [0, 1] scale (0.01 is 2.55 grey levels)",
    "below 1 keeps more grain and detail, above 1 smooths more",
)
RAIN_REGION = GuidanceKind(
    "rain_region",
    0.0,
    1.0,
    1.0,
    "how likely a pixel is covered by a rain streak",
    "0 leaves the picture as it is, 0.5 removes about half of the rain, 1.5 also removes what is only suspected",
)
DEPTH = GuidanceKind(
    "depth",
    0.0,
    None,
    4.0,
    "distance from the camera, in units of the training data's typical distance",
    "below 1 keeps some haze, above 1 removes more of it, most in the distance",
)
EXPOSURE = GuidanceKind(
    "exposure",
    0.0,
    None,
    4.0,
    "how many stops a pixel is brightened by: 1 doubles its value, 0 leaves it",
    "the brightness: 0.5 brightens by half the stops, above 1 by more",
)


class Sample(NamedTuple):
    """One batch of training material.

    clean: `(B, C, H, W)` in [0, 1]. observed: the same, but noise that is not quantised may leave [0, 1]. guidance:
    `(B, G, H, W)`, the hidden cause, or None where it is unknown. kernel: of the blur, `(B, 1, h, w)`, or None without
    blur.
    """

    clean: Tensor
    observed: Tensor
    guidance: Tensor | None = None
    kernel: Tensor | None = None


Guidance: TypeAlias = Tensor | Callable[[Tensor, Tensor], Tensor]
"""A map `(B, G, H, W)`, or a function `(observed, current estimate) -> map` that is called at every stage."""


class Restored(NamedTuple):
    """What a restorer returns: image `(B, C, H, W)`, not clamped; the guidance it used; a solver's report, if any."""

    image: Tensor
    guidance: Tensor | None = None
    report: Any = None


Progress = Callable[[int, int], None]
"""What long work calls after each part: (parts done, parts in all)."""


def part_of(progress: Progress | None, start: float, end: float) -> Progress | None:
    """The progress of the part of some work that lies between its shares `start` and `end`, in thousandths of it.

    >>> part_of(print, 0.5, 1)(1, 2)
    750 1000
    """
    if progress is None or (start, end) == (0, 1):
        return progress
    whole = progress
    return lambda done, total: whole(round(1000 * (start + (end - start) * done / max(total, 1))), 1000)


class Inputs(NamedTuple):
    """What a restorer is called with beside `observed`: guidance, kernel `(B or 1, 1, h, w)`, context `(B, K)`."""

    guidance: Guidance | None = None
    kernel: Tensor | None = None
    context: Tensor | None = None


class Restorer(ABC):
    """observed `(B, C, H, W)` in [0, 1] → `Restored`. What every caller may ask of a restorer is declared here.

    A restorer overrides what differs from these answers, and gives `_restored`. One with parameters also inherits
    `nn.Module`, before this class, and has `forward = Restorer.__call__`.
    """

    @property
    def kind(self) -> GuidanceKind | None:
        """What the guidance map means; None for a restorer without one, which refuses a map."""
        return None

    @property
    def channels(self) -> int:
        """Of an image it restores at once: 3, or 1 (then each colour channel is restored by itself)."""
        return 3

    @property
    def takes_kernel(self) -> bool:
        """Whether it needs the blur kernel."""
        return False

    @property
    def halo(self) -> int | None:
        """Radius in pixels of what one output pixel depends on, given guidance, kernel and context; None: the whole."""
        return None

    @property
    def multiple(self) -> int:
        """Sides of `observed` must be multiples of it."""
        return 1

    def context(self, observed: Tensor) -> Tensor | None:
        """What is computed once from the whole image `(B, C, H, W)` and handed to every tile, `(B, K)`; or None."""
        return None

    def estimate(self, observed: Tensor, context: Tensor | None = None) -> Guidance | None:
        """The guidance of `observed (B, C, H, W)`: a map `(B, 1, H, W)`, or the function that is called at every stage.

        None for a restorer without guidance.
        """
        return None

    def __call__(
        self,
        observed: Tensor,
        *,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Restored:
        """observed: `(B, C, H, W)` in [0, 1]. guidance: used instead of the estimated one. kernel: of the blur, `(B or
        1, 1, h, w)`, sum 1. context: `(B, K)`, computed from `observed` where it is None.

        Raises: ImageError for a map where `kind` is None, and for what the restorer cannot use.
        """
        if guidance is not None and self.kind is None:
            raise ImageError(f"guidance: {type(self).__name__} takes no guidance map, got one; leave it out")
        return self._restored(observed, Inputs(guidance, kernel, context))

    @abstractmethod
    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        """What `__call__` returns."""


class Degradation(Protocol):
    """clean `(B, C, H, W)` → `Sample`, whose guidance is the true cause of the degradation."""

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample: ...


def check_images(images: Tensor, *, channels: int | None = None, name: str = "observed") -> Tensor:
    """Returns `images` if it is a finite floating-point `(B, C, H, W)` batch with at least one pixel, else raises.

    channels: how many there must be; None takes 1 (grey) and 3 (RGB).

    Raises: ImageError, saying what was expected and what came.

    >>> check_images(torch.zeros(4, 4))
    Traceback (most recent call last):
    twofold.contracts.ImageError: observed: expected a floating-point (B, C, H, W) batch, got (4, 4) torch.float32; \
read files with twofold.images.read
    """
    if not isinstance(images, Tensor):
        raise ImageError(f"{name}: expected a tensor, got {type(images).__name__}; read files with twofold.images.read")
    shape = tuple(images.shape)
    if images.ndim != 4 or not images.is_floating_point():
        raise ImageError(
            f"{name}: expected a floating-point (B, C, H, W) batch, got {shape} {images.dtype}; "
            "read files with twofold.images.read"
        )
    wanted = (1, 3) if channels is None else (channels,)
    if shape[1] not in wanted:
        raise ImageError(f"{name}: expected {' or '.join(map(str, wanted))} channels, got {shape[1]} in {shape}")
    if images.numel() == 0:
        raise ImageError(f"{name}: has no pixels, its shape is {shape}")
    if not torch.isfinite(images).all():
        raise ImageError(f"{name}: holds NaN or infinite values; fix or mask them before restoring")
    return images
