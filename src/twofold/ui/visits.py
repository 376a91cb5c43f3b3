"""What a visit of the page leaves on the disk: one folder, which is deleted when the visit ends."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from twofold.contracts import TwofoldError
from twofold.guess import Guess

_PREFIX = "twofold-ui-"
WAITING = 600.0
"""Seconds for which an upload may wait until its visit takes it; then the browser is taken for gone."""
IDLE = 24 * 3600.0
"""Seconds without a request after which a visit is taken for ended; most browsers say when they leave."""


@dataclass(frozen=True)
class Limits:
    """megabytes, megapixels: of one photograph. photographs: of one visit. gigabytes: of everything on the disk, of all
    visits together.
    """

    megabytes: int = 100
    megapixels: int = 100
    photographs: int = 100
    gigabytes: int = 4


@dataclass(eq=False)
class Photo:
    """One photograph of a visit. number: unique in the visit, never used again. upload: its file. restored: the file to
    download, made by `model`.

    map_of: the model whose map lies in the folder (`map.npy` the values, `map.png` to download, `shown.png` for the
    editor), or empty. white: what white stands for in the editor. painted: the map is the user's. searched: the size in
    which the kernel in the folder (`kernel.png`) was searched for, 0 if there is none; confidence: in it. runs: how
    often all this changed, so that a browser reloads it.
    """

    number: int
    name: str
    upload: Path
    width: int
    height: int
    guess: Guess
    restored: Path | None = None
    model: str = ""
    map_of: str = ""
    white: float = 0.0
    painted: bool = False
    confidence: float | None = None
    searched: int = 0
    failed: bool = False
    seconds: float = 0.0
    runs: int = 0

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.upload.parent


@dataclass(eq=False)
class Visit:
    """Photographs by number, in the order they came. token: names the visit in addresses, and cannot be guessed.
    current: the number of the photograph in view, 0 for none. kernel: a file of the user's.
    """

    token: str
    folder: Path
    photos: dict[int, Photo] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    seen: float = field(default_factory=time.monotonic)
    counter: int = 0
    current: int = 0
    kernel: Path | None = None

    def place(self) -> tuple[int, Path]:
        """A number and a folder for one more photograph."""
        self.counter += 1
        folder = self.folder / str(self.counter)
        folder.mkdir()
        return self.counter, folder

    def remove(self, number: int) -> None:
        """Removes a photograph and its files."""
        photo = self.photos.pop(number, None)
        if photo is not None:
            shutil.rmtree(photo.folder, ignore_errors=True)
        if self.current not in self.photos:
            self.current = next(iter(self.photos), 0)


class Visits:
    """All visits, in one folder of the system's temporary directory, private to the user.

    root: that folder. uploads: where the web server puts what arrives, before a visit takes it.
    """

    def __init__(self, limits: Limits) -> None:
        _remove_abandoned()
        self.limits = limits
        self.root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._visits: dict[str, Visit] = {}
        self._arriving = 0
        self._waiting: dict[Path, float] = {}
        self._lock = threading.RLock()

    def of(self, session: str) -> Visit:
        """The visit of a browser's session, begun where it is new."""
        with self._lock:
            if session not in self._visits:
                self._end_idle()
                token = secrets.token_urlsafe(16)
                folder = self.root / token
                folder.mkdir()
                self._visits[session] = Visit(token, folder)
            visit = self._visits[session]
            visit.seen = time.monotonic()
            return visit

    def end(self, session: str) -> None:
        """Deletes everything of a visit; with the last one also what the server keeps beside them, but not what is
        arriving or has just arrived: its visit may begin only after this one has ended.
        """
        with self._lock:
            visit = self._visits.pop(session, None)
            if visit is not None:
                visit.stop.set()
                shutil.rmtree(visit.folder, ignore_errors=True)
            if not self._visits:
                self._empty_uploads()

    @contextmanager
    def arriving(self) -> Iterator[Callable[[list[Path]], None]]:
        """While an upload arrives. To be called with the files that came of it; `take` ends their wait."""

        def arrived(files: list[Path]) -> None:
            with self._lock:
                self._waiting.update(dict.fromkeys(files, time.monotonic()))

        with self._lock:
            self._arriving += 1
        try:
            yield arrived
        finally:
            with self._lock:
                self._arriving -= 1

    def take(self, files: Iterable[Path]) -> None:
        """Deletes uploads: the visit has its own copies."""
        with self._lock:
            for file in files:
                self._waiting.pop(file, None)
                file.unlink(missing_ok=True)

    def _empty_uploads(self) -> None:
        if not self._arriving:
            before = time.monotonic() - WAITING
            self._waiting = {file: since for file, since in self._waiting.items() if since > before}
            _empty(self.uploads, {file.parent for file in self._waiting})

    def _end_idle(self) -> None:
        """Ends the visits of browsers that went without a word."""
        before = time.monotonic() - IDLE
        for session in [name for name, visit in self._visits.items() if visit.seen < before]:
            self.end(session)

    def by_token(self, token: str) -> Visit | None:
        """The visit of that token. Raises: TwofoldError where there is none."""
        with self._lock:
            return next((v for v in self._visits.values() if secrets.compare_digest(v.token, token)), None)

    def file(self, token: str, name: str) -> Path | None:
        """A file of the visit that `token` names, or None."""
        visit = self.by_token(token)
        if visit is None:
            return None
        path = (visit.folder / name).resolve()
        return path if path.is_relative_to(visit.folder.resolve()) and path.is_file() else None

    def check_room(self) -> None:
        """Raises: TwofoldError where the files of all visits reach the limit."""
        used = sum(file.stat().st_size for file in _files(self.root))
        if used > self.limits.gigabytes * 1e9:
            raise TwofoldError(
                f"the server keeps {self.limits.gigabytes} GB of photographs, its limit; remove some, or wait until "
                "other visits end"
            )

    def close(self) -> None:
        """Deletes everything."""
        with self._lock:
            for visit in self._visits.values():
                visit.stop.set()
            self._visits.clear()
            shutil.rmtree(self.root, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._visits)


def _files(folder: Path) -> list[Path]:
    found = []
    for path, _, names in os.walk(folder):  # unlike rglob it goes on where a folder is deleted meanwhile
        found += [Path(path) / name for name in names]
    return [file for file in found if file.exists()]


def _empty(folder: Path, kept: set[Path]) -> None:
    for inside in folder.iterdir():
        if inside in kept:
            continue
        if inside.is_dir():
            shutil.rmtree(inside, ignore_errors=True)
        else:
            inside.unlink(missing_ok=True)


def _remove_abandoned() -> None:
    """Folders of servers that were killed and so could not delete them."""
    if os.name != "posix":  # elsewhere, asking for a process by number may end it
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with suppress(OSError, ValueError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
