"""Paths, bytes, streams, PIL images, arrays and tensors ↔ `Picture`."""

from __future__ import annotations

import os
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from twofold.contracts import ImageError, check_images
from twofold.images.picture import DECODING_ERRORS, Picture, integer_samples, interleaved, picture_of
from twofold.images.reading import decoded, from_pil, read

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[Any] | Tensor"

_FAR = 4.0
"""Noise and ringing leave [0, 1] by less than this; grey levels, unless the picture is all black, by more."""


def from_any(source: ImageLike, *, any_range: bool = False) -> Picture:
    """A `Picture` of a path, the bytes of a file, a binary stream, a PIL image, an array, or a tensor.

    Arrays: `(H, W)` or `(H, W, 1 to 4)` (the second or fourth is alpha), uint8, uint16, or floating-point in [0, 1].
    Tensors: floating-point `(C, H, W)` or `(1, C, H, W)`, C 1 or 3, in [0, 1]; they are used as they are, and may
    leave [0, 1] a little. any_range: or far, as maps of distances do.

    Raises: ImageError for what is none of these.

    >>> from_any(np.full((2, 3, 3), 255, np.uint8)).pixels.shape
    torch.Size([1, 3, 2, 3])
    """
    if isinstance(source, (str, os.PathLike)):
        return read(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return decoded(bytes(source))
    if isinstance(source, Image.Image):
        try:
            return from_pil(source)
        except DECODING_ERRORS as error:
            raise error if isinstance(error, ImageError) else ImageError(f"PIL image: {error}") from error
    if isinstance(source, Tensor):
        pixels = check_images(source[None] if source.ndim == 3 else source, name="image")
        if pixels.shape[0] != 1:
            raise ImageError(f"image: expected one picture, got a batch of {pixels.shape[0]}")
        return Picture(pixels if any_range else _check_range(pixels, name="image"))
    if not isinstance(source, np.ndarray):
        if hasattr(source, "read"):
            return decoded(source, name=str(getattr(source, "name", type(source).__name__)))
        kind = type(source).__name__
        raise ImageError(f"expected a path, bytes, a binary stream, PIL image, numpy array or tensor, got {kind}")
    samples = source[..., None] if source.ndim == 2 else source
    if samples.ndim != 3 or samples.shape[2] not in (1, 2, 3, 4) or samples.size == 0:
        raise ImageError(f"array: expected (H, W) or (H, W, 1 to 4), got {source.shape}; give the pictures one by one")
    if samples.dtype in (np.uint8, np.uint16):
        return picture_of(samples)
    if not np.issubdtype(samples.dtype, np.floating):
        raise ImageError(f"array: expected uint8, uint16 or floating-point samples, got {samples.dtype}")
    with np.errstate(over="ignore"):  # of float64: infinite values are refused below
        picture = picture_of(samples.astype(np.float32, copy=False))
    check_images(picture.pixels, name="array")
    if picture.alpha is not None:
        check_images(picture.alpha, name="alpha of the array")
    if not any_range:
        _check_range(picture.pixels, name="array")
    return picture


def _check_range(pixels: Tensor, *, name: str) -> Tensor:
    least, most = pixels.min().item(), pixels.max().item()
    if least < -_FAR or most > _FAR:
        white = 255 if max(-least, most) <= 255 else 65535
        raise ImageError(
            f"{name}: values from {least:.3g} to {most:.3g} are far outside [0, 1], so they look like grey levels; "
            f"divide by {white}"
        )
    return pixels


def to_kind_of(picture: Picture, original: ImageLike) -> Image.Image | NDArray[Any] | Tensor:
    """`picture` as the kind of thing that `original` is: array or tensor of its dtype, else a PIL image.

    PIL images and integer arrays are clamped and rounded; tensors and floating-point arrays are left as they are. A
    16-bit colour picture becomes an 8-bit PIL image, because PIL has no other.
    """
    if isinstance(original, Tensor):
        pixels = picture.pixels.to(original)
        return pixels[0] if original.ndim == 3 else pixels
    if isinstance(original, np.ndarray):
        if np.issubdtype(original.dtype, np.floating):
            samples = interleaved(picture, alpha=True).cpu().numpy().astype(original.dtype)
        else:
            samples = integer_samples(picture, original.dtype.itemsize * 8, alpha=True)
        return samples.squeeze(2) if original.ndim == 2 and samples.shape[2] == 1 else samples
    deep = picture.bits == 16 and picture.pixels.shape[1] == 1 and picture.alpha is None
    samples = integer_samples(picture, 16 if deep else 8, alpha=True)
    image = Image.fromarray(samples.squeeze(2) if samples.shape[2] == 1 else samples)
    if picture.exif:
        image.info["exif"] = b"Exif\0\0" + picture.exif
    if picture.profile:
        image.info["icc_profile"] = picture.profile
    return image
