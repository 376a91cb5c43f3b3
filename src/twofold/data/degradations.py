"""Every degradation that a recipe can name. To add one, write its frozen dataclass and add it to `AnyDegradation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


AnyDegradation = Annotated[
    GaussianNoise | SaltAndPepper | RainStreaks | Harvested | Blur | Haze | LowLight | Underwater,
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
    if not isinstance(settings, Mapping):
        settings = TypeAdapter(AnyDegradation).dump_python(settings, mode="json")
    tree = {"degradation": dict(settings)}
    for text in changes:
        change(tree, f"degradation.{text}")
    return with_files(checked(_Chosen, tree, "--set" if changes else "degradation").degradation, root)


def with_files(degradation: Degradation, root: Path) -> Degradation:
    """The degradation ready to be applied: what it is made of is read below `root`."""
    return degradation.from_files(root) if isinstance(degradation, NeedsFiles) else degradation
