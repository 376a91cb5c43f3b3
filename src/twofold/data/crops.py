"""Pictures kept as bytes, and crops of them: decoding happens once."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from twofold import images
from twofold.contracts import DataError, TwofoldError
from twofold.data.pairs import Pair, middle
from twofold.files import read_matlab
from twofold.metrics import grey

Plan = tuple[float, float, float, float, float, float]


def read_bytes(path: Path, *, channels: int = 3) -> Tensor:
    """A picture as bytes `(channels, H, W)`: RGB, or grey, the luma of a colour picture.

    A `.mat` file holds it as its variable `x` in [0, 1], as those of Levin et al. 2009 do.

    Raises: DataError for a `.mat` file without one; ImageError for another file that cannot be read.
    """
    pixels = _matlab_picture(path) if path.suffix == ".mat" else images.read(path).pixels
    pixels = grey(pixels) if channels == 1 else pixels
    return (pixels[0] * 255).round().to(torch.uint8).expand(channels, -1, -1).contiguous()


def _matlab_picture(path: Path) -> Tensor:
    found = read_matlab(path)
    (array, *more) = found.get("x", [np.zeros(0)])
    if more or array.ndim not in (2, 3) or not 0 <= float(array.min()) <= float(array.max()) <= 1:
        raise DataError(
            f"{path}: holds no picture as a variable x in [0, 1], its variables are {', '.join(found) or 'none'}"
        )
    pixels = torch.from_numpy(np.atleast_3d(array).astype(np.float32)).permute(2, 0, 1)[None]
    return pixels if pixels.shape[1] == 3 else pixels[:, :1].expand(-1, 3, -1, -1)


def grey_map(path: Path) -> Tensor:
    """A map, floats `(1, H, W)`: the first channel of a picture, white being 1, or the only array of a `.mat` file.

    Raises: DataError for a `.mat` file that holds another number of arrays; ImageError as `images.read`.
    """
    if path.suffix != ".mat":
        return images.read(path).pixels[0, :1].float()
    arrays = [array for found in read_matlab(path).values() for array in found if array.ndim == 2 and array.size > 1]
    if len(arrays) != 1:
        raise DataError(f"{path}: holds {len(arrays)} arrays; keep one map in a file")
    return torch.from_numpy(arrays[0].astype(np.float32))[None]


def read_all(paths: Sequence[Path], *, channels: int = 3, memory: int | None = None) -> list[Tensor]:
    """Every picture as bytes, decoded on all cores; one that is named several times is kept once.

    memory: bytes that may be taken; None for a quarter of what is free. Pictures beyond it lie in a temporary file
    (where `TMPDIR` says), of which the system keeps in memory what it has room for.

    Raises: DataError naming the first files that cannot be read, or where the temporary file does not fit.
    """

    def read(path: Path) -> Tensor | str:
        try:
            return read_bytes(path, channels=channels)
        except TwofoldError as error:
            return str(error)

    distinct = list(dict.fromkeys(paths))
    wrong: list[str] = []
    with ThreadPoolExecutor() as pool:

        def sound() -> Iterator[Tensor]:
            for found in _in_order(pool, read, distinct):
                if isinstance(found, str):
                    wrong.append(found)
                elif not wrong:
                    yield found

        pictures = _kept(sound(), free_memory() // 4 if memory is None else memory)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(f"{len(wrong)} of {len(distinct)} pictures cannot be read: {'; '.join(wrong[:3])}{more}")
    by_path = dict(zip(distinct, pictures, strict=True))
    return [by_path[path] for path in paths]


def _in_order(
    pool: ThreadPoolExecutor, read: Callable[[Path], Tensor | str], paths: Sequence[Path]
) -> Iterator[Tensor | str]:
    """What `read` makes of each path. Only a few are read ahead: `pool.map` would hold them all, if they are not
    taken as fast as they come.
    """
    ahead = 2 * (os.cpu_count() or 1)
    waiting: deque[Future[Tensor | str]] = deque()
    for path in paths:
        waiting.append(pool.submit(read, path))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _kept(pictures: Iterable[Tensor], room: int) -> list[Tensor]:
    """The same pictures of bytes; what exceeds `room` bytes lies in a file without a name, read when it is touched."""
    inside, outside = [], []
    with tempfile.SpooledTemporaryFile(max_size=1) as file:  # on the disk from the second byte on
        try:
            for picture in pictures:
                room -= picture.numel()
                if room >= 0:
                    inside.append(picture)
                else:
                    file.write(picture.numpy().data)
                    outside.append(picture.shape)
            file.flush()
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: no room for the pictures that exceed the memory ({error.strerror or error});"
                " name a larger folder by the variable TMPDIR"
            ) from error
        if not outside:
            return inside
        mapped = torch.from_numpy(np.memmap(file, np.uint8, "c"))  # "c": torch has no tensors that are read-only
    parts = torch.split(mapped, [shape.numel() for shape in outside])
    return inside + [part.view(shape) for part, shape in zip(parts, outside, strict=True)]


def free_memory() -> int:
    """Bytes that the system has left for this process, and that a container or a batch system allows it."""
    room = [int(psutil.virtual_memory().available)]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such limit, or the word "max"
        room.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(room), 0)


def read_pairs(pairs: Sequence[Pair], *, channels: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """(observed, clean) as bytes, one for one and of the same size; a larger clean picture is cropped to its middle.

    Raises: DataError for files that cannot be read or sizes that do not fit (see `pairs.middle`).
    """
    observed = read_all([pair.observed for pair in pairs], channels=channels)
    clean = read_all([pair.clean for pair in pairs], channels=channels)
    fitting = [
        middle(target, (seen.shape[1], seen.shape[2]), name=str(pair.clean))
        for pair, seen, target in zip(pairs, observed, clean, strict=True)
    ]
    return observed, fitting


def plan(generator: torch.Generator) -> Plan:
    """All that is random about a crop, drawn at once: picture, place down and across, two mirrors, a quarter turn."""
    first, second, third, fourth, fifth, sixth = torch.rand(6, generator=generator).tolist()
    return first, second, third, fourth, fifth, sixth


MOST_MIRRORED = 4
"""How many times the side of a picture a crop may have; the rest is the picture's mirror image."""


