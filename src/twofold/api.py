"""The main functions: `load` a model, `restore` an image."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from twofold import images, runtime, tiling, zoo
from twofold.contracts import (
    NOISE_LEVEL,
    GuidanceKind,
    ImageError,
    Progress,
    Restored,
    Restorer,
    TwofoldError,
    part_of,
)
from twofold.degrade.blur import check_noise_level
from twofold.export import runtimes
from twofold.images import ImageLike, Picture
from twofold.restorers.blind import SEARCH_SHARE, Kernel, is_search, kernel_for
from twofold.restorers.tile import Extra, Tile
from twofold.runtime import device_of, evaluating

TileSize: TypeAlias = int | Literal["auto"] | None
GuidanceSource: TypeAlias = "ImageLike | float"


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded restorer that takes any kind of image; itself a `Restorer` of tensors.

    `model(image)` returns `Restored`: the image as the kind of object that was given, the guidance map `(1, 1, H, W)`,
    and as the report a kernel that had to be estimated. plan: how the network is run in torch, see
    `runtime.ExecutionPlan`. graph: what runs it instead, in ONNX Runtime or OpenVINO.
    """

    name: str
    restorer: Restorer
    device: torch.device
    plan: runtime.ExecutionPlan = field(default_factory=runtime.plain)
    graph: runtimes.GraphRunner | None = None
    _runners: dict[tuple[Extra, ...], _Runner] = field(default_factory=dict, init=False, repr=False)

    @property
    def kind(self) -> GuidanceKind | None:
        """What the guidance map means, or None for a model without one."""
        return self.restorer.kind

    @property
    def channels(self) -> int:
        """Of the images that the network is for: 3, or 1, which restores every colour channel by itself."""
        return self.restorer.channels

    @property
    def takes_kernel(self) -> bool:
        """Whether the model needs the blur kernel."""
        return self.restorer.takes_kernel

    def __call__(
        self,
        image: ImageLike,
        *,
        kernel: Kernel | None = None,
        guidance: GuidanceSource | None = None,
        strength: float = 1.0,
        self_ensemble: bool = False,
        tile: TileSize = "auto",
        progress: Progress | None = None,
    ) -> Restored:
        """See `restore`. A tensor may also be a batch `(B, C, H, W)`, whose images are restored one after the other."""
        if isinstance(image, Tensor) and image.ndim == 4 and image.shape[0] > 1:
            options: Any = {"kernel": kernel, "guidance": guidance, "strength": strength, "tile": tile}
            options["self_ensemble"] = self_ensemble
            count = len(image)
            parts = [
                self(one[None], **options, progress=part_of(progress, index / count, (index + 1) / count))
                for index, one in enumerate(image)
            ]
            maps = [part.guidance for part in parts if part.guidance is not None]
            reports = [part.report for part in parts if part.report is not None]
            restored_all = torch.cat([part.image for part in parts])
            return Restored(restored_all, torch.cat(maps) if maps else None, reports or None)
        picture = images.from_any(image)
        searched = is_search(kernel)
        checked, report = kernel_for(picture, kernel, progress=part_of(progress, 0, SEARCH_SHARE))
        tiles = part_of(progress, SEARCH_SHARE if searched else 0, 1)
        restored, used = self.restore(
            picture,
            kernel=checked,
            guidance=guidance,
            strength=strength,
            self_ensemble=self_ensemble,
            tile=tile,
            progress=tiles,
        )
        kept: Any = images.to_kind_of(restored, image)
        return Restored(kept, used, report)

    def restore(
        self,
        picture: Picture,
        *,
        kernel: Tensor | None = None,
        guidance: GuidanceSource | None = None,
        strength: float = 1.0,
        self_ensemble: bool = False,
        tile: TileSize = "auto",
        progress: Progress | None = None,
    ) -> tuple[Picture, Tensor | None]:
        """The same on a `Picture`, which keeps alpha, EXIF and profile: (restored, guidance map).

        kernel: `(1, 1, h, w)`, see `kernel_for`.
        """
        check_strength(strength)
        if self_ensemble and strength:  # at 0 every orientation is the picture itself
            return self._over_orientations(picture, kernel, guidance, strength, tile, progress)
        if (kernel is None) == self.takes_kernel:
            raise TwofoldError(
                f"{self.name} needs the kernel of the blur: an image of it, or 'estimate'"
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
        groups = torch.split(stack, self.channels, 1)
        contexts = [self._context(group) for group in groups]  # one for each colour channel of a grey network
        extras: tuple[Extra, ...] = ()
        if kernel is not None:
            extras, kernel = (*extras, "kernel"), kernel.to(self.device)
        if contexts[0] is not None:
            extras = (*extras, "context")
        if guidance is not None:
            extras = (*extras, "guidance")
            stack = torch.cat([stack, self._given(guidance, observed)], 1)
        share = torch.full((1, 1, 1, 1), strength, dtype=torch.float32, device=self.device)

        def on_tile(part: Tensor) -> Tensor:
            part = part.to(self.device)
            done = []
            for group, context in zip(torch.split(part[:, :colours], self.channels, 1), contexts, strict=True):
                given = {"kernel": kernel, "context": context, "guidance": part[:, colours:]}
                done.append(runner.run(group, share, *(given[name] for name in extras)))
            if len(done) == 1:  # without a copy
                return done[0].to(stack.device)
            restored, maps = ([x[:, at] for x in done] for at in (slice(self.channels), slice(self.channels, None)))
            return torch.cat([*restored, torch.stack(maps).mean(0)], 1).to(stack.device)

        with evaluating(self.restorer):
            runner = self._runner(extras)
            out = tiling.tiled(
                on_tile,
                stack,
                halo=self.restorer.halo,
                multiple=self.restorer.multiple,
                tile=tiling.Budget(per_pixel=runner.bytes_per_pixel) if tile == "auto" else tile,
                progress=progress,
            )
        pixels = out[:, :colours].mean(1, keepdim=True) if grey else out[:, :colours]
        return replace(picture, pixels=pixels), None if self.kind is None else out[:, colours:]

    def _over_orientations(
        self,
        picture: Picture,
        kernel: Tensor | None,
        guidance: GuidanceSource | None,
        strength: float,
        tile: TileSize,
        progress: Progress | None,
    ) -> tuple[Picture, Tensor | None]:
        """The mean of `restore` over the eight orientations of the picture (self-ensemble, Timofte et al. 2016)."""
        given = None if guidance is None else self._given(guidance, picture.pixels.float())
        pixels, maps, share = torch.zeros(()), torch.zeros(()), 1 / len(tiling.ORIENTATIONS)
        for count, orientation in enumerate(tiling.ORIENTATIONS):
            restored, used = self.restore(
                replace(picture, pixels=tiling.oriented(picture.pixels, orientation)),
                kernel=None if kernel is None else tiling.oriented(kernel, orientation),
                guidance=None if given is None else tiling.oriented(given, orientation),
                strength=strength,
                tile=tile,
                progress=part_of(progress, share * count, share * (count + 1)),
            )
            pixels = pixels + tiling.unoriented(restored.pixels, orientation)
            if used is not None:
                maps = maps + tiling.unoriented(used, orientation)
        return replace(picture, pixels=pixels * share), None if self.kind is None else maps * share

    def _context(self, observed: Tensor) -> Tensor | None:
        """What every tile gets of the whole image; the network sees it padded, so that is what is looked at."""
        with torch.inference_mode(), evaluating(self.restorer):
            return self.restorer.context(observed.to(self.device))

    def _runner(self, extras: tuple[Extra, ...]) -> _Runner:
        """How a tile with these extras is computed; made on first use."""
        if extras not in self._runners:
            kept: Any = {"device": self.device, "dtype": torch.float32}  # whatever torch's default is
            example = [torch.rand(1, self.channels, 128, 128, **kept), torch.ones(1, 1, 1, 1, **kept)]
            context = self._context(example[0])
            made = {
                "kernel": torch.full((1, 1, 25, 25), 1 / 25**2, **kept),
                "context": torch.zeros(1, 1) if context is None else context,
                "guidance": torch.rand(1, 1, 128, 128, **kept),
            }
            inputs = (*example, *(made[name] for name in extras))
            run = runtime.runner(Tile(self.restorer, extras).eval(), self.plan, inputs=len(inputs))
            held = runtime.peak_bytes(run, inputs) // 128**2 + 64  # of another runtime too, which does not say
            self._runners[extras] = _Runner(self.graph.tile(self.restorer, extras) if self.graph else run, held)
        return self._runners[extras]

    def __getstate__(self) -> dict[str, Any]:
        """Without the runners, which hold functions: they are made again where the model is unpickled."""
        return {**self.__dict__, "_runners": {}}

    def _given(self, guidance: GuidanceSource, observed: Tensor) -> Tensor:
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


class _Runner(NamedTuple):
    run: Callable[..., Tensor]
    bytes_per_pixel: int


def check_strength(strength: float) -> None:
    """Raises: TwofoldError for a strength outside 0 to 1.5."""
    if not 0 <= strength <= 1.5:
        raise TwofoldError(f"strength goes from 0 to 1.5, got {strength:g}")


Precision = Literal["auto", "float32", "bf16", "exact"]
Runtime = Literal["auto", "torch", "onnx", "openvino"]


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
) -> Model:
    """The model of that name (`twofold models` lists them), or of a weights file.

    device: "auto" takes a GPU where there is one. precision: "exact" is float32 as the network was written; "float32"
    fuses layers, equal up to rounding; "bf16" rounds inside convolutions to 8 bits. "auto" takes bf16 where the
    processor computes in it and the model's card says that the image stays within half a grey level (root mean square)
    of float32, else float32. runtime: "onnx" is ONNX Runtime, on the processor as OpenVINO is; their "auto" precision
    is float32. "auto" takes what `twofold doctor --choose` kept for the model and this machine, else torch. Loading
    measures nothing: the choice never depends on timing.

    Raises: WeightsError for a file that is unknown, damaged or foreign; TwofoldError for a missing device or runtime.
    """
    if precision not in get_args(Precision):
        raise TwofoldError(f"precision: expected {', '.join(get_args(Precision))}, got {precision!r}")
    place = device_of(device)
    named = runtime not in ("auto", "torch")
    if named:
        runtimes.require_runtime(runtime)
        if place.type != "cpu":
            raise TwofoldError(f"runtime {runtime} computes on the processor; take device cpu, got {place}")
        if precision == "exact":
            raise TwofoldError(f"precision exact is torch's own; take float32, or runtime torch instead of {runtime}")
    restorer = zoo.load_restorer(name_or_path, device=place)
    if not isinstance(restorer, nn.Module):  # a classical one: there are no layers to run differently
        if named:
            raise TwofoldError(f"{name_or_path} is no network, so runtime {runtime} cannot compute it; take torch")
        return Model(str(name_or_path), restorer, place)
    if runtime == "auto" and precision == "auto" and place.type == "cpu":
        chosen = runtimes.kept_choice(name_or_path)
        if chosen is not None:
            runtime, precision = chosen.runtime, chosen.precision
    graph = None
    if runtime in ("onnx", "openvino"):
        graph = runtimes.graph_runner(name_or_path, restorer, runtime, bfloat16=precision == "bf16")
        precision = "float32" if precision == "auto" else precision
    return Model(str(name_or_path), restorer, place, _plan(str(name_or_path), place, precision), graph)


