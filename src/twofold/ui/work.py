"""What the buttons of the page do to the photographs of a visit; no word of gradio, and no layout."""

from __future__ import annotations

import io
import shutil
import time
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twofold import images
from twofold.contracts import GuidanceKind, ImageError, TwofoldError
from twofold.guess import guess
from twofold.images import Picture
from twofold.ui.restoring import Models, PageProgress, PageResult, Wishes
from twofold.ui.visits import Limits, Photo, Visit

PREVIEW, THUMBNAIL, EDITOR = 2000, 160, 800
"""Longest side in pixels of what is shown of a photograph, of its thumbnail, and of a map to paint on."""

_BYTES = 16
"""Of a pixel that is read: four channels of 32 bits."""

_VISIBLE = 3 / 255
"""A painted map differs from the shown one by more than rounding."""


class Stopped(Exception):
    """The user stopped the work."""


def receive(visit: Visit, source: Path, name: str, limits: Limits) -> Photo:
    """Copies a file that arrived into the visit, reads it and guesses its damage.

    Raises: TwofoldError for what is no picture, or exceeds a limit.
    """
    name = Path(name).name or "photograph"
    if len(visit.photos) >= limits.photographs:
        raise TwofoldError(f"{name}: this page holds {limits.photographs} photographs at once; remove some first")
    size = source.stat().st_size
    if size > limits.megabytes * 1e6:
        raise TwofoldError(f"{name}: {size / 1e6:.0f} MB, the limit of this page is {limits.megabytes} MB")
    number, folder = visit.place()
    upload = folder / f"upload{suffix_of(name)}"
    try:
        shutil.copyfile(source, upload)
        picture = images.read(upload, largest=int(limits.megapixels * 1e6) * _BYTES)
        height, width = picture.pixels.shape[-2:]
        if height * width > limits.megapixels * 1e6:
            seen = f"{width} x {height} is {height * width / 1e6:.1f} megapixels"
            raise TwofoldError(f"{name}: {seen}, the limit of this page is {limits.megapixels}; make it smaller")
        photo = Photo(number, name, upload, width, height, guess(picture.pixels))
        _write(folder / "before.jpg", picture, PREVIEW)
        _write(folder / "thumb.jpg", picture, THUMBNAIL)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, TwofoldError):
            raise TwofoldError(plainly(error, upload, name)) from error
        raise
    visit.photos[number] = photo
    return photo


def thumbnail(path: Path) -> Path:
    """A small JPEG beside a picture, made on first use."""
    small = path.with_name(f"{path.stem}-thumbnail.jpg")
    if not small.exists():
        _write(small, images.read(path), THUMBNAIL)
    return small


def suffix_of(name: str) -> str:
    """The suffix that a restored picture gets: that of the photograph, or PNG where such files cannot be written."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in images.SUFFIXES else ".png"


def plainly(error: BaseException, path: Path, name: str) -> str:
    """An error's message, with the user's name for the file in place of the server's."""
    message = str(error).replace(str(path), name)
    return message if name in message else f"{name}: {message}"


def restore_photograph(
    photo: Photo, models: Models, model: str, wishes: Wishes, *, suffix: str | None = None, progress: PageProgress
) -> None:
    """Restores a photograph and leaves the result, its map and its kernel in its folder. suffix: of the file to
    download; None keeps the photograph's.

    Raises: TwofoldError; Stopped where `progress` does.
    """
    started = time.perf_counter()
    try:
        picture = images.read(photo.upload)
        outcome = _restored(photo, models, model, picture, wishes, progress)
        restored = photo.folder / f"restored{suffix or suffix_of(photo.name)}"
        images.write(restored, outcome.picture)
        _write(photo.folder / "after.jpg", outcome.picture, PREVIEW)
        _keep_map(photo, outcome, models[model].kind, model)
        if outcome.kernel is not None and isinstance(wishes.kernel, int):
            kernel = outcome.kernel.detach().float().cpu()
            images.write(photo.folder / "kernel.png", Picture(kernel / kernel.max(), bits=16))
            photo.searched, photo.confidence = wishes.kernel, outcome.confidence
    except TwofoldError as error:
        raise TwofoldError(plainly(error, photo.upload, photo.name)) from error
    if photo.restored is not None and photo.restored != restored:
        photo.restored.unlink(missing_ok=True)
    photo.restored, photo.model = restored, model
    photo.painted = wishes.guidance is not None
    photo.seconds, photo.runs, photo.failed = time.perf_counter() - started, photo.runs + 1, False


def knows_kernel(photo: Photo, kernel: Path | int) -> bool:
    """Whether nothing is left to be searched for: a kernel is given, or was found in this size."""
    return isinstance(kernel, Path) or photo.searched == kernel


def _restored(
    photo: Photo, models: Models, model: str, picture: Picture, wishes: Wishes, progress: PageProgress
) -> PageResult:
    """With the kernel that was found before, if there is one: another strength or map needs no new search."""
    if models[model].takes_kernel and isinstance(wishes.kernel, int) and photo.searched == wishes.kernel:
        again = replace(wishes, kernel=photo.folder / "kernel.png")
        with suppress(ImageError):  # a kernel may be found that would not be taken if it were given
            return models.restore(model, picture, again, progress)
    return models.restore(model, picture, wishes, progress)


