"""Any picture file ↔ `Picture`: pixels as a float tensor in [0, 1], and beside them what must survive a restoration.

JPEG, PNG, WebP, TIFF and BMP; 8 and 16 bits; grey, colour, alpha. Pillow decodes and encodes. Two things it does not do
are here: it reads 16-bit colour as 8-bit (so the two halves of each sample are decoded separately), and writes none (so
16-bit PNG and all TIFF are put together from zlib streams).
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from twofold.contracts import ImageError, TwofoldError, check_images

Source: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor"

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
LARGEST = 250_000_000
"""Pixels of the largest picture that is read by default."""

_ORIENTATION = 0x0112
_ICC_TAG = 34675
# What EXIF has in its first directory; all else that a TIFF file keeps there describes how its pixels lie in the file.
_DESCRIPTIVE_TAGS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853}
# By plugin rather than by Image.open, whose size check warns, cannot be set per call, and which lets other formats in.
_OPENERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
    (b"BM", BmpImageFile),
)
_warnings_lock = threading.Lock()
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, upright, with what its file said about it.

    pixels: `(1, C, H, W)` float32 in [0, 1], C 1 (grey) or 3 (RGB). alpha: `(1, 1, H, W)` or None.
    bits: 8 or 16, per sample. exif: a block without its `Exif` header, orientation 1, no thumbnail (it would show the
    picture as it was); empty if there is none. profile: ICC, empty if there is none. frames: more than 1 for an
    animation or a document of several pages, of which this is the first.

    A restored picture is `dataclasses.replace(picture, pixels=restored)`.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    exif: bytes = b""
    profile: bytes = b""
    frames: int = 1


def find(paths: Iterable[str | os.PathLike[str]], *, recursive: bool = True) -> list[Path]:
    """The files among `paths` as they are, and the pictures (by suffix) of the folders among them, sorted.

    Hidden files and folders are skipped. Raises: ImageError for a path that is not there.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise ImageError(f"{path}: no such file or folder")
            found.append(path)
            continue
        inside = path.rglob("*") if recursive else path.glob("*")
        found += sorted(
            file
            for file in inside
            if file.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        )
    return found