def _plan(name: str, place: torch.device, precision: Precision) -> runtime.ExecutionPlan:
    if precision == "exact":
        return runtime.plain()
    card = zoo.cards().get(name)
    allowed = card is not None and card.allows_bf16 and runtime.has_bf16(place)
    return runtime.plan_for(place, bfloat16=precision == "bf16" or (precision == "auto" and allowed))


def models() -> dict[str, zoo.Card]:
    """The cards of the shipped models by name: task, method, data, terms, numbers on held-out images.

    >>> models()["derain"].task
    'rain'
    """
    return zoo.cards()


@lru_cache(maxsize=2)
def _kept(name: str, device: str, version: int) -> Model:
    return load(name, device=device)


def restore(
    image: ImageLike,
    model: str | Path | Model,
    *,
    kernel: Kernel | None = None,
    guidance: GuidanceSource | None = None,
    strength: float = 1.0,
    self_ensemble: bool = False,
    tile: TileSize = "auto",
    device: torch.device | str = "auto",
    progress: Progress | None = None,
) -> Restored:
    """Restores a picture: a path, a PIL image, an array `(H, W[, C])`, or a tensor `(C, H, W)` or `(1, C, H, W)` in
    [0, 1].

    kernel: of the blur, for a model that removes one: a file, a tensor or array `(h, w)`, or "estimate" (or a
    `KernelSearch`), which finds it in the picture and returns it as the report. guidance: used instead of the estimated
    map. A number holds for every pixel; a tensor or floating-point array has the picture's size and the unit of
    `load(name).kind`; in a file, PIL image or integer array white stands for `kind.white`. strength: 0 to 1.5, scales
    the map; `kind.strength` says what that means. self_ensemble: the mean over the eight orientations of the picture,
    in eight times the time. tile: side in pixels, "auto" by memory, None for the whole picture at once; the result is
    the same. device: where a model that is named is loaded. progress: called with (tiles done, tiles in all), or in
    thousandths where there is more to do than one restoration.

    Returns: `Restored(image, guidance, report)`, the image of the kind that was given (tensors are not clamped), the
    map `(1, 1, H, W)`.

    Raises: ImageError, WeightsError, TwofoldError; all are TwofoldErrors.
    """
    if isinstance(model, Model) and device != "auto" and device_of(device) != device_of(model.device):
        raise TwofoldError(
            f"{model.name} was loaded on {model.device}, so device={str(device)!r} comes too late; load it there"
        )
    if isinstance(model, Model):
        loaded = model
    else:  # the last two are kept, so that a loop over images does not load its model every time
        version = Path(model).stat().st_mtime_ns if Path(model).is_file() else 0
        loaded = _kept(str(model), str(device), version)
    return loaded(
        image,
        kernel=kernel,
        guidance=guidance,
        strength=strength,
        self_ensemble=self_ensemble,
        tile=tile,
        progress=progress,
    )
