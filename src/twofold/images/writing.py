"""`Picture` → files. Pillow encodes all but 16-bit PNG and TIFF, which are put together from zlib streams."""

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
from twofold.images.formats import SUFFIXES
from twofold.images.metadata import PNG_MAGIC, XMP_TAG, Metadata, is_srgb, png_chunk, png_chunks, whole_dpi
from twofold.images.picture import DECODING_ERRORS, ICC_TAG, Picture, descriptive, integer_samples, quietly


def write(path: str | os.PathLike[str], picture: Picture, *, quality: int | None = None) -> None:
    """Writes `picture` in the format that the suffix names; the only place where values are clamped and rounded.

    quality: 1 to 100 for JPEG (95 without it; colour is not subsampled from 90 on) and WebP (lossless without it); the
    other formats are lossless and have none. PNG and TIFF keep 16 bits, the others have 8; `not_kept` says what else a
    format cannot hold. The file is complete or absent.

    Raises: ImageError for a picture that cannot be written, TwofoldError where its folder is missing or the disk full.
    """
    path = Path(path)
    content = encoded(picture, path.suffix, quality=quality)
    if not path.parent.is_dir():  # more likely a slip than a wish
        raise TwofoldError(f"cannot write {path}: there is no folder {path.parent}")
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def encoded(picture: Picture, suffix: str, *, quality: int | None = None) -> bytes:
    """The bytes of a file of the format that `suffix` (".png") names; see `write`."""
    suffix = suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(f"cannot write a {suffix or 'file without suffix'!s}; use one of {' '.join(SUFFIXES)}")
    if picture.bits not in (8, 16):
        raise ImageError(f"expected 8 or 16 bits per sample, got {picture.bits}")
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"quality goes from 1 to 100, got {quality}")
    bits = picture.bits if suffix in (".png", ".tif", ".tiff") else 8
    samples = integer_samples(picture, bits, alpha=suffix not in _WITHOUT_ALPHA)
    profile = picture.profile if _profile_fits(picture) else b""
    if suffix in (".tif", ".tiff"):
        return _tiff(samples, picture.exif, profile, picture.metadata)
    if bits == 16:
        return _png16(samples, picture.exif, profile, picture.metadata)
    metadata = picture.metadata
    exif = b"Exif\0\0" + picture.exif if picture.exif else b""
    options: dict[str, Any] = {}
    if suffix in (".jpg", ".jpeg"):
        quality = 95 if quality is None else quality
        options = {"format": "JPEG", "quality": quality, "subsampling": 0 if quality >= 90 else 2}
        options |= {"exif": exif if len(exif) < _SEGMENT else b"", "dpi": whole_dpi(metadata) or b""}
        options |= {name: block if len(block) < _SEGMENT else b"" for name, block in _jpeg_blocks(metadata)}
    elif suffix == ".webp":
        options = {"format": "WEBP", "exif": exif, "xmp": metadata.xmp}
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality}
    elif suffix == ".png":
        options = {"format": "PNG", "exif": exif}
    else:
        options = {"format": "BMP", "dpi": whole_dpi(metadata) or b""}
    buffer = io.BytesIO()
    try:
        Image.fromarray(samples.squeeze(2) if samples.shape[2] == 1 else samples).save(
            buffer, icc_profile=profile or None, **{key: value for key, value in options.items() if value != b""}
        )
    except DECODING_ERRORS as error:  # a side beyond the format's limit (WebP: 16383, JPEG: 65535)
        raise ImageError(f"cannot be written as {suffix}: {error}; choose another format") from error
    content = buffer.getvalue()
    if suffix == ".png":  # behind signature and IHDR
        content = content[:33] + png_chunks(metadata, profile=bool(profile)) + content[33:]
    return content


_WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp")
_SEGMENT = 65_500
"""Bytes that one segment of a JPEG file can hold."""


def _jpeg_blocks(metadata: Metadata) -> list[tuple[str, bytes]]:
    return [("xmp", metadata.xmp), ("comment", metadata.comment)]


def _profile_fits(picture: Picture) -> bool:
    return picture.profile[16:20] == (b"GRAY" if picture.pixels.shape[1] == 1 else b"RGB ")


def not_kept(picture: Picture, suffix: str) -> list[str]:
    """What of `picture` is not in a file of the format that `suffix` names: "transparency", "XMP" and so on.

    Rounding to 8 bits is not named.

    >>> import torch
    >>> not_kept(Picture(torch.zeros(1, 3, 2, 2), alpha=torch.ones(1, 1, 2, 2)), ".jpg")
    ['transparency']
    """
    suffix = suffix.lower()
    jpeg, png, bmp = suffix in (".jpg", ".jpeg"), suffix == ".png", suffix == ".bmp"
    metadata = picture.metadata
    lost = {
        "transparency": picture.alpha is not None and suffix in _WITHOUT_ALPHA,
        "EXIF": bool(picture.exif) and (bmp or (jpeg and len(picture.exif) + 6 >= _SEGMENT)),
        "colour profile": bool(picture.profile) and (bmp or not _profile_fits(picture)),
        "XMP": bool(metadata.xmp) and (bmp or (jpeg and len(metadata.xmp) >= _SEGMENT)),
        "comment": bool(metadata.comment) and not (png or (jpeg and len(metadata.comment) < _SEGMENT)),
        "resolution": metadata.dpi is not None and suffix == ".webp" and not picture.exif,
        "text": bool(metadata.text) and not png,
        "colour coding (cICP, gAMA)": not png and not is_srgb(metadata),
    }
    return [name for name, is_lost in lost.items() if is_lost]


def _png16(samples: NDArray[np.uint16], exif: bytes, profile: bytes, metadata: Metadata) -> bytes:
    """A PNG file of `(H, W, S)` 16-bit samples, each row as differences to the pixel on the left (filter 1)."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.ones((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 1:] = rows
    filtered[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [PNG_MAGIC, png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    parts.append(png_chunks(metadata, profile=bool(profile)))
    if profile:
        parts.append(png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif:
        parts.append(png_chunk(b"eXIf", exif))
    parts += [png_chunk(b"IDAT", zlib.compress(filtered.tobytes())), png_chunk(b"IEND", b"")]
    return b"".join(parts)


def _tiff(samples: NDArray[Any], exif: bytes, profile: bytes, metadata: Metadata) -> bytes:
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
    if metadata.xmp:
        tags[XMP_TAG] = metadata.xmp
    if metadata.dpi is not None:
        tags |= {282: metadata.dpi[0], 283: metadata.dpi[1], 296: 2}
    for tag, value in tags.items():
        directory[tag] = value
    return directory.tobytes()[6:] + strip
