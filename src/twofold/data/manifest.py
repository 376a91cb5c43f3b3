"""A list of pairs with the digest of every file, to reproduce a split with the same images on another machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from twofold.contracts import DataError
from twofold.data.digests import digest
from twofold.data.pairs import Pair
from twofold.files import write_text


def write_manifest(path: Path, pairs: Sequence[Pair], *, root: Path) -> None:
    """Writes `pairs` as JSON, their files relative to `root` and each with its digest.

    Raises: DataError for a file that is not below `root` or cannot be read.
    """
    for file in (file for pair in pairs for file in (pair.observed, pair.clean)):
        if not file.is_relative_to(root):
            raise DataError(f"{file}: is not below {root}; a manifest holds names relative to one folder")
    digests = {file: digest(file) for pair in pairs for file in (pair.observed, pair.clean)}
    entries = [
        {
            "name": pair.name,
            "observed": [pair.observed.relative_to(root).as_posix(), digests[pair.observed]],
            "clean": [pair.clean.relative_to(root).as_posix(), digests[pair.clean]],
            "facts": pair.facts,
        }
        for pair in pairs
    ]
    write_text(path, json.dumps({"pairs": entries}, indent=1) + "\n")


def read_manifest(path: Path, *, root: Path) -> list[Pair]:
    """The pairs that `write_manifest` wrote, below `root`, every file compared with its digest.

    Raises: DataError for a file that is no manifest, and for pictures that are missing or not the same (the first are
    named).
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["pairs"]
        pairs = [
            Pair(root / entry["observed"][0], root / entry["clean"][0], entry["name"], dict(entry["facts"]))
            for entry in entries
        ]
        digests = {root / file: listed for entry in entries for file, listed in (entry["observed"], entry["clean"])}
        inside = all(_is_below(file) for entry in entries for file, _ in (entry["observed"], entry["clean"]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(f"{path}: is not a manifest; write one with write_manifest") from error
    if not inside:
        raise DataError(f"{path}: names files outside its folder ({root}); write a manifest with names below it")
    wrong = [str(file) for file, listed in digests.items() if not file.is_file() or digest(file) != listed]
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} of {len(digests)} pictures are missing or differ from those that were listed: "
            f"{', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}"
        )
    return pairs


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not PureWindowsPath(name).drive
