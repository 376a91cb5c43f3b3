"""The two verbs people touch: `load` a model, `restore` a picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from twofold import images, tiling, zoo
from twofold.contracts import GuidanceKind, ImageError, Restored, TwofoldError
from twofold.images import Picture, Source

Tile: TypeAlias = int | Literal["auto"] | None
Guidance: TypeAlias = "Source | float"
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded restorer that takes any kind of picture.

    `model(image)` returns `Restored`: the picture as the kind of thing that was given, and the guidance map
    `(1, 1, H, W)`.
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
        guidance: Guidance | None = None,
        strength: float = 1.0,
        tile: Tile = "auto",
        progress: Progress | None = None,
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
        guidance: Guidance | None = None,
        strength: float = 1.0,
        tile: Tile = "auto",
        progress: Progress | None = None,
    ) -> tuple[Picture, Tensor | None]:
        """The same on a `Picture`, which keeps alpha, EXIF and profile: (restored, guidance map)."""
        check_strength(strength, self.kind)
        if tile is not None and tile != "auto" and (not isinstance(tile, int) or tile < 1):
            raise TwofoldError(f"tile: expected a side in pixels, 'auto' or None, got {tile!r}")
        observed = picture.pixels.float()
        grey = observed.shape[1] == 1
        stack = observed.expand(-1, 3, -1, -1)  # the networks are for colour
        if guidance is not None:
            stack = torch.cat([stack, self._given(guidance, observed)], 1)
        out = tiling.tiled(
            lambda part: self._tile(part.to(self.device), strength).to(part.device),
            stack,
            halo=self.restorer.halo,  # type: ignore[arg-type]
            multiple=self.restorer.multiple,  # type: ignore[arg-type]
            tile=tiling.Budget() if tile == "auto" else tile,
            progress=progress,
        )
        pixels = out[:, :3].mean(1, keepdim=True) if grey else out[:, :3]
        return replace(picture, pixels=pixels), None if self.kind is None else out[:, 3:]

    @torch.inference_mode()
    def _tile(self, stack: Tensor, strength: float) -> Tensor:
        """What is done to one tile: picture, and map if one is given → picture and map, side by side."""
        observed, given = stack[:, :3], stack[:, 3:]
        if self.kind is None:
            image: Tensor = self.restorer(observed).image
            return image
        restored = self.restorer(observed, guidance=self._steered(observed, given, self.kind, strength))
        return torch.cat([restored.image, restored.guidance], 1)

    def _steered(self, observed: Tensor, given: Tensor, kind: GuidanceKind, strength: float) -> Any:
        """The map to use, a function that draws it at every stage, or None for the restorer's own."""
        guide: Any = self.restorer.guide
        if given.shape[1]:
            return kind.scaled(given, strength)
        if strength == 1:
            return None
        if guide.stage:
            return lambda observed, current: kind.scaled(guide(observed, current), strength)
        return kind.scaled(guide(observed), strength)

    def _given(self, guidance: Guidance, observed: Tensor) -> Tensor:
        """The map `(1, 1, H, W)` for `observed`, checked against what its kind allows."""
        kind = self.kind
        if kind is None:
            raise TwofoldError(f"{self.name} takes no guidance map")
        if isinstance(guidance, int | float):
            values = torch.full_like(observed[:, :1], float(guidance))
        else:
            values = images.from_any(guidance).pixels.to(observed).mean(1, keepdim=True)
            measured = isinstance(guidance, Tensor) or getattr(getattr(guidance, "dtype", None), "kind", "") == "f"
            values = values if measured else values * kind.white
        if values.shape[-2:] != observed.shape[-2:]:
            (height, width), (high, wide) = values.shape[-2:], observed.shape[-2:]
            raise ImageError(f"the guidance map is {width} x {height} pixels, the picture {wide} x {high}; resize one")
        least, most = values.min().item(), values.max().item()
        if not (kind.low <= least and most <= (sys.float_info.max if kind.high is None else kind.high)):  # also NaN
            limits = f"at least {kind.low:g}" if kind.high is None else f"from {kind.low:g} to {kind.high:g}"
            raise ImageError(
                f"the guidance map has values from {least:.3g} to {most:.3g}; {kind.name} is {limits}: {kind.meaning}"
            )
        return values


def check_strength(strength: float, kind: GuidanceKind | None) -> None:
    """Raises: TwofoldError for a strength outside 0 to 1.5, or other than 1 for a model without a guidance map."""
    if not 0 <= strength <= 1.5:
        raise TwofoldError(f"strength goes from 0 to 1.5, got {strength:g}")
    if kind is None and strength != 1:
        raise TwofoldError("this model has no guidance map, so its strength cannot be changed")


def load(name_or_path: str | Path, *, device: torch.device | str = "auto") -> Model:
    """The model of that name (`twofold models` lists them), or of a weights file.

    device: "auto" takes a GPU where there is one.

    Raises: WeightsError for an unknown name (the nearest is offered), a damaged or foreign file; TwofoldError for a
    device that is not there.
    """
    place = _device(device)
    return Model(str(name_or_path), zoo.load(name_or_path, device=place), place)


def _device(name: torch.device | str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise TwofoldError(f"device {str(name)!r} cannot be used here ({reason}); try auto or cpu") from error


def restore(
    image: Source,
    model: str | Path | Model,
    *,
    guidance: Guidance | None = None,
    strength: float = 1.0,
    tile: Tile = "auto",
    device: torch.device | str = "auto",
    progress: Progress | None = None,
) -> Restored:
    """Restores a picture: a path, a PIL image, an array `(H, W[, C])`, or a tensor `(C, H, W)` or `(1, C, H, W)` in
    [0, 1].

    guidance: used instead of the estimated map. A number holds for every pixel; a tensor or floating-point array has
    the picture's size and the unit of `load(name).kind`; in a file, PIL image or integer array white stands for
    `kind.white`. strength: 0 to 1.5, scales the map; `kind.strength` says what that means. tile: side in pixels, "auto"
    by memory, None for the whole picture at once; the result is the same. progress: told (tiles done, tiles in all).

    Returns: `Restored(image, guidance)`, the image of the kind that was given (tensors are not clamped), the map
    `(1, 1, H, W)`.

    Raises: ImageError, WeightsError, TwofoldError; all are TwofoldErrors.
    """
    loaded = model if isinstance(model, Model) else load(model, device=device)
    return loaded(image, guidance=guidance, strength=strength, tile=tile, progress=progress)