def read(path: str | os.PathLike[str], *, largest: int = LARGEST) -> Picture:
    """The picture in a JPEG, PNG, WebP, TIFF or BMP file, whatever its suffix says.

    largest: pixels; a file whose header promises more is refused before anything is decoded, and so is one that
    promises more than any compression could hold in a file of its size.

    EXIF orientation is applied. A palette becomes RGB; CMYK becomes sRGB, by its ICC profile where it has one.
    Raises: ImageError for anything that cannot be read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ImageError(f"{path}: the file is empty (0 bytes)")
            head = file.read(12)
            opener = next((opener for magic, opener in _OPENERS if head.startswith(magic)), None)
            if opener is None or (opener is WebPImageFile and head[8:] != b"WEBP"):
                raise ImageError(f"{path}: not a JPEG, PNG, WebP, TIFF or BMP file, it begins with {head[:8]!r}")
            return _decode_file(file, opener, size, largest)
    except ImageError as error:
        raise error if str(error).startswith(str(path)) else ImageError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, expected a picture file") from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode it") from None
    except _DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be decoded, the file is damaged or unusual ({reason})") from error


def write(path: str | os.PathLike[str], picture: Picture) -> None:
    """Writes `picture` in the format that the suffix names; the only place where values are clamped and rounded.

    WebP is lossless, JPEG has quality 95 without colour subsampling. PNG and TIFF keep 16 bits, the others have 8; JPEG
    and BMP have no alpha, BMP no metadata. The file appears whole or not at all: it is written under a hidden temporary
    name beside its place and then renamed.

    Raises: ImageError for a picture that cannot be written, TwofoldError where the folder or the disk refuses.
    """
    path = Path(path)
    content = encoded(picture, path.suffix)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:  # after the rename there is nothing left to remove
            with contextlib.suppress(OSError):
                temporary.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise TwofoldError(f"{path}: cannot be written ({reason}); choose another output or make room") from error


def encoded(picture: Picture, suffix: str) -> bytes:
    """The bytes of a file of the format that `suffix` (".png") names."""
    suffix = suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(f"cannot write a {suffix or 'file without suffix'!s}; use one of {' '.join(SUFFIXES)}")
    if picture.bits not in (8, 16):
        raise ImageError(f"expected 8 or 16 bits per sample, got {picture.bits}")
    bits = picture.bits if suffix in (".png", ".tif", ".tiff") else 8
    samples = _quantised(picture, bits, alpha=suffix not in (".jpg", ".jpeg", ".bmp"))
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
    except _DECODING_ERRORS as error:  # a side beyond the format's limit (WebP: 16383, JPEG: 65535)
        raise ImageError(f"cannot be written as {suffix}: {error}; choose another format") from error
    return buffer.getvalue()


def from_any(source: Source) -> Picture:
    """A `Picture` of a path, a PIL image, an array, or a tensor.

    Arrays: `(H, W)` or `(H, W, 1 to 4)` (the second or fourth is alpha), uint8, uint16, or floating-point in [0, 1].
    Tensors: floating-point `(C, H, W)` or `(1, C, H, W)`, C 1 or 3, in [0, 1]; they are used as they are.

    >>> from_any(np.full((2, 3, 3), 255, np.uint8)).pixels.shape
    torch.Size([1, 3, 2, 3])
    """
    if isinstance(source, (str, os.PathLike)):
        return read(source)
    if isinstance(source, Image.Image):
        try:
            return _from_pil(source)
        except _DECODING_ERRORS as error:
            raise error if isinstance(error, ImageError) else ImageError(f"PIL image: {error}") from error
    if isinstance(source, Tensor):
        pixels = check_images(source[None] if source.ndim == 3 else source, name="image")
        if pixels.shape[0] != 1:
            raise ImageError(f"image: expected one picture, got a batch of {pixels.shape[0]}")
        return Picture(pixels)
    if not isinstance(source, np.ndarray):
        raise ImageError(f"expected a path, PIL image, numpy array or tensor, got {type(source).__name__}")
    samples = source[..., None] if source.ndim == 2 else source
    if samples.ndim != 3 or samples.shape[2] not in (1, 2, 3, 4) or samples.size == 0:
        raise ImageError(f"array: expected (H, W) or (H, W, 1 to 4), got {source.shape}; give the pictures one by one")
    if samples.dtype in (np.uint8, np.uint16):
        return _picture(samples)
    if not np.issubdtype(samples.dtype, np.floating):
        raise ImageError(f"array: expected uint8, uint16 or floating-point samples, got {samples.dtype}")
    picture = _picture(samples.astype(np.float32, copy=False))
    check_images(picture.pixels, name="array")
    return picture


def to_kind_of(picture: Picture, original: Source) -> Image.Image | NDArray[Any] | Tensor:
    """`picture` as the kind of thing that `original` is: PIL image (also for a path), array or tensor of its dtype.

    PIL images and integer arrays are clamped and rounded; tensors and floating-point arrays are left as they are. A
    16-bit colour picture becomes an 8-bit PIL image, because PIL has no other.
    """
    if isinstance(original, Tensor):
        pixels = picture.pixels.to(original)
        return pixels[0] if original.ndim == 3 else pixels
    if isinstance(original, np.ndarray):
        if np.issubdtype(original.dtype, np.floating):
            samples = _interleaved(picture, alpha=True).cpu().numpy().astype(original.dtype)
        else:
            samples = _quantised(picture, original.dtype.itemsize * 8, alpha=True)
        return samples.squeeze(2) if original.ndim == 2 and samples.shape[2] == 1 else samples
    deep = picture.bits == 16 and picture.pixels.shape[1] == 1 and picture.alpha is None
    samples = _quantised(picture, 16 if deep else 8, alpha=True)
    image = Image.fromarray(samples.squeeze(2) if samples.shape[2] == 1 else samples)
    if picture.exif:
        image.info["exif"] = b"Exif\0\0" + picture.exif
    if picture.profile:
        image.info["icc_profile"] = picture.profile
    return image


def _decode_file(file: IO[bytes], opener: type[ImageFile.ImageFile], size: int, largest: int) -> Picture:
    def opened() -> ImageFile.ImageFile:
        file.seek(0)
        with _without_warnings():
            return opener(file)

    file.seek(0)
    if opener is TiffImageFile and (page := _unknown_to_pillow(file)) is not None:
        _check_size(page.imagewidth, page.imagelength, size, largest)
        file.seek(0)
        exif = Image.Exif()
        exif.load_from_fp(file)
        profile = page.tags.valueof(_ICC_TAG, default=b"")
        return _upright(_picture(_tifffile_samples(page)), exif.get(_ORIENTATION, 1), _tiff_exif(exif), profile)
    image = opened()
    _check_size(*image.size, size, largest)
    deep = _deep_modes(image)
    if not deep:
        return _from_pil(image)
    halves = []
    for mode in deep:
        half = opened()
        half.tile = [tile._replace(args=_renamed(tile.args, mode)) for tile in half.tile]
        halves.append(np.asarray(half))
    if len(halves) == 1:  # 16-bit grey and alpha, read as four bytes a pixel
        samples = halves[0].view(">u2").astype(np.uint16)
    else:
        samples = halves[0].astype(np.uint16) << 8 | halves[1]
    return _with_metadata(_picture(_with_transparent_colour(samples, half)), half)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps Pillow's warnings about damaged camera notes to itself; locked, because filters belong to all threads."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_size(width: int, height: int, size: int, largest: int) -> None:
    pixels = width * height
    if pixels > largest:
        raise ImageError(f"{width} x {height} is {pixels / 1e6:.0f} megapixels, the limit is {largest / 1e6:g}")
    # DEFLATE shrinks at most 1032 times; lossless WebP has no such bound, but nobody's photograph is that flat.
    if pixels > 1000 * size and pixels > 16_000_000:
        raise ImageError(f"promises {width} x {height} pixels in {size} bytes, which no photograph can keep")


def _deep_modes(image: ImageFile.ImageFile) -> tuple[str, ...]:
    """Pillow's names for reading the high and the low bytes of 16-bit colour as two 8-bit pictures; else empty."""
    if not image.tile:
        return ()
    args = image.tile[0].args
    name, _, order = str(args if isinstance(args, str) else args[0] if args else "").partition(";16")
    if order not in ("B", "L", "N"):
        return ()
    if name == "LA":
        return ("RGBA",)
    if name not in ("RGB", "RGBA", "RGBX"):
        return ()
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    return (f"{name};16B", f"{name};16L") if big else (f"{name};16L", f"{name};16B")


