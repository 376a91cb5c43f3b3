"""Digests of file contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from twofold.contracts import DataError


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises: DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def copies(files: Iterable[Path], originals: Iterable[Path]) -> set[Path]:
    """Those of `files` that hold the same bytes as one of `originals`. Only files of equal size are read."""
    sizes: dict[int, list[Path]] = {}
    for original in set(originals):
        sizes.setdefault(_size(original), []).append(original)
    known: dict[int, set[str]] = {}
    found = set()
    for file in files:
        size = _size(file)
        if size in sizes:
            if size not in known:
                known[size] = {digest(original) for original in sizes[size]}
            if digest(file) in known[size]:
                found.add(file)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
