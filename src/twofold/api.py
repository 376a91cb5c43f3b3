"""The two verbs people touch: `load` a model, `restore` a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twofold import images, tiling, zoo
from twofold.contracts import GuidanceKind, ImageError, Restored, TwofoldError
from twofold.images import Picture, Source

Tile = int | Literal["auto"] | None


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded restorer that takes any kind of picture.

    `model(image)` returns `Restored`: the picture as the kind of thing that was given, and the guidance map `(1, 1,
    H, W)`.
    """

    name: str
    restorer: nn.Module
    device: torch.device

    @property
    def kind(self) -> GuidanceKind | None:
        """What the guidance map means, or None for a model without one."""
        kind: GuidanceKind | None = self.restorer.kind  # type: ignore[assignment]
        return kind

    def __call__(
        self,
        image: Source,
        *,
        guidance: Source | None = None,
        strength: float = 1.0,
        tile: Tile = "auto",
        progress: Callable[[float], None] | None = None,
    ) -> Restored:
        """See `restore`."""
        picture = images.from_any(image)
        restored, drawn = self.restore(picture, guidance=guidance, strength=strength, tile=tile, progress=progress)
        kept: Any = images.to_kind_of(restored, image)
        return Restored(kept, drawn)

    def restore(
        self,
        picture: Picture,
        *,
        guidance: Source | None = None,
        strength: float = 1.0,
        tile: Tile = "auto",
        progress: Callable[[float], None] | None = None,
    ) -> tuple[Picture, Tensor | None]:
        """The same on a `Picture`, which keeps alpha, EXIF and profile: (restored, guidance map)."""
        if not 0 <= strength <= 1.5:
            raise TwofoldError(f"strength goes from 0 to 1.5, got {strength:g}")
        observed = picture.pixels.float()
        given = None if guidance is None else self._given(guidance, observed)
        if given is None and strength != 1 and self.kind is None:
            raise TwofoldError(f"{self.name} has no guidance map, so its strength cannot be changed")
        grey = observed.shape[1] == 1
        seen = observed.expand(-1, 3, -1, -1) if grey else observed
        stack = seen if given is None else torch.cat([seen, given], 1)
        local = _Local(self.restorer, self.kind, strength)
        out = tiling.tiled(
            lambda part: local(part.to(self.device)).to(stack.device),
            stack,
            tile=tile,
            halo=self.restorer.halo,
            multiple=self.restorer.multiple,
            progress=progress,
        )
        pixels, drawn = (out, None) if self.kind is None else out.split([out.shape[1] - 1, 1], 1)
        return replace(picture, pixels=pixels.mean(1, keepdim=True) if grey else pixels), drawn

    def _given(self, guidance: Source, observed: Tensor) -> Tensor:
        """A map that is a picture file holds `value / kind.white`; a tensor or float array holds the values
        themselves.
        """
        if self.kind is None:
            raise TwofoldError(f"{self.name} takes no guidance map")
        values = images.from_any(guidance).pixels.float().mean(1, keepdim=True)
        if not isinstance(guidance, Tensor):
            values = values * self.kind.white
        if values.shape[-2:] != observed.shape[-2:]:
            seen, wanted = "×".join(map(str, values.shape[-2:])), "×".join(map(str, observed.shape[-2:]))
            raise ImageError(
                f"the guidance map is {seen} pixels (height × width), the picture {wanted}; resize the map"
            )
        low, high = self.kind.low, self.kind.high
        if values.min() < low or (high is not None and values.max() > high):
            raise ImageError(
                f"the guidance map goes from {values.min():.3g} to {values.max():.3g}; {self.kind.name} is "
                f"{self.kind.meaning}, from {low:g}" + ("" if high is None else f" to {high:g}")
            )
        return values


@dataclass(frozen=True)
class _Local:
    """What is done to one tile: `(B, C, h, w)`, or with a given map `(B, C + 1, h, w)` → picture and map side by
    side.
    """

    restorer: nn.Module
    kind: GuidanceKind | None
    strength: float

    @torch.inference_mode()
    def __call__(self, stack: Tensor) -> Tensor:
        observed = stack[:, :3]
        if self.kind is None:
            image: Tensor = self.restorer(observed).image
            return image
        guidance: Tensor | None = stack[:, 3:] if stack.shape[1] > 3 else None
        if self.strength != 1:
            if guidance is None:
                guidance = (
                    self.restorer(observed).guidance if self.restorer.guide.stage else self.restorer.guide(observed)
                )  # type: ignore
            guidance = self.kind.scaled(guidance, self.strength)
        restored = self.restorer(observed, guidance=guidance)
        return torch.cat([restored.image, restored.guidance], 1)


def load(name_or_path: str | Path, *, device: torch.device | str | None = None) -> Model:
    """The model of that name (`twofold models` lists them), or of a weights file.

    device: None takes a GPU where there is one.

    Raises: WeightsError for an unknown name (the nearest is offered), a damaged or foreign file.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Model(str(name_or_path), zoo.load(name_or_path, device=place), place)


def restore(
    image: Source,
    model: str | Path | Model,
    *,
    guidance: Source | None = None,
    strength: float = 1.0,
    tile: Tile = "auto",
    device: torch.device | str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Restored:
    """Restores a picture: a path, a PIL image, an array `(H, W[, C])`, or a tensor `(C, H, W)` or `(1, C, H, W)` in
    [0, 1].

    guidance: a map used instead of the estimated one; of the picture's size. strength: 0 to 1.5, scales the map; what
    that means is said by the kind of the map (`twofold.load(name).kind.strength`). tile: side in pixels, "auto" by
    memory, None for the whole picture at once; the result is the same. progress: told the share done, 0 to 1.

    Returns: `Restored(image, guidance, report)`, the image of the kind that was given (tensors are not clamped).

    Raises: ImageError, WeightsError.
    """
    loaded = model if isinstance(model, Model) else load(model, device=device)
    return loaded(image, guidance=guidance, strength=strength, tile=tile, progress=progress)