def _renamed(args: Any, mode: str) -> Any:
    return (mode, *args[1:]) if isinstance(args, tuple) else mode


def _unknown_to_pillow(file: IO[bytes]) -> Any | None:
    """The first page of a 16-bit TIFF file whose layout Pillow does not know: grey and alpha, or plane by plane."""
    page: Any = tifffile.TiffFile(file).pages[0]
    unusual = page.samplesperpixel == 2 or (page.samplesperpixel > 2 and page.planarconfig == 2)
    return page if page.bitspersample == 16 and unusual else None


def _tifffile_samples(page: Any) -> NDArray[Any]:
    samples: NDArray[Any] = page.asarray()
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[2] > 4:
        raise ImageError(f"expected unsigned samples of at most four channels, got {samples.dtype} {samples.shape}")
    return samples


def _from_pil(image: Image.Image) -> Picture:
    with _without_warnings() if isinstance(image, TiffImageFile) else contextlib.nullcontext():
        image.load()
    profile = image.info.get("icc_profile") or b""
    transparent = "transparency" in image.info
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageError(f"samples from {wide.min()} to {wide.max()} do not fit into 16 bits; convert it first")
        return _with_metadata(_picture(_with_transparent_colour(wide.astype(np.uint16)[..., None], image)), image)
    if image.mode == "F":
        raise ImageError("holds 32-bit floating-point samples, whose range is unknown; convert it to 16 bits first")
    if image.mode == "CMYK":
        return _with_metadata(_picture(np.asarray(_cmyk_to_srgb(image, profile))), image, profile=b"")
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = transparent or image.mode in ("LA", "La", "RGBA", "RGBa", "PA")
    mode = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
    plain = image if image.mode == mode else image.convert(mode)
    samples = np.asarray(plain)
    return _with_metadata(_picture(samples[..., None] if samples.ndim == 2 else samples), image)


