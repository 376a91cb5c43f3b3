"""Exact tiling of large images: every tile is computed with a halo as wide as the receptive field.

A sliding window with blended overlaps is not exact even for one 3 × 3 convolution. A halo of at least the receptive
field is: what lies further away cannot reach the pixels that are kept, and pieces at the rim see the real border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from twofold.contracts import TwofoldError

_SMALLEST = 64
"""Side of the smallest tile in pixels: one that runs out of memory at this size is not divided again."""


@dataclass(frozen=True)
class Budget:
    """How much memory one tile may take, for tiles that are as large as that allows.

    bytes: for everything that the network holds at once. per_pixel: bytes it holds for each pixel it sees.
    """

    bytes: int = 900 * 2**20
    per_pixel: int = 2000


def padded(images: Tensor, multiple: int, border: int = 0) -> Tensor:
    """`images (..., H, W)`, mirrored by `border` pixels on every side, and on at the right and the bottom until both
    sides are multiples of `multiple`.

    Any size from 1 × 1 will do: the mirror image is mirrored again where the padding is wider than the picture.
    Undo: `[..., border : border + H, border : border + W]`.

    >>> padded(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 8)[0, 0, 0]
    tensor([1., 2., 3., 2., 1., 2., 3., 2.])
    """
    for axis in (-2, -1):
        length = images.shape[axis]
        wanted = _up(length + 2 * border, multiple)
        images = mirrored(images, axis, -border, wanted - border)
    return images


def mirrored(images: Tensor, axis: int, start: int, end: int) -> Tensor:
    """Of images `(..., H, W)`, the part from `start` to `end` along an axis, mirrored beyond both sides; a view where
    that part lies inside.
    """
    length = images.shape[axis]
    if start >= 0 and end <= length:
        return images.narrow(axis, start, end - start)
    period = max(2 * (length - 1), 1)
    there = torch.arange(start, end, device=images.device) % period
    return images.index_select(axis, torch.minimum(there, (period - there) % max(period, 2)))


class Area(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right` of features or of a picture."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, images: Tensor, scale: int = 1) -> Tensor:
        """A view of this area of `images (..., H, W)`, which have `scale` pixels where the area has one."""
        return images[..., scale * self.top : scale * self.bottom, scale * self.left : scale * self.right]

    def grown(self, halo: int, height: int, width: int) -> Area:
        """With what lies up to `halo` around it, inside of height × width."""
        return Area(
            max(self.top - halo, 0),
            min(self.bottom + halo, height),
            max(self.left - halo, 0),
            min(self.right + halo, width),
        )

    def within(self, outer: Area) -> Area:
        """The same place, counted from the corner of `outer`."""
        return Area(self.top - outer.top, self.bottom - outer.top, self.left - outer.left, self.right - outer.left)


def areas(height: int, width: int, tall: int, wide: int) -> Iterator[Area]:
    """Cuts height × width into areas of tall × wide, row by row; the last ones are smaller."""
    for top, left in product(range(0, height, tall), range(0, width, wide)):
        yield Area(top, min(top + tall, height), left, min(left + wide, width))


def tiled(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    halo: int | None,
    multiple: int = 1,
    tile: int | Budget | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`function(images)`, computed tile by tile and equal to the whole up to float rounding.

    function: `(B, C, h, w)` → `(B, C', h, w)`, any dtype, for sides that are multiples of `multiple`. halo: radius of
    what one output pixel depends on; None if it depends on the whole picture, which is then computed in one piece.
    tile: side in pixels of what is kept of each piece (the function sees `halo` more on each side); a `Budget` for the
    cheapest cut into pieces that fit into memory; None for one piece. A tile that runs out of memory is cut in two.
    progress: called with (tiles done, tiles in all) before the first tile and after each.

    Raises: TwofoldError if memory does not suffice even for small tiles.
    """
    height, width = images.shape[-2:]
    down, across = _up(height, multiple), _up(width, multiple)
    rim = 0 if halo is None else _up(halo, multiple)
    rows, columns = _cut(down, across, rim, multiple, None if halo is None else tile)
    spans = [(*row, *column) for row, column in product(pairwise(rows), pairwise(columns))]
    result: Tensor | None = None
    if progress:
        progress(0, len(spans))
    for done, span in enumerate(spans, 1):
        pending = [span]
        while pending:
            top, bottom, left, right = pending.pop()
            above, before = max(top - rim, 0), max(left - rim, 0)
            try:
                seen = mirrored(images, -2, above, min(bottom + rim, down))  # no padded copy of a large picture
                seen = mirrored(seen, -1, before, min(right + rim, across))
                piece = function(seen)
                del seen
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and "memory" not in str(error):
                    raise
                if halo is None or max(bottom - top, right - left) <= max(_SMALLEST, multiple):
                    raise TwofoldError(
                        f"not enough memory to compute {bottom - top} x {right - left} pixels of a {height} x {width} "
                        "picture; close other programs, use a smaller picture or fewer threads"
                    ) from error
                pending += _halves(top, bottom, left, right, multiple)
                continue
            if result is None:
                result = piece.new_empty((*piece.shape[:-2], height, width))
            end, edge = min(bottom, height), min(right, width)
            result[..., top:end, left:edge] = piece[..., top - above : end - above, left - before : edge - before]
            del piece  # before the next one is computed
        if progress:
            progress(done, len(spans))
    assert result is not None
    return result


