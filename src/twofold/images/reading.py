"""Files, bytes, PIL images → `Picture`. Pillow decodes; 16-bit colour, which it would read as 8-bit, in two halves."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from twofold.contracts import ImageError
from twofold.images.formats import DNG_VERSION, HEAD, RAW, READABLE, opener_of, raw_error
from twofold.images.metadata import XMP_TAG, Metadata, metadata_of, without_orientation
from twofold.images.picture import (
    DECODING_ERRORS,
    ICC_TAG,
    ORIENTATION,
    Picture,
    descriptive,
    neutral_exif,
    picture_of,
    quietly,
    upright,
)

LARGEST = 2**31
"""Bytes of the largest image that is read by default, as 32-bit floating-point samples (RGB of 178 megapixels)."""

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_PREMULTIPLIED = 1
_FLOAT = 3
_BLOCK = 16
"""Rows that a JPEG file stores together, at most."""
_END_OF_JPEG = 64 * b"\xff\xd9"


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
        if file.suffix.lower() in READABLE
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def read(path: str | os.PathLike[str], *, largest: int = LARGEST, partial: bool = False) -> Picture:
    """The image in a JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC file, whatever its suffix says.

    largest: bytes of its samples as 32-bit floating-point numbers; a file whose header promises more is refused before
    anything is decoded, and so is one that promises more than a photograph in a file of its size can hold. For WebP,
    Pillow's own limit of 179 megapixels also holds. partial: decode a JPEG file that ends early as far as it goes,
    which `Picture.damage` then says.

    EXIF orientation is applied. A palette becomes RGB; CMYK becomes sRGB, by its ICC profile where it has one. Of
    several frames or pages the first is read.
    Raises: ImageError for anything that cannot be read.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
            raise ImageError("is a pipe or a device, not a file; pass the content of a pipe as standard input, named -")
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size, str(path), largest, partial)
    except ImageError as error:
        raise error if str(error).startswith(str(path)) else ImageError(f"{path}: {error}") from error
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{path}: no such file") from None
    except PermissionError:
        raise ImageError(f"{path}: may not be read; change its permissions") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, expected an image file") from None
    except (OSError, ValueError) as error:  # a failing disk; a zero byte in the name
        raise ImageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def decoded(
    content: bytes | IO[bytes], *, name: str = "bytes", largest: int = LARGEST, partial: bool = False
) -> Picture:
    """The image in the bytes of a file, or in a binary stream from where it stands; otherwise as `read`.

    name: of the image in error messages.
    """
    if not isinstance(content, bytes):
        try:
            content = content.read()
        except (OSError, ValueError) as error:  # the latter: a closed stream
            raise ImageError(f"{name}: cannot be read ({error})") from error
        if not isinstance(content, bytes):
            raise ImageError(
                f"{name}: expected a stream of bytes, got one of {type(content).__name__}; open it in 'rb'"
            )
    return _read(io.BytesIO(content), len(content), name, largest, partial)


def _read(file: IO[bytes], size: int, name: str, largest: int, partial: bool) -> Picture:
    try:
        if size == 0:
            raise ImageError("the file is empty (0 bytes)")
        opener = opener_of(file.read(HEAD))
        if opener is TiffImageFile and Path(name).suffix.lower() in RAW:
            raise raw_error()
        try:
            return _decode(file, opener, size, largest)
        except ImageError:
            raise
        except DECODING_ERRORS:
            if not (partial and opener is JpegImageFile):
                raise
            return _partial(file, size, largest)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it") from None
    except Image.DecompressionBombError as error:  # WebP: Pillow's own check, whose limit belongs to the whole process
        limit = str(error).partition(",")[0].lower()
        raise ImageError(f"{name}: {limit}; make it smaller or save it as PNG or TIFF") from error
    except DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: cannot be decoded, the file is damaged or unusual ({reason})") from error


def _partial(file: IO[bytes], size: int, largest: int) -> Picture:
    """A JPEG file that ends early. Behind an end marker, the decoder fills with grey what it has no data for."""
    file.seek(0)
    whole = io.BytesIO(file.read() + _END_OF_JPEG)
    picture = _decode(whole, JpegImageFile, size, largest)
    whole.seek(0)
    stored = JpegImageFile(whole)  # again, since the rows that are missing are those of the file, not the upright ones
    stored.load()
    samples = np.asarray(stored)
    blank = (samples == 128).reshape(samples.shape[0], -1).all(1)
    rows = int(np.flatnonzero(~blank).max(initial=-1)) + 1
    if rows <= _BLOCK and blank.any():
        raise ImageError("the file ends within the first rows of the image")
    lost = "detail is missing" if rows == len(blank) else f"{len(blank) - rows} of {len(blank)} rows are missing"
    return replace(picture, damage=f"the file ends early, {lost}")


