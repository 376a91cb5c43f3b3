"""Which file formats are known: their suffixes, and the Pillow plugin that decodes a file, by its first bytes."""

from __future__ import annotations

from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from twofold.contracts import ImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""Of the formats that are read and written."""

READABLE = (*SUFFIXES, ".avif", ".gif", ".heic", ".heif")
"""Of the formats that are read."""

RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw")
"""Of cameras' own formats. Most are TIFF files whose first page is a small preview, no photograph to restore."""

UNREADABLE = (*RAW, ".exr", ".hdr", ".jp2", ".jxl", ".pgm", ".ppm", ".psd", ".svg", ".tga", ".xcf")
"""Of images that are not read, so that a folder of them is not left out without a message."""

HEAD = 64
"""Bytes at the beginning of a file that tell its format."""

# By plugin rather than by Image.open, whose size check warns, cannot be set per call, and which lets other formats in.
_OPENERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
    (b"BM", BmpImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
)
_RAW_HEADS = (b"II*\0\x10\0\0\0CR", b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR")
DNG_VERSION = 50706
"""The TIFF tag that every DNG file has."""
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def opener_of(head: bytes) -> type[ImageFile.ImageFile]:
    """The plugin for a file that begins with `head`, at least `HEAD` bytes where the file has as many.

    Raises: ImageError for a format that is not known, or whose decoder is not installed.
    """
    if head.startswith(_RAW_HEADS) or head[4:12] == b"ftypcrx ":
        raise raw_error()
    for magic, opener in _OPENERS:
        if head.startswith(magic):
            return opener
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImageFile
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in (8, *range(16, min(int.from_bytes(head[:4]), len(head)), 4))}
        if brands & _AVIF:
            return _avif()
        if brands & _HEIC:
            return _heic()
    raise ImageError(f"not a JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC file, it begins with {head[:8]!r}")


def raw_error() -> ImageError:
    """The error for a camera's RAW file, with the way out."""
    return ImageError(
        "is a RAW file of a camera, which is not read; convert it first: `darktable-cli IN OUT.tif`, or "
        "`rawtherapee-cli -t -o OUT.tif -c IN`"
    )


def _avif() -> type[ImageFile.ImageFile]:
    try:
        from PIL.AvifImagePlugin import SUPPORTED, AvifImageFile
    except ImportError:
        SUPPORTED = False
    if not SUPPORTED:
        raise ImageError("is an AVIF file, which this Pillow cannot read; pip install 'pillow>=11.3', or convert it")
    return AvifImageFile


def _heic() -> type[ImageFile.ImageFile]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError("is a HEIC file; to read those: pip install 'twofold[heic]', or convert it to JPEG") from None
    opener: type[ImageFile.ImageFile] = HeifImageFile
    return opener