@dataclass(frozen=True)
class CropCache:
    """pictures: bytes `(C, H, W)`, sizes may differ. Crops are mirrored left to right.

    rotate: they are also flipped vertically and rotated by 90°; not for weather, where the orientation matters.
    """

    pictures: Sequence[Tensor]
    rotate: bool = False

    @classmethod
    def of(cls, paths: Iterable[Path], *, rotate: bool = False, channels: int = 3) -> CropCache:
        """Raises: DataError where there is none, or one cannot be read."""
        files = list(paths)
        if not files:
            raise DataError("no pictures to train on: the folder is empty, or every file was left out")
        return cls(read_all(files, channels=channels), rotate)

    def subset(self, chosen: Sequence[int]) -> CropCache:
        """The pictures of those numbers alone."""
        return replace(self, pictures=[self.pictures[number] for number in chosen])

    def crop(self, size: int, choice: Plan, zoom: float = 1.0) -> Tensor:
        """Values `(C, size, size)`, bytes where the pictures are; a picture that is too small goes on mirrored.
        Raises: DataError for one that is too small by more than `MOST_MIRRORED`.

        zoom: the part that is cut out has `zoom` times the side, as far as the picture allows, and is reduced to
        `size`.
        """
        which, top, left, mirror, flip, quarter = choice
        picture = self.pictures[int(which * len(self.pictures))]
        _, height, width = picture.shape
        if MOST_MIRRORED * min(height, width) < size:
            raise DataError(
                f"a picture of {width} x {height} is too small for crops of {size}, which would be mirror images for "
                "the most part; reduce data.crop, or leave such pictures out"
            )
        if height < size or width < size:
            picture = _mirrored(picture, size)
            _, height, width = picture.shape
        side = max(size, min(round(size * zoom), height, width))
        y, x = int(top * (height - side + 1)), int(left * (width - side + 1))
        part = picture[:, y : y + side, x : x + side]
        if side != size:
            part = _reduced(part, size)
        axes = [axis for axis, drawn in ((2, mirror), (1, flip)) if drawn < 0.5 and (self.rotate or axis == 2)]
        if axes:
            part = part.flip(axes)
        return part.transpose(1, 2) if self.rotate and quarter < 0.5 else part


def _reduced(part: Tensor, size: int) -> Tensor:
    small = F.interpolate(part[None].float(), (size, size), mode="bilinear", antialias=True)[0]
    return small if part.is_floating_point() else small.round().to(part.dtype)


def _mirrored(picture: Tensor, size: int) -> Tensor:
    for axis in (1, 2):
        length = picture.shape[axis]
        if length < size:
            there = torch.arange(size) % (2 * length)
            picture = picture.index_select(axis, torch.minimum(there, 2 * length - 1 - there))
    return picture


def as_floats(crops: Sequence[Tensor]) -> Tensor:
    """Bytes `(C, h, w)` each → `(B, C, h, w)` floats in [0, 1]."""
    return torch.stack(list(crops)).float().div_(255)