def _decode(file: IO[bytes], opener: type[ImageFile.ImageFile], size: int, largest: int) -> Picture:
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
    _check_size(*image.size, len(image.getbands()), size, largest)
    deep = _deep_modes(image)
    if not deep:
        return replace(from_pil(image), metadata=metadata_of(image, file))
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
    picture = _with_metadata(_with_transparent_colour(samples, half), half)
    return replace(picture, metadata=metadata_of(half, file))


def _load(image: Image.Image) -> None:
    with quietly() if isinstance(image, TiffImageFile) else contextlib.nullcontext():
        image.load()


def _check_size(width: int, height: int, channels: int, size: int, largest: int) -> None:
    """Before decoding. size: bytes of the file."""
    samples = width * height * channels
    needed = samples * 4
    shape = f"{width} x {height} pixels of {channels} channel{'s' * (channels > 1)}"
    if needed > largest:
        raise ImageError(
            f"{shape} need {needed / 1e6:.0f} MB, the limit is {largest / 1e6:g} MB; make it smaller or cut it in parts"
        )
    # DEFLATE shrinks at most 1032 times, and photographs a hundred times at most; flat masks of usual size may pass.
    flat = 1000 * size if needed <= 2**30 else 200 * size
    if samples > flat and width * height > 16_000_000:
        raise ImageError(f"its header promises {shape} in {size} bytes; no photograph compresses so far: file damaged")


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
    if DNG_VERSION in page.tags:
        raise raw_error()
    if page.sampleformat == _FLOAT:
        raise ImageError("holds floating-point samples, whose range is unknown; convert it to 16-bit integers first")
    unusual = page.samplesperpixel == 2 or (page.samplesperpixel > 2 and page.planarconfig == 2)
    if page.bitspersample != 16 or not unusual:
        return None
    _check_size(page.imagewidth, page.imagelength, page.samplesperpixel, size, largest)
    samples = _tifffile_samples(page)
    exif = Image.Exif()
    exif.bigtiff, exif.endian = document.is_bigtiff, document.byteorder
    exif.load_from_fp(file, page.offset)
    profile = _profile(page.tags.valueof(ICC_TAG))
    xmp = page.tags.valueof(XMP_TAG)
    return replace(
        picture_of(upright(samples, exif.get(ORIENTATION, 1))),
        exif=neutral_exif(_tiff_exif(exif)),
        profile=profile,
        frames=len(document.pages),
        metadata=Metadata(xmp=without_orientation(xmp) if isinstance(xmp, bytes) else b""),
    )


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
    """A PIL image of any mode as a `Picture`. Raises: ImageError where it cannot be decoded."""
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
        return _with_metadata(_with_transparent_colour(samples, image), image)
    if image.mode == "F":
        raise ImageError("holds 32-bit floating-point samples, whose range is unknown; convert it to 16 bits first")
    if image.mode == "CMYK":
        return _with_metadata(np.asarray(_cmyk_to_srgb(image, profile)), image, profile=b"")
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = transparent or image.mode in ("LA", "La", "RGBA", "RGBa", "PA")
    mode = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
    plain = image if image.mode == mode else image.convert(mode)
    samples = np.asarray(plain)
    return _with_metadata(samples[..., None] if samples.ndim == 2 else samples, image)


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


def _with_metadata(samples: NDArray[Any], image: Image.Image, *, profile: bytes | None = None) -> Picture:
    """Takes what is known only after decoding: PNG may keep EXIF last, and Pillow itself turns TIFF upright."""
    if profile is None:
        profile = _profile(image.info.get("icc_profile"))
    with quietly():
        with contextlib.suppress(*DECODING_ERRORS):  # a damaged block, which Pillow then takes for an empty one
            image.getexif()
        exif = image.getexif()
        kept = _tiff_exif(exif) if isinstance(image, TiffImageFile) else image.info.get("exif", b"")
        frames = getattr(image, "n_frames", 1)
    return replace(
        picture_of(upright(samples, exif.get(ORIENTATION, 1))),
        exif=neutral_exif(kept if isinstance(kept, bytes) else b""),
        profile=profile,
        frames=frames,
        metadata=metadata_of(image),
    )


def _tiff_exif(exif: Image.Exif) -> bytes:
    kept = descriptive(exif)
    return kept.tobytes() if len(kept) else b""