def _cmyk_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a damaged profile is no profile
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            if converted is not None:
                return converted
    return image.convert("RGB")


def _with_transparent_colour(samples: NDArray[np.uint16], image: Image.Image) -> NDArray[np.uint16]:
    """Adds the alpha of a 16-bit PNG that names one colour as transparent."""
    key = image.info.get("transparency")
    if key is None or samples.shape[2] not in (1, 3):
        return samples
    opaque = (samples != np.asarray(key, np.uint16)).any(2, keepdims=True)
    return np.concatenate((samples, opaque.astype(np.uint16) * 65535), 2)


def _with_metadata(picture: Picture, image: Image.Image, *, profile: bytes | None = None) -> Picture:
    """Takes what is known only after decoding: PNG may keep EXIF last, and Pillow itself turns TIFF upright."""
    with _without_warnings():
        exif = image.getexif()
    kept = _tiff_exif(exif) if isinstance(image, TiffImageFile) else image.info.get("exif", b"")
    if profile is None:
        profile = image.info.get("icc_profile") or b""
    return _upright(picture, exif.get(_ORIENTATION, 1), kept, profile, getattr(image, "n_frames", 1))


def _tiff_exif(exif: Image.Exif) -> bytes:
    kept = Image.Exif()
    for tag in sorted(_DESCRIPTIVE_TAGS & set(exif)):
        kept[tag] = exif.get_ifd(tag) if tag in (34665, 34853) else exif[tag]
    return kept.tobytes() if len(kept) else b""


def _upright(picture: Picture, orientation: object, exif: bytes, profile: bytes, frames: int = 1) -> Picture:
    def turned(planes: Tensor) -> Tensor:
        if orientation in (5, 6, 7, 8):
            planes = planes.transpose(2, 3)
        across = [3] if orientation in (2, 3, 6, 7) else []
        return planes.flip(across + ([2] if orientation in (3, 4, 7, 8) else [])).contiguous()

    alpha = None if picture.alpha is None else turned(picture.alpha)
    return Picture(turned(picture.pixels), alpha, picture.bits, _neutral_exif(exif), profile, frames)


def _neutral_exif(exif: bytes) -> bytes:
    """The block with orientation 1 and no link to its thumbnail; patched, since rewriting would break maker notes."""
    block = bytearray(exif.removeprefix(b"Exif\0\0"))
    order = "<" if block[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, directory)
        end = directory + 2 + 12 * count
        for entry in range(directory + 2, end, 12):
            if struct.unpack_from(order + "H", block, entry)[0] == _ORIENTATION:
                struct.pack_into(order + "H", block, entry + 8, 1)
        struct.pack_into(order + "I", block, end, 0)
    except struct.error:  # none, or damaged beyond use
        return b""
    return bytes(block)


def _picture(samples: NDArray[Any]) -> Picture:
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


def _interleaved(picture: Picture, *, alpha: bool) -> Tensor:
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


def _quantised(picture: Picture, bits: int, *, alpha: bool) -> NDArray[Any]:
    """`(H, W, S)` uint8 or uint16, rounded to nearest."""
    white = 2**bits - 1
    samples = _interleaved(picture, alpha=alpha).float().clamp(0, 1).mul_(white).round_()
    return np.ascontiguousarray(samples.cpu().numpy().astype(np.uint8 if bits == 8 else np.uint16))


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

    An EXIF block is a TIFF file without pixels: the pixels' tags join its directory, the strip is put behind it.
    """
    height, width, channels = samples.shape
    differences = samples.copy()
    differences[:, 1:] -= samples[:, :-1]
    strip = zlib.compress(differences.astype(samples.dtype.newbyteorder("<")).tobytes())
    directory = Image.Exif()
    if exif:
        directory.load(exif)
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
        tags[_ICC_TAG] = profile
    for tag, value in tags.items():
        directory[tag] = value
    return directory.tobytes()[6:] + strip
