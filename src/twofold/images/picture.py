"""One image in memory, `Picture`, and its conversion from and to rows of samples in files."""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from twofold.contracts import ImageError, check_images
from twofold.images.metadata import Metadata

ORIENTATION = 0x0112
ICC_TAG = 34675
DECODING_ERRORS = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error)
"""What Pillow raises for files that are damaged, or that a format cannot hold."""

# What says something about a picture; all else in the first directory of a TIFF file says how its pixels lie there.
_DESCRIPTIVE_TAGS = {*range(269, 273), 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096)}
_DESCRIPTIVE_DIRECTORIES = {ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}
_quiet_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, upright, with what its file said about it.

    pixels: `(1, C, H, W)` float32 in [0, 1], C 1 (grey) or 3 (RGB). alpha: `(1, 1, H, W)` or None.
    bits: 8 or 16, per sample. exif: a block without its `Exif` header, orientation 1, no thumbnail (it would show the
    picture as it was); empty if there is none. profile: ICC, empty if there is none. frames: more than 1 for an
    animation or a document of several pages, of which this is the first. metadata: what else the file says of it.
    damage: what is missing of an image that was read from a damaged file, else empty.

    A restored picture is `dataclasses.replace(picture, pixels=restored)`.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    exif: bytes = b""
    profile: bytes = b""
    frames: int = 1
    metadata: Metadata = field(default_factory=Metadata)
    damage: str = ""


def picture_of(samples: NDArray[Any]) -> Picture:
    """`(H, W, S)` uint8, uint16 or float32, S 1 to 4, as an upright picture without metadata."""
    if samples.size == 0:
        raise ImageError(f"has no pixels, its shape is {samples.shape}")
    colours = 1 if samples.shape[2] < 3 else 3
    integer = np.issubdtype(samples.dtype, np.integer)
    # torch has little for uint16, so widening is numpy's work.
    planes = torch.from_numpy(np.ascontiguousarray(samples.transpose(2, 0, 1), dtype=np.float32))[None]
    if integer:
        planes = planes.div_(np.iinfo(samples.dtype).max)
    alpha = planes[:, colours:].contiguous() if samples.shape[2] > colours else None
    return Picture(planes[:, :colours].contiguous(), alpha, 16 if samples.dtype == np.uint16 else 8)


def interleaved(picture: Picture, *, alpha: bool) -> Tensor:
    """`(H, W, S)`: colours, and alpha if wanted and there."""
    pixels = check_images(picture.pixels, name="picture")
    if pixels.shape[0] != 1:
        raise ImageError(f"picture: expected one, got a batch of {pixels.shape[0]}")
    planes = pixels[0].detach()
    if alpha and picture.alpha is not None:
        if picture.alpha.shape[2:] != pixels.shape[2:]:
            raise ImageError(f"alpha has shape {tuple(picture.alpha.shape)}, the pixels {tuple(pixels.shape)}")
        planes = torch.cat((planes, picture.alpha[0].to(planes)))
    return planes.permute(1, 2, 0)


def integer_samples(picture: Picture, bits: int, *, alpha: bool) -> NDArray[Any]:
    """`(H, W, S)` uint8 or uint16, rounded to nearest."""
    white = 2**bits - 1
    samples = interleaved(picture, alpha=alpha).float().clamp(0, 1).mul_(white).round_()
    return np.ascontiguousarray(samples.cpu().numpy().astype(np.uint8 if bits == 8 else np.uint16))


def upright(samples: NDArray[Any], orientation: object) -> NDArray[Any]:
    """A view of `(H, W, S)` samples, turned and mirrored as the EXIF orientation 1 to 8 says."""
    if orientation in (5, 6, 7, 8):
        samples = samples.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples[::-1] if orientation in (3, 4, 7, 8) else samples


def descriptive(exif: Image.Exif) -> Image.Exif:
    """A copy of what `exif` says about the picture, without what is too damaged to be written again."""
    kept = Image.Exif()
    for tag in sorted((_DESCRIPTIVE_TAGS | _DESCRIPTIVE_DIRECTORIES) & set(exif)):
        alone = Image.Exif()
        with contextlib.suppress(*DECODING_ERRORS, ArithmeticError, AttributeError):
            alone[tag] = _directory(exif, tag) if tag in _DESCRIPTIVE_DIRECTORIES else exif[tag]
            alone.tobytes()
            kept[tag] = alone[tag]
    return kept


def _directory(exif: Image.Exif, tag: int) -> dict[int, Any]:
    entries = dict(exif.get_ifd(tag))
    if ExifTags.IFD.Interop in entries:  # until here the place of one more directory in the old block
        entries[ExifTags.IFD.Interop] = exif.get_ifd(ExifTags.IFD.Interop)
    return entries


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppresses the warnings of Pillow and tifffile about damaged files; locked, since warning filters are
    process-wide.
    """
    logger = logging.getLogger("tifffile")
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before


def neutral_exif(exif: bytes) -> bytes:
    """The block with orientation 1 and no link to its thumbnail; patched, since rewriting would break maker notes."""
    block = bytearray(exif.removeprefix(b"Exif\0\0"))
    order = "<" if block[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, directory)
        end = directory + 2 + 12 * count
        for entry in range(directory + 2, end, 12):
            if struct.unpack_from(order + "H", block, entry)[0] == ORIENTATION:
                struct.pack_into(order + "H", block, entry + 8, 1)
        struct.pack_into(order + "I", block, end, 0)
    except struct.error:  # none, or damaged beyond use
        return b""
    return bytes(block)
