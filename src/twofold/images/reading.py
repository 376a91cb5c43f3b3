"""Files and PIL images → `Picture`. Pillow decodes; 16-bit colour, which it would read as 8-bit, in two halves."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from twofold.contracts import ImageError
from twofold.images.picture import (
    DECODING_ERRORS,
    ICC_TAG,
    ORIENTATION,
    SUFFIXES,
    Picture,
    descriptive,
    picture_of,
    quietly,
    upright,
)

LARGEST = 250_000_000
"""Pixels of the largest picture that is read by default."""

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_PREMULTIPLIED = 1
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


def find(paths: Iterable[str | os.PathLike[str]], *, recursive: bool = True) -> list[Path]:
    """The files among `paths` as they are, and the pictures (by suffix) of the folders among them, sorted.

    Hidden files and folders are skipped. Raises: ImageError for a path that is not there, or cannot be looked at.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            folder = stat.S_ISDIR(path.stat().st_mode)
            found += _pictures(path, recursive=recursive) if folder else [path]
        except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a zero byte in the name
            raise ImageError(f"{path}: no such file or folder") from None
        except OSError as error:  # a folder that may not be entered, a name that is too long
            reason = error.strerror or error
            raise ImageError(f"{path}: cannot be looked at ({reason}); check the path and who may read it") from error
    return found


def _pictures(folder: Path, *, recursive: bool) -> list[Path]:
    return sorted(
        file
        for file in (folder.rglob("*") if recursive else folder.glob("*"))
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def read(path: str | os.PathLike[str], *, largest: int = LARGEST) -> Picture:
    """The picture in a JPEG, PNG, WebP, TIFF or BMP file, whatever its suffix says.

    largest: pixels; a file whose header promises more is refused before anything is decoded, and so is one that
    promises more than any compression could hold in a file of its size. For WebP, Pillow's own limit of 179 megapixels
    also holds.

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
    except PermissionError:
        raise ImageError(f"{path}: may not be read; change its permissions") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, expected a picture file") from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode it") from None
    except Image.DecompressionBombError as error:  # WebP: Pillow's own check, whose limit belongs to the whole process
        limit = str(error).partition(",")[0].lower()
        raise ImageError(f"{path}: {limit}; make it smaller or save it as PNG or TIFF") from error
    except DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be decoded, the file is damaged or unusual ({reason})") from error


def _decode_file(file: IO[bytes], opener: type[ImageFile.ImageFile], size: int, largest: int) -> Picture:
    def opened() -> ImageFile.ImageFile:
        file.seek(0)
        with quietly():
            return opener(file)

    file.seek(0)
    if opener is TiffImageFile:
        with quietly():
            picture = _unknown_to_pillow(file, size, largest)
        if picture is not None:
            return picture
    image = opened()
    _check_size(*image.size, size, largest)
    deep = _deep_modes(image)
    if not deep:
        return from_pil(image)
    halves = []
    for mode in deep:
        half = opened()
        half.tile = [tile._replace(args=_renamed(tile.args, mode)) for tile in half.tile]
        _load(half)
        halves.append(np.asarray(half))
    if len(halves) == 1:  # 16-bit grey and alpha, read as four bytes a pixel
        samples = halves[0].view(">u2").astype(np.uint16)
    else:
        samples = halves[0].astype(np.uint16) << 8 | halves[1]
    return _with_metadata(picture_of(_with_transparent_colour(samples, half)), half)


def _load(image: Image.Image) -> None:
    with quietly() if isinstance(image, TiffImageFile) else contextlib.nullcontext():
        image.load()


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


def _unknown_to_pillow(file: IO[bytes], size: int, largest: int) -> Picture | None:
    """A 16-bit TIFF file whose layout Pillow does not know: grey and alpha, or plane by plane; None for all others."""
    document = tifffile.TiffFile(file)
    page: Any = document.pages[0]
    unusual = page.samplesperpixel == 2 or (page.samplesperpixel > 2 and page.planarconfig == 2)
    if page.bitspersample != 16 or not unusual:
        return None
    _check_size(page.imagewidth, page.imagelength, size, largest)
    picture = picture_of(_tifffile_samples(page))
    exif = Image.Exif()
    exif.bigtiff, exif.endian = document.is_bigtiff, document.byteorder
    exif.load_from_fp(file, page.offset)
    profile = _profile(page.tags.valueof(ICC_TAG))
    return upright(picture, exif.get(ORIENTATION, 1), _tiff_exif(exif), profile, len(document.pages))


def _tifffile_samples(page: Any) -> NDArray[Any]:
    samples: NDArray[Any] = page.asarray()
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[2] > 4:
        raise ImageError(f"expected unsigned samples of at most four channels, got {samples.dtype} {samples.shape}")
    if page.photometric not in (_WHITE_IS_ZERO, 1, 2):
        name = getattr(page.photometric, "name", page.photometric)
        raise ImageError(f"holds 16-bit {name} samples, which are neither grey nor RGB; convert it to RGB first")
    if _PREMULTIPLIED in page.extrasamples:
        raise ImageError("holds 16-bit colours already multiplied by their alpha; convert it to RGB first")
    if page.photometric == _WHITE_IS_ZERO:
        colours = 1 if samples.shape[2] < 3 else 3
        samples = np.concatenate((65535 - samples[..., :colours], samples[..., colours:]), 2)
    return samples


def from_pil(image: Image.Image) -> Picture:
    _load(image)
    profile = _profile(image.info.get("icc_profile"))
    transparent = "transparency" in image.info
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageError(f"samples from {wide.min()} to {wide.max()} do not fit into 16 bits; convert it first")
        samples = wide.astype(np.uint16)[..., None]
        if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            samples = 65535 - samples  # Pillow inverts only 8-bit samples
        return _with_metadata(picture_of(_with_transparent_colour(samples, image)), image)
    if image.mode == "F":
        raise ImageError("holds 32-bit floating-point samples, whose range is unknown; convert it to 16 bits first")
    if image.mode == "CMYK":
        return _with_metadata(picture_of(np.asarray(_cmyk_to_srgb(image, profile))), image, profile=b"")
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = transparent or image.mode in ("LA", "La", "RGBA", "RGBa", "PA")
    mode = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
    plain = image if image.mode == mode else image.convert(mode)
    samples = np.asarray(plain)
    return _with_metadata(picture_of(samples[..., None] if samples.ndim == 2 else samples), image)


def _profile(tag: object) -> bytes:
    return tag if isinstance(tag, bytes) else b""  # none, or a TIFF tag of the wrong kind


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
    if profile is None:
        profile = _profile(image.info.get("icc_profile"))
    with quietly():
        with contextlib.suppress(*DECODING_ERRORS):  # a damaged block, which Pillow then takes for an empty one
            image.getexif()
        exif = image.getexif()
        kept = _tiff_exif(exif) if isinstance(image, TiffImageFile) else image.info.get("exif", b"")
        return upright(picture, exif.get(ORIENTATION, 1), kept, profile, getattr(image, "n_frames", 1))


def _tiff_exif(exif: Image.Exif) -> bytes:
    kept = descriptive(exif)
    return kept.tobytes() if len(kept) else b""