def _keep_map(photo: Photo, outcome: PageResult, kind: GuidanceKind | None, model: str) -> None:
    photo.map_of = ""
    if outcome.guidance is not None and kind is not None:
        keep_map(photo, outcome.guidance.detach().float().cpu(), kind, model)


def keep_map(photo: Photo, values: Tensor, kind: GuidanceKind, model: str) -> None:
    """Makes `values (1, 1, H, W)` the map of a photograph: to be shown, painted on and downloaded. model: whose."""
    np.save(photo.folder / "map.npy", values[0, 0].numpy())
    images.write(photo.folder / "map.png", Picture(values / kind.white, bits=16))
    photo.white = _white(values, kind)
    _write(photo.folder / "shown.png", Picture((values / photo.white).clamp(0, 1)), EDITOR)
    photo.map_of = model


def _white(values: Tensor, kind: GuidanceKind) -> float:
    """What white stands for where a map is shown: all of a share, else a round number a little above the largest
    value, since a photograph's noise would look black beside the strongest there is.
    """
    if kind.high == kind.white:
        return kind.white
    largest = max(float(values.max()), 1e-3)
    power = 10.0 ** np.floor(np.log10(largest))
    return float(next(step * power for step in (1, 2, 3, 5, 10, 20) if step * power > 1.1 * largest))


def shown_map(photo: Photo) -> NDArray[np.uint8]:
    """The map as the editor shows it, `(h, w, 3)`."""
    grey = images.read(photo.folder / "shown.png").pixels[0, 0]
    array: NDArray[np.uint8] = (grey * 255).round().byte()[..., None].expand(-1, -1, 3).contiguous().numpy()
    return array


def painted_map(photo: Photo, composite: NDArray[Any]) -> Tensor:
    """The map `(1, 1, H, W)` of a photograph where it was left alone, and what was painted elsewhere.

    composite: the editor's picture, `(h, w[, 3 or 4])` uint8.
    """
    values = torch.from_numpy(np.load(photo.folder / "map.npy"))[None, None]
    before = images.read(photo.folder / "shown.png").pixels
    grey = torch.from_numpy(np.asarray(composite)[..., :3].astype(np.float32) / 255)
    grey = (grey.mean(2) if grey.ndim == 3 else grey)[None, None]
    if grey.shape != before.shape:
        grey = F.interpolate(grey, size=before.shape[-2:], mode="bilinear", antialias=True)
    size = values.shape[-2:]
    touched = F.interpolate(((grey - before).abs() > _VISIBLE).float(), size=size, mode="nearest") > 0
    painted = F.interpolate(grey, size=size, mode="bilinear") * photo.white
    return torch.where(touched, painted, values)


def uploaded_map(photo: Photo, source: Path, name: str, kind: GuidanceKind, model: str) -> None:
    """Makes a picture the map of a photograph; white stands for `kind.white`, as in every map that is downloaded."""
    try:
        values = images.read(source).pixels.mean(1, keepdim=True) * kind.white
    except TwofoldError as error:
        raise TwofoldError(plainly(error, source, name)) from error
    height, width = values.shape[-2:]
    if width * photo.height != height * photo.width:
        raise ImageError(
            f"{name}: {width} x {height} pixels do not have the proportions of the photograph, "
            f"{photo.width} x {photo.height}; crop or draw it again"
        )
    size = (photo.height, photo.width)
    values = F.interpolate(values, size=size, mode="bilinear", antialias=height > photo.height)
    keep_map(photo, values, kind, model)
    photo.painted, photo.runs = True, photo.runs + 1


def keep_kernel(visit: Visit, source: Path) -> Path:
    """Copies a kernel that arrived into the visit."""
    folder = visit.folder / "kernel"
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(source, folder / source.name))


def download_name(photo: Photo) -> str:
    """The file name that a download gets."""
    suffix = photo.restored.suffix if photo.restored else ""
    return f"{Path(photo.name).stem}-restored{suffix}"


def zip_of(photos: Iterable[Photo]) -> bytes:
    """A ZIP file of restored photographs under their names; equal names get a number."""
    buffer, taken = io.BytesIO(), set[str]()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # pictures are compressed already
        for photo in photos:
            if photo.restored is None:
                continue
            name = download_name(photo)
            if name in taken:
                name = f"{Path(name).stem}-{photo.number}{Path(name).suffix}"
            taken.add(name)
            archive.write(photo.restored, name)
    return buffer.getvalue()


def _write(path: Path, picture: Picture, longest: int) -> None:
    """A picture made small enough, on white where it is transparent."""
    pixels = picture.pixels.float().clamp(0, 1)
    if picture.alpha is not None:
        pixels = pixels * picture.alpha + 1 - picture.alpha
    height, width = pixels.shape[-2:]
    scale = longest / max(height, width)
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    images.write(path, replace(picture, pixels=pixels, alpha=None, bits=8, exif=b""))
