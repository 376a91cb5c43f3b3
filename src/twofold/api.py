"""The two verbs people touch: `load` a model, `restore` a picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from twofold import images, runtime, tiling, zoo
from twofold.contracts import GuidanceKind, ImageError, Restored, TwofoldError
from twofold.images import Picture, Source
from twofold.nets.guide import is_drawn

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
    fast: bool = True
    cache: Path | None = None
    _ways: dict[tuple[bool, float], _Way] = field(default_factory=dict, init=False, repr=False)

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
        way = self._way(guidance is not None, strength)

        def on_tile(part: Tensor) -> Tensor:
            part = part.to(self.device)
            return way.run(*(part[:, :3], part[:, 3:])[: 1 if guidance is None else 2]).to(stack.device)

        out = tiling.tiled(
            on_tile,
            stack,
            halo=self.restorer.halo,  # type: ignore[arg-type]
            multiple=self.restorer.multiple,  # type: ignore[arg-type]
            tile=tiling.Budget(per_pixel=way.bytes_per_pixel) if tile == "auto" else tile,
            progress=progress,
        )
        pixels = out[:, :3].mean(1, keepdim=True) if grey else out[:, :3]
        return replace(picture, pixels=pixels), None if self.kind is None else out[:, 3:]

    def _way(self, given: bool, strength: float) -> _Way:
        """How a tile is computed with an estimated or a given map: found by measuring, on first use."""
        if (given, strength) not in self._ways:
            network = _SideBySide(self.restorer, self.kind, strength).eval()
            example = tuple(torch.rand(1, c, 128, 128, device=self.device) for c in ((3, 1) if given else (3,)))
            recipe = runtime.choose(network, example, cache=self.cache) if self.fast else runtime.plain()
            run = runtime.run(network, recipe, inputs=len(example))
            self._ways[given, strength] = _Way(run, runtime.peak_bytes(run, example) // 128**2 + 64)
        return self._ways[given, strength]

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


class _Way(NamedTuple):
    run: Callable[..., Tensor]
    bytes_per_pixel: int


class _SideBySide(nn.Module):
    """What is done to one tile, as a network: observed `(B, 3, H, W)`, and a map if one is given → picture and map."""

    def __init__(self, restorer: nn.Module, kind: GuidanceKind | None, strength: float) -> None:
        super().__init__()
        self.restorer, self.kind, self.strength = restorer, kind, strength

    def forward(self, observed: Tensor, given: Tensor | None = None) -> Tensor:
        if self.kind is None:
            image: Tensor = self.restorer(observed).image
            return image
        guidance: Any = self.restorer.guide if given is None else given
        if given is None and not guidance.stage:
            guidance = guidance(observed)
        if self.strength != 1:
            guidance = self._scaled(guidance, self.kind)
        restored = self.restorer(observed, guidance=guidance)
        return torch.cat([restored.image, restored.guidance], 1)

    def _scaled(self, guidance: Any, kind: GuidanceKind) -> Any:
        if is_drawn(guidance):
            return lambda observed, current: kind.scaled(guidance(observed, current), self.strength)
        return kind.scaled(guidance, self.strength)


def check_strength(strength: float, kind: GuidanceKind | None) -> None:
    """Raises: TwofoldError for a strength outside 0 to 1.5, or other than 1 for a model without a guidance map."""
    if not 0 <= strength <= 1.5:
        raise TwofoldError(f"strength goes from 0 to 1.5, got {strength:g}")
    if kind is None and strength != 1:
        raise TwofoldError("this model has no guidance map, so its strength cannot be changed")


def load(
    name_or_path: str | Path, *, device: torch.device | str = "auto", fast: bool = True, cache: Path | None = None
) -> Model:
    """The model of that name (`twofold models` lists them), or of a weights file.

    device: "auto" takes a GPU where there is one. fast: measures once which precision and memory layout are fastest
    here; the picture differs from that of plain float32 by less than half a grey level (root mean square). cache: a
    folder where that is remembered.

    Raises: WeightsError for an unknown name (the nearest is offered), a damaged or foreign file; TwofoldError for a
    device that is not there.
    """
    place = _device(device)
    return Model(str(name_or_path), zoo.load(name_or_path, device=place), place, fast, cache)


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
