"""Metadata of image files besides EXIF and ICC profile: XMP, comment, resolution, text, PNG colour chunks."""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

XMP_TAG = 700
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_COLOUR_CHUNKS = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}  # and their lengths
_XMP_KEYWORD = "XML:com.adobe.xmp"
_LARGEST = 1 << 20
"""Bytes of one text or XMP block that is kept; a larger one is left behind."""


@dataclass(frozen=True)
class Metadata:
    """Metadata that a format stores outside EXIF and ICC; empty fields mean that the file has none.

    xmp: the packet. comment: of a JPEG or GIF file. dpi: pixels per inch (horizontal, vertical). text: (keyword, text)
    of PNG. colour: (name, content) of the PNG chunks cICP, gAMA, cHRM and sRGB, which say how samples become colours.
    """

    xmp: bytes = b""
    comment: bytes = b""
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()
    colour: tuple[tuple[bytes, bytes], ...] = ()


def metadata_of(image: Image.Image, file: IO[bytes] | None = None) -> Metadata:
    """The metadata of a decoded image. file: of a PNG image, whose colour chunks Pillow does not keep as they are."""
    info = image.info
    text: tuple[tuple[str, str], ...] = ()
    if isinstance(image, PngImageFile):
        pairs = [(str(key), str(value)) for key, value in image.text.items()]
        text = tuple((key, value) for key, value in pairs if _is_text(key, value))
    colour = _colour_chunks(file) if file is not None and isinstance(image, PngImageFile) else ()
    return Metadata(
        without_orientation(_block(info.get("xmp"))), _block(info.get("comment")), _dpi(info.get("dpi")), text, colour
    )


def _block(value: object) -> bytes:
    return value if isinstance(value, bytes) and len(value) <= _LARGEST else b""


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = map(float, value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (across, down) if min(across, down) >= 1 and max(across, down) < 65_535 else None  # also refuses NaN


def _is_text(key: str, value: str) -> bool:
    """Whether PNG can hold it; not the EXIF and XMP that some programs store as text, which are kept elsewhere."""
    keyword = 0 < len(key) < 80 and key.isprintable() and key.isascii() and key == key.strip()
    other = key == _XMP_KEYWORD or key.startswith("Raw profile type")
    return keyword and not other and len(value) <= _LARGEST and "\0" not in value


def without_orientation(xmp: bytes) -> bytes:
    """An XMP packet in which the orientation is 1: pixels are stored upright."""
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", xmp)


def _colour_chunks(file: IO[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    file.seek(len(PNG_MAGIC))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND"):
            break
        if _COLOUR_CHUNKS.get(kind) == length:
            found.append((kind, file.read(length)))
            length = 0
        file.seek(length + 4, 1)  # the checksum too, which Pillow has compared
    return tuple(dict(found).items())


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file: length, kind, content and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_chunks(metadata: Metadata, *, profile: bool) -> bytes:
    """The chunks that hold `metadata`, to stand between IHDR and the pixels. profile: the file has an ICC profile, next
    to which PNG allows no sRGB chunk.
    """
    chunks = [png_chunk(kind, content) for kind, content in metadata.colour if not (profile and kind == b"sRGB")]
    if metadata.dpi is not None:
        per_metre = [round(dpi / 0.0254) for dpi in metadata.dpi]
        chunks.append(png_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if metadata.xmp:
        chunks.append(png_chunk(b"iTXt", _XMP_KEYWORD.encode() + b"\0\0\0\0\0" + metadata.xmp))
    text = dict(metadata.text)
    if metadata.comment:
        text.setdefault("Comment", metadata.comment.decode("utf-8", "replace"))
    chunks += [png_chunk(b"iTXt", key.encode() + b"\0\0\0\0\0" + value.encode()) for key, value in text.items()]
    return b"".join(chunks)


def whole_dpi(metadata: Metadata) -> tuple[int, int] | None:
    """The resolution as JPEG and BMP files take it."""
    return None if metadata.dpi is None else (math.floor(metadata.dpi[0] + 0.5), math.floor(metadata.dpi[1] + 0.5))


def is_srgb(metadata: Metadata) -> bool:
    """Whether a reader that ignores the PNG colour chunks shows the same colours."""
    colour = dict(metadata.colour)
    if b"cICP" in colour:
        return colour[b"cICP"][:2] == b"\x01\x0d"  # primaries of BT.709, transfer of sRGB
    return b"sRGB" in colour or colour.get(b"gAMA", struct.pack(">I", 45455)) == struct.pack(">I", 45455)
