"""The two halves of a search's data: a split by clean picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from twofold.contracts import DataError
from twofold.data.sources import Divisible, Source, SourceMixture


def split_source(source: Source, *, pictures: int = 0) -> tuple[Source, Source]:
    """(training, validation): the same source on every other clean picture and on the rest, a split by picture.

    Pairs whose clean pictures hold the same bytes, such as one scene at several densities of haze, stay together, also
    across the sources of a mixture. pictures: take so many clean pictures in all, evenly spread; 0 takes all.

    Raises: DataError for a source with fewer than two clean pictures, or of a kind that cannot be split.
    """
    return _halves(source, pictures, {})


def _halves(source: Source, pictures: int, sides: dict[bytes, int]) -> tuple[Source, Source]:
    """sides: the half of every scene so far, by its digest; the scenes of this source are added."""
    if isinstance(source, SourceMixture):
        share = -(-pictures // len(source.sources))
        parts = [_halves(inner, share, sides) for inner in source.sources]
        return tuple(SourceMixture(half, source.weights) for half in zip(*parts, strict=True))  # type: ignore[return-value]
    if not isinstance(source, Divisible):
        raise DataError(f"a {type(source).__name__} cannot be split by picture; take pairs or clean pictures")
    first, second = _split(source.clean.pictures, pictures, sides)
    return source.subset(first), source.subset(second)


def _split(pictures: Sequence[Tensor], limit: int, sides: dict[bytes, int]) -> tuple[list[int], list[int]]:
    """Indices of both halves, whole scenes each."""
    scenes: dict[bytes, list[int]] = {}
    for number, picture in enumerate(pictures):
        scenes.setdefault(hashlib.sha256(picture.numpy().tobytes()).digest(), []).append(number)
    for number, scene in enumerate(scenes):
        sides.setdefault(scene, number % 2)
    halved = [[numbers for scene, numbers in scenes.items() if sides[scene] == side] for side in (0, 1)]
    if not all(halved) or limit == 1:
        seen = "data.pictures asks for 1 of a source" if limit == 1 else f"got {len(scenes)} that other sources lack"
        raise DataError(f"a search takes at least 2 different clean pictures, one for each half; {seen}")
    # The limit comes after the split: a judge that sees more pictures than a search still shares its halves.
    first, second = (
        _evenly(half, limit // 2 + limit % 2 * (1 - side) if limit else 0) for side, half in enumerate(halved)
    )
    return list(chain(*first)), list(chain(*second))


def _evenly(scenes: Sequence[list[int]], limit: int) -> Sequence[list[int]]:
    """At most `limit` of them, evenly over the whole; 0 for all."""
    return [scenes[i * len(scenes) // limit] for i in range(limit)] if 0 < limit < len(scenes) else scenes
