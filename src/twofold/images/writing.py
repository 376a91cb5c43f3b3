"""`Picture` → files. Pillow encodes, but for 16-bit PNG and all TIFF: those are put together from zlib streams."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twofold.contracts import ImageError, TwofoldError
from twofold.files import replacing
from twofold.images.picture import DECODING_ERRORS, ICC_TAG, SUFFIXES, Picture, descriptive, integer_samples, quietly


def write(path: str | os.PathLike[str], picture: Picture) -> None:
    """Writes `picture` in the format that the suffix names; the only place where values are clamped and rounded.

    WebP is lossless, JPEG has quality 95 without colour subsampling. PNG and TIFF keep 16 bits, the others have 8; JPEG
    and BMP have no alpha, BMP no metadata. The file appears whole or not at all.

    Raises: ImageError for a picture that cannot be written, TwofoldError where its folder is missing or the disk full.
    """
    path = Path(path)
    content = encoded(picture, path.suffix)
    if not path.parent.is_dir():  # more likely a slip than a wish
        raise TwofoldError(f"cannot write {path}: there is no folder {path.parent}")
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def encoded(picture: Picture, suffix: str) -> bytes:
    """The bytes of a file of the format that `suffix` (".png") names."""
    suffix = suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(f"cannot write a {suffix or 'file without suffix'!s}; use one of {' '.join(SUFFIXES)}")
    if picture.bits not in (8, 16):
        raise ImageError(f"expected 8 or 16 bits per sample, got {picture.bits}")
    bits = picture.bits if suffix in (".png", ".tif", ".tiff") else 8
    samples = integer_samples(picture, bits, alpha=suffix not in (".jpg", ".jpeg", ".bmp"))
    grey = picture.pixels.shape[1] == 1
    profile = picture.profile if picture.profile[16:20] == (b"GRAY" if grey else b"RGB ") else b""
    if suffix in (".tif", ".tiff"):
        return _tiff(samples, picture.exif, profile)
    if bits == 16:
        return _png16(samples, picture.exif, profile)
    exif = b"Exif\0\0" + picture.exif if picture.exif else b""
    options: dict[str, Any] = {}
    if suffix in (".jpg", ".jpeg"):
        # One JPEG segment holds 64 kB; a larger block (from a PNG) has to stay behind.
        options = {"format": "JPEG", "quality": 95, "subsampling": 0, "exif": exif if len(exif) < 65_500 else b""}
    elif suffix == ".webp":
        options = {"format": "WEBP", "lossless": True, "exact": True, "exif": exif}
    elif suffix == ".png":
        options = {"format": "PNG", "exif": exif}
    else:
        options = {"format": "BMP"}
    buffer = io.BytesIO()
    try:
        Image.fromarray(samples.squeeze(2) if samples.shape[2] == 1 else samples).save(
            buffer, icc_profile=profile or None, **{key: value for key, value in options.items() if value != b""}
        )
    except DECODING_ERRORS as error:  # a side beyond the format's limit (WebP: 16383, JPEG: 65535)
        raise ImageError(f"cannot be written as {suffix}: {error}; choose another format") from error
    return buffer.getvalue()


def _png16(samples: NDArray[np.uint16], exif: bytes, profile: bytes) -> bytes:
    """A PNG file of `(H, W, S)` 16-bit samples, each row as differences to the pixel on the left (filter 1)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.ones((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 1:] = rows
    filtered[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if profile:
        parts.append(chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif:
        parts.append(chunk(b"eXIf", exif))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(filtered.tobytes())), chunk(b"IEND", b"")])


def _tiff(samples: NDArray[Any], exif: bytes, profile: bytes) -> bytes:
    """A TIFF file of `(H, W, S)` samples in one deflated strip.

    An EXIF block is a TIFF file without pixels: what its directory says about the picture is joined by the
    pixels' tags, and the strip is put behind.
    """
    height, width, channels = samples.shape
    differences = samples.copy()
    differences[:, 1:] -= samples[:, :-1]
    strip = zlib.compress(differences.astype(samples.dtype.newbyteorder("<")).tobytes())
    block = Image.Exif()
    with quietly():
        with contextlib.suppress(*DECODING_ERRORS):  # a damaged block is none
            block.load(exif)
        directory = descriptive(block)
    directory.endian = "<"
    tags: dict[int, Any] = {
        256: width,
        257: height,
        258: (samples.dtype.itemsize * 8,) * channels,
        259: 8,  # deflate
        262: 1 if channels < 3 else 2,  # black is zero, or RGB
        273: 0,  # where the strip begins, counted from the end of the directory; Pillow adds the directory's length
        277: channels,
        278: height,
        279: len(strip),
        284: 1,
        317: 2,  # differences to the pixel on the left
    }
    if channels in (2, 4):
        tags[338] = 2  # the last channel is alpha that is not multiplied in
    if profile:
        tags[ICC_TAG] = profile
    for tag, value in tags.items():
        directory[tag] = value
    return directory.tobytes()[6:] + strip
