"""Files are written completely or not created, and two processes do not work in one folder."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.contracts import DataError, TwofoldError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and temporary files of killed processes stay
    fcntl = None  # type: ignore[assignment]

WHAT_TO_DO = "choose another place or make room"
TEMPORARY = ".part"
"""Suffix of what is being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the folder of `path`; what was written there takes the place of `path` at the end.

    An interruption or an error leaves the former file as it was, and no temporary one. Missing folders are made.

    Raises: TwofoldError where the folder cannot be written or the disk is full.
    """
    temporary, handle = None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = _temporary(path)
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp keeps everyone else out
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a loss of power may leave the new name without the content
        os.replace(temporary, path)
    except OSError as error:
        raise TwofoldError(f"cannot write {path}: {error.strerror or error}; {WHAT_TO_DO}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _temporary(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, and its handle, which holds a lock: `remove_orphans` leaves locked files alone."""
    start = path.name[:40]  # of a name as long as may be, all would leave no room
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{start}.", suffix=TEMPORARY)
        _lock(handle)
        if os.path.exists(name):  # not removed as an orphan just before it was locked
            return Path(name), handle
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether this process now has the file for itself; true where the file system knows no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def remove_orphans(folder: Path) -> list[Path]:
    """Removes temporary files in `folder` that a killed process left, and returns their names."""
    removed = []
    for file in folder.glob(f".*{TEMPORARY}") if fcntl is not None else ():
        with suppress(OSError), file.open("rb") as opened:
            if _lock(opened.fileno()):
                file.unlink()
                removed.append(file)
    return removed


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder, which is made where it is missing; removes it again if it is empty.

    Raises: TwofoldError where another process has the folder, or it cannot be made.
    """
    path = folder / ".lock"
    handle = _opened(path)
    try:
        while not os.fstat(handle).st_nlink:  # removed by the process that had it, just before it was locked
            os.close(handle)
            handle = _opened(path)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    """The lock file, locked by this process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise TwofoldError(f"cannot write {path}: {error.strerror or error}; {WHAT_TO_DO}") from error
    if not _lock(handle):
        owner = os.read(handle, 20).decode("ascii", "replace")
        os.close(handle)
        raise TwofoldError(f"{path.parent}: process {owner} works in this folder; wait for it or name another folder")
    return handle


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text by `replacing`; characters that UTF-8 cannot encode are escaped as in JSON."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def cache_folder() -> Path:
    """Where what can be made again is kept for this user: `$XDG_CACHE_HOME/twofold`, else `~/.cache/twofold`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twofold"


def read_matlab(path: Path) -> dict[str, list[NDArray[Any]]]:
    """The numeric variables of a `.mat` file by name, each a list of arrays: one, or those of a cell array.

    Files of MATLAB's version 7.3 are HDF5 and need the package h5py. Raises: DataError where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            newer = b"MATLAB 7.3" in file.read(128)
        found = _matlab_hdf5(path) if newer else _matlab(path)
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}") from error
    return {name: arrays for name, arrays in found.items() if arrays and all(a.dtype.kind in "fiu" for a in arrays)}


def _matlab(path: Path) -> dict[str, list[NDArray[Any]]]:
    import scipy.io

    variables = {name: value for name, value in scipy.io.loadmat(path).items() if isinstance(value, np.ndarray)}
    return {name: [*map(np.asarray, v.ravel())] if v.dtype == object else [v] for name, v in variables.items()}


def _matlab_hdf5(path: Path) -> dict[str, list[NDArray[Any]]]:
    """The same of version 7.3, whose axes HDF5 has in reverse order."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: is of MATLAB's version 7.3; to read it: pip install h5py") from None
    with h5py.File(path, "r") as file:
        data = {name: value for name, value in file.items() if isinstance(value, h5py.Dataset)}
        return {
            name: [file[cell][()].T for cell in value[()].ravel()] if value.dtype == h5py.ref_dtype else [value[()].T]
            for name, value in data.items()
        }
