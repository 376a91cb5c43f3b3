"""The two verbs people touch: `load` a model, `restore` a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twofold import images, runtime, tiling, zoo
from twofold.contracts import NOISE_LEVEL, GuidanceKind, ImageError, Progress, Restored, TwofoldError
from twofold.degrade.blur import check_kernel, check_noise_level, read_kernel
from twofold.images import ImageLike, Picture
from twofold.nets.guide import is_drawn
from twofold.restorers.blind import KernelEstimate, KernelSearch

Tile: TypeAlias = int | Literal["auto"] | None
Guidance: TypeAlias = "ImageLike | float"
Kernel: TypeAlias = "str | os.PathLike[str] | Tensor | NDArray[Any] | KernelSearch"


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded restorer that takes any kind of picture.

    `model(image)` returns `Restored`: the picture as the kind of thing that was given, the guidance map `(1, 1, H, W)`,
    and as the report a kernel that had to be estimated.
    """

    name: str
    restorer: nn.Module
    device: torch.device
    fast: bool = True
    cache: Path | None = None
    _ways: dict[tuple[bool, bool], _Way] = field(default_factory=dict, init=False, repr=False)

    @property
    def kind(self) -> GuidanceKind | None:
        """What the guidance map means, or None for a model without one."""
        kind: GuidanceKind | None = self.restorer.kind  # type: ignore[assignment]
        return kind

    @property
    def channels(self) -> int:
        """Of the pictures that the network is for: 3, or 1, which restores every colour by itself."""
        channels: int = self.restorer.channels  # type: ignore[assignment]
        return channels

    @property
    def takes_kernel(self) -> bool:
        """Whether the network is told the blur kernel."""
        takes: bool = self.restorer.takes_kernel  # type: ignore[assignment]
        return takes

    def __call__(
        self,
        image: ImageLike,
        *,
        kernel: Kernel | None = None,
        guidance: Guidance | None = None,
        strength: float = 1.0,
        tile: Tile = "auto",
        progress: Progress | None = None,
    ) -> Restored:
        """See `restore`."""
        picture = images.from_any(image)
        told, report = kernel_for(picture, kernel)
        restored, drawn = self.restore(
            picture, kernel=told, guidance=guidance, strength=strength, tile=tile, progress=progress
        )
        kept: Any = images.to_kind_of(restored, image)
        return Restored(kept, drawn, report)

    def restore(
        self,
        picture: Picture,
        *,
        kernel: Tensor | None = None,
        guidance: Guidance | None = None,
        strength: float = 1.0,
        tile: Tile = "auto",
        progress: Progress | None = None,
    ) -> tuple[Picture, Tensor | None]:
        """The same on a `Picture`, which keeps alpha, EXIF and profile: (restored, guidance map).

        kernel: `(1, 1, h, w)`, see `kernel_for`.
        """
        check_strength(strength, self.kind)
        if (kernel is None) == self.takes_kernel:
            raise TwofoldError(
                f"{self.name} needs the kernel of the blur: a picture of it, or 'estimate'"
                if self.takes_kernel
                else f"{self.name} removes no blur, so it takes no kernel"
            )
        if tile is not None and tile != "auto":
            if not isinstance(tile, Integral) or isinstance(tile, bool) or tile < 1:
                raise TwofoldError(f"tile: expected a side in pixels, 'auto' or None, got {tile!r}")
            tile = int(tile)  # also of numpy's integers
        observed = picture.pixels.float()
        grey = observed.shape[1] == 1
        stack = observed.expand(-1, self.channels, -1, -1) if grey else observed
        colours = stack.shape[1]
        if guidance is not None:
            stack = torch.cat([stack, self._given(guidance, observed)], 1)
        way = self._way(kernel is not None, guidance is not None)
        told = [torch.full((1, 1, 1, 1), strength, dtype=torch.float32, device=self.device)]
        told += [] if kernel is None else [kernel.to(self.device)]

        def on_tile(part: Tensor) -> Tensor:
            part = part.to(self.device)
            more = told if guidance is None else [*told, part[:, colours:]]
            done = [way.run(each, *more) for each in torch.split(part[:, :colours], self.channels, 1)]
            restored, maps = ([x[:, at] for x in done] for at in (slice(self.channels), slice(self.channels, None)))
            return torch.cat([*restored, torch.stack(maps).mean(0)], 1).to(stack.device)

        out = tiling.tiled(
            on_tile,
            stack,
            halo=self.restorer.halo,  # type: ignore[arg-type]
            multiple=self.restorer.multiple,  # type: ignore[arg-type]
            tile=tiling.Budget(per_pixel=way.bytes_per_pixel) if tile == "auto" else tile,
            progress=progress,
        )
        pixels = out[:, :colours].mean(1, keepdim=True) if grey else out[:, :colours]
        return replace(picture, pixels=pixels), None if self.kind is None else out[:, colours:]

    def _way(self, kernel: bool, given: bool) -> _Way:
        """How a tile is computed, told a kernel or a map or not: found by measuring, on first use."""
        if (kernel, given) not in self._ways:
            network = (_Deblurring if kernel else _SideBySide)(self.restorer, self.kind).eval()
            example = [torch.rand(1, self.channels, 128, 128, device=self.device)]
            example += [torch.ones(1, 1, 1, 1, device=self.device)]
            example += [torch.full((1, 1, 25, 25), 1 / 25**2, device=self.device)] * kernel
            example += [torch.rand(1, 1, 128, 128, device=self.device)] * given
            inputs = tuple(example)
            plan = runtime.plain()
            if self.fast:
                plan = runtime.choose(network, inputs, cache=self.cache, compared=self.channels)
            run = runtime.runner(network, plan, inputs=len(inputs))
            self._ways[kernel, given] = _Way(run, runtime.peak_bytes(run, inputs) // 128**2 + 64)
        return self._ways[kernel, given]

    def _given(self, guidance: Guidance, observed: Tensor) -> Tensor:
        """The map `(1, 1, H, W)` for `observed`, checked against what its kind allows."""
        kind = self.kind
        if kind is None:
            raise TwofoldError(f"{self.name} takes no guidance map")
        if isinstance(guidance, bool):
            raise ImageError("a guidance map is a number, a picture, an array or a tensor; got bool")
        if isinstance(guidance, float | Real):
            if kind is NOISE_LEVEL:
                check_noise_level(float(guidance))
            values = torch.full_like(observed[:, :1], float(guidance))
        else:
            measured = isinstance(guidance, Tensor) or getattr(getattr(guidance, "dtype", None), "kind", "") == "f"
            values = images.from_any(guidance, any_range=measured).pixels.to(observed).mean(1, keepdim=True)
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
    """What is done to one tile, as a network: observed `(B, 3, H, W)`, and a map if one is given → picture and map.

    strength: `(1, 1, 1, 1)`, an input like the others, so that one measurement and one copy of the network serve all.
    """

    def __init__(self, restorer: nn.Module, kind: GuidanceKind | None) -> None:
        super().__init__()
        self.restorer, self.kind = restorer, kind

    def forward(self, observed: Tensor, strength: Tensor, given: Tensor | None = None) -> Tensor:
        return self.both(observed, strength, None, given)

    def both(self, observed: Tensor, strength: Tensor, kernel: Tensor | None, given: Tensor | None) -> Tensor:
        if self.kind is None:
            image: Tensor = self.restorer(observed, kernel=kernel).image
            return image
        guidance: Any = self.restorer.guide if given is None else given
        if given is None and not guidance.stage:
            guidance = self.drawn(observed)
        restored = self.restorer(observed, guidance=_scaled(guidance, strength, self.kind), kernel=kernel)
        return torch.cat([restored.image, restored.guidance], 1)

    def drawn(self, observed: Tensor) -> Tensor:
        guide: Any = self.restorer.guide
        drawn: Tensor = guide(observed)
        return drawn


class _Deblurring(_SideBySide):
    """The same, told the kernel."""

    def forward(  # type: ignore[override]
        self, observed: Tensor, strength: Tensor, kernel: Tensor, given: Tensor | None = None
    ) -> Tensor:
        return self.both(observed, strength, kernel, given)

    def drawn(self, observed: Tensor) -> Tensor:
        """In tiles, exactly: this network sees the picture whole, and features of all of it would fill the memory."""
        guide: Any = self.restorer.guide
        return tiling.tiled(guide, observed, halo=guide.halo, tile=1024)


def _scaled(guidance: Any, strength: Tensor, kind: GuidanceKind) -> Any:
    if is_drawn(guidance):
        return lambda observed, current: _scaled(guidance(observed, current), strength, kind)
    # Back to the dtype of the map: times a tensor, unlike times a number, a bfloat16 map would become float32.
    return kind.scaled(guidance, strength).to(guidance.dtype)


def kernel_for(picture: Picture, kernel: Kernel | None) -> tuple[Tensor | None, KernelEstimate | None]:
    """(checked kernel `(1, 1, h, w)`, what its estimation says): of a file, a tensor, an array, "estimate" or a search.

    Raises: ImageError for what is no kernel, or one that is larger than the picture.
    """
    if kernel is None:
        return None, None
    if isinstance(kernel, str) and kernel == "estimate":
        kernel = KernelSearch()
    if isinstance(kernel, KernelSearch):
        estimate = kernel(picture.pixels.float())
        return estimate.kernel, estimate
    size = (picture.pixels.shape[-2], picture.pixels.shape[-1])
    if isinstance(kernel, np.ndarray) and kernel.dtype.kind in "buif":
        kernel = torch.from_numpy(kernel.astype(np.float32))
    if not isinstance(kernel, (str, os.PathLike, Tensor)):
        got = f"an array of {kernel.dtype}" if isinstance(kernel, np.ndarray) else type(kernel).__name__
        raise ImageError(f"kernel: expected a file, a tensor or array (h, w) of numbers, or 'estimate', got {got}")
    checked = check_kernel(kernel if isinstance(kernel, Tensor) else read_kernel(Path(kernel)), size)
    if len(checked) != 1:
        raise ImageError(f"kernel: one picture has one kernel, got {len(checked)}")
    return checked.float(), None


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
    return Model(str(name_or_path), zoo.load_restorer(name_or_path, device=place), place, fast, cache)


def _device(name: torch.device | str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise TwofoldError(f"device {str(name)!r} cannot be used here ({reason}); try auto or cpu") from error


def restore(
    image: ImageLike,
    model: str | Path | Model,
    *,
    kernel: Kernel | None = None,
    guidance: Guidance | None = None,
    strength: float = 1.0,
    tile: Tile = "auto",
    device: torch.device | str = "auto",
    progress: Progress | None = None,
) -> Restored:
    """Restores a picture: a path, a PIL image, an array `(H, W[, C])`, or a tensor `(C, H, W)` or `(1, C, H, W)` in
    [0, 1].

    kernel: of the blur, for a model that removes one: a file, a tensor or array `(h, w)`, or "estimate" (or a
    `KernelSearch`), which finds it in the picture and returns it as the report. guidance: used instead of the estimated
    map. A number holds for every pixel; a tensor or floating-point array has the picture's size and the unit of
    `load(name).kind`; in a file, PIL image or integer array white stands for `kind.white`. strength: 0 to 1.5, scales
    the map; `kind.strength` says what that means. tile: side in pixels, "auto" by memory, None for the whole picture at
    once; the result is the same. device: where a model that is named is loaded. progress: told (tiles done, tiles in
    all).

    Returns: `Restored(image, guidance, report)`, the image of the kind that was given (tensors are not clamped), the
    map `(1, 1, H, W)`.

    Raises: ImageError, WeightsError, TwofoldError; all are TwofoldErrors.
    """
    if isinstance(model, Model) and device != "auto" and _device(device) != _device(model.device):
        raise TwofoldError(
            f"{model.name} was loaded on {model.device}, so device={str(device)!r} comes too late; load it there"
        )
    loaded = model if isinstance(model, Model) else load(model, device=device)
    return loaded(image, kernel=kernel, guidance=guidance, strength=strength, tile=tile, progress=progress)