def _halves(top: int, bottom: int, left: int, right: int, multiple: int) -> list[tuple[int, int, int, int]]:
    """A piece cut across its longer side."""
    if bottom - top > right - left:
        middle = top + _up((bottom - top) // 2, multiple)
        return [(top, middle, left, right), (middle, bottom, left, right)]
    middle = left + _up((right - left) // 2, multiple)
    return [(top, bottom, left, middle), (top, bottom, middle, right)]


def overhead(height: int, width: int, *, halo: int, multiple: int = 1, tile: int | Budget | None = None) -> float:
    """Pixels that `tiled` computes for a picture, in units of the picture's own.

    >>> round(overhead(3000, 4000, halo=78, tile=1024), 2)
    1.23
    """
    rim = _up(halo, multiple)
    seen = 1.0
    for at in _cut(_up(height, multiple), _up(width, multiple), rim, multiple, tile):
        seen *= sum(min(end + rim, at[-1]) - max(start - rim, 0) for start, end in pairwise(at)) / at[-1]
    return seen


def _cut(height: int, width: int, rim: int, multiple: int, tile: int | Budget | None) -> tuple[list[int], list[int]]:
    """Where rows and columns are cut, both ends included."""
    if tile is None:
        return [0, height], [0, width]
    if isinstance(tile, int):
        step = _up(max(tile, 1), multiple)
        return [*range(0, height, step), height], [*range(0, width, step), width]
    limit = tile.bytes // tile.per_pixel
    down, across = (_even_cuts(length, rim, multiple) for length in (height, width))

    def cost(pair: tuple[_Cuts, _Cuts]) -> tuple[int, int]:
        return max(pair[0].longest * pair[1].longest - limit, 0), pair[0].seen * pair[1].seen

    rows, columns = min(product(down, across), key=cost)
    return rows.at, columns.at


class _Cuts(NamedTuple):
    """Where one axis is cut, the longest piece with its rims, and all pieces with their rims together."""

    at: list[int]
    longest: int
    seen: int


def _even_cuts(length: int, rim: int, multiple: int) -> list[_Cuts]:
    """All cuts worth considering: 1, 2, ... pieces, each longer than one of its rims."""
    counts = range(1, max(length // max(2 * rim, _SMALLEST), 1) + 1)
    cuts = [_even(length, count, rim, multiple) for count in counts]
    seen = [[min(end + rim, length) - max(start - rim, 0) for start, end in pairwise(at)] for at in cuts]
    return [_Cuts(at, max(pieces), sum(pieces)) for at, pieces in zip(cuts, seen, strict=True)]


def _even(length: int, count: int, rim: int, multiple: int) -> list[int]:
    """Cuts into at most `count` pieces that are equally long with their rims; the two at the ends have one rim only."""
    if count == 1:
        return [0, length]
    with_rims = _up(-(-(length + 2 * rim * (count - 1)) // count), multiple)
    cuts = [0]
    while length - cuts[-1] > with_rims - rim:
        cuts.append(cuts[-1] + with_rims - (rim if cuts[-1] == 0 else 2 * rim))
    return [*cuts, length]


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


ORIENTATIONS = tuple(product((False, True), (False, True), (False, True)))
"""The eight orientations of an image: (transposed, flipped vertically, flipped horizontally)."""


def oriented(image: Tensor, orientation: tuple[bool, bool, bool]) -> Tensor:
    """`image` `(..., H, W)`, transposed first and then flipped."""
    transposed, *flipped = orientation
    image = image.mT if transposed else image
    return image.flip([axis for axis, chosen in zip((-2, -1), flipped, strict=True) if chosen])


def unoriented(image: Tensor, orientation: tuple[bool, bool, bool]) -> Tensor:
    """The inverse of `oriented`.

    >>> image = torch.arange(6.0).view(2, 3)
    >>> all(torch.equal(unoriented(oriented(image, o), o), image) for o in ORIENTATIONS)
    True
    """
    transposed, *flipped = orientation
    image = image.flip([axis for axis, chosen in zip((-2, -1), flipped, strict=True) if chosen])
    return image.mT if transposed else image
