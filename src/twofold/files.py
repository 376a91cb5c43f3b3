"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twofold.contracts import TwofoldError

WHAT_TO_DO = "choose another place or make room"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the folder of `path`; what was written there takes the place of `path` at the end.

    An interruption or an error leaves the former file as it was, and no temporary one. Missing folders are made.

    Raises: TwofoldError where the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        start = path.name[:40]  # of a name as long as may be, all would leave no room
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{start}.")
        os.close(handle)
        temporary = Path(name)
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


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text by `replacing`; what UTF-8 has not, such as a file name of old, is escaped as in JSON."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
