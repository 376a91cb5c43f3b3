"""Every degradation that a recipe can name. To add one, write its frozen dataclass and add it to `AnyDegradation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args, runtime_checkable

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from twofold.contracts import ConfigError, Degradation, Sample
from twofold.data.crops import as_floats, read_pairs
from twofold.data.folders import PairFolder, pairs_of
from twofold.degrade.additive import GaussianNoise, HarvestedRain, RainStreaks, SaltAndPepper, streak_layers
from twofold.degrade.blur import Blur
from twofold.degrade.hadamard import Haze, LowLight, Underwater
from twofold.nets.fourier import center_crop
from twofold.settings import Settings, change, checked


@runtime_checkable
class NeedsFiles(Protocol):
    """A degradation that is made of files; `from_files` reads them below a data root."""

    def from_files(self, root: Path) -> Degradation: ...


@dataclass(frozen=True)
class Harvested:
    """Real streak layers, `observed − clean` of pairs, laid on other photographs. pairs: folders of them."""

    pairs: Annotated[tuple[PairFolder, ...], Field(min_length=1)]
    kind: Literal["harvested"] = field(default="harvested", kw_only=True, repr=False)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        raise ConfigError("the rain layers have not been read; call from_files(root) first")

    def from_files(self, root: Path) -> HarvestedRain:
        """Raises: DataError where a folder holds no pairs."""
        rainy, clean = read_pairs(pairs_of(self.pairs, root))
        floats = ((as_floats([a]), as_floats([b])) for a, b in zip(rainy, clean, strict=True))
        return HarvestedRain(streak_layers(floats))


@dataclass(frozen=True)
class Chain:
    """Several degradations after one another, such as noise over rain. Each degrades what the one before returned.

    steps: degradations by name, in their order. guidance: the name of the step whose map is the sample's. `kernel` is
    that of the only step that has one. A step that returns less than it gets (blur, at its borders) crops the clean
    image and the maps likewise.

    Raises: ConfigError where there are no steps or none is called `guidance`; when called, where two steps have a
    kernel.

    >>> chain = Chain({"rain": RainStreaks(), "noise": GaussianNoise()}, guidance="noise")
    >>> sample = chain(torch.zeros(1, 3, 8, 8), torch.Generator().manual_seed(0))
    >>> bool(0.01 <= sample.guidance.max() <= 0.05)
    True
    """

    steps: Mapping[str, AnyDegradation]
    guidance: str
    kind: Literal["chain"] = field(default="chain", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.guidance not in self.steps:
            raise ConfigError(
                f"guidance: no step is called {self.guidance!r}; there are: {', '.join(self.steps) or 'none'}"
            )

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        observed, guidance, kernel = clean, None, None
        for name, step in self.steps.items():
            sample = step(observed, generator)
            observed = sample.observed
            if name == self.guidance:
                guidance = sample.guidance
            if sample.kernel is not None:
                if kernel is not None:
                    raise ConfigError(f"step {name!r}: a second step blurs with a kernel; only one may")
                kernel = sample.kernel
        size = (observed.shape[-2], observed.shape[-1])
        return Sample(
            center_crop(clean, size), observed, None if guidance is None else center_crop(guidance, size), kernel
        )

    @property
    def margin(self) -> int:
        """Pixels that all steps together take from a side."""
        return sum(getattr(step, "margin", 0) for step in self.steps.values())

    def from_files(self, root: Path) -> Chain:
        """The same with every step ready. Raises: DataError where files cannot be used."""
        ready: Any = {name: with_files(step, root) for name, step in self.steps.items()}
        return replace(self, steps=ready)


AnyDegradation = Annotated[
    GaussianNoise | SaltAndPepper | RainStreaks | Harvested | Blur | Haze | LowLight | Underwater | Chain,
    Field(discriminator="kind"),
]


class _Chosen(Settings):
    degradation: AnyDegradation


def degradation_kinds() -> list[str]:
    """What stands under `kind` to choose each of `AnyDegradation`."""
    return [group.__dataclass_fields__["kind"].default for group in get_args(get_args(AnyDegradation)[0])]


def changed(settings: Mapping[str, Any] | Degradation, changes: Sequence[str], root: Path) -> Degradation:
    """A degradation by its settings, `{"kind": …}`, with changes such as `beta=[0.5, 1]`; its files are read below
    `root`.

    Raises: ConfigError with the path of the first mistake and the nearest known key.

    >>> changed(RainStreaks(), ["angle=[0, 0]", "layers=2"], Path())
    RainStreaks(angle=(0.0, 0.0), spread=1.5, length=(15.0, 45.0), ..., layers=2, ...)
    """
    given: Any = settings
    if not isinstance(settings, Mapping):
        given = TypeAdapter(AnyDegradation).dump_python(given, mode="json")
    tree = {"degradation": deepcopy(dict(given))}
    for text in changes:
        change(tree, f"degradation.{text}")
    return with_files(checked(_Chosen, tree, "--set" if changes else "degradation").degradation, root)


def with_files(degradation: Degradation, root: Path) -> Degradation:
    """The degradation ready to be applied: what it is made of is read below `root`."""
    return degradation.from_files(root) if isinstance(degradation, NeedsFiles) else degradation
