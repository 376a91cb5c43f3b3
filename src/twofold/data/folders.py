"""Which files a recipe means: folders below the data root, and the share of them that a source takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twofold import images
from twofold.contracts import DataError
from twofold.data import pairs as layouts
from twofold.data.crops import read_bytes
from twofold.data.digests import copies
from twofold.data.pairs import Pair
from twofold.settings import Every

Keep = Literal["rest", "picked"]
_ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth", 10: "tenth"}


@dataclass(frozen=True)
class Folder:
    """Pictures. path: below the data root: a folder, or a pattern such as `sun/img*_groundtruth_img.png`. every: n, to
    split the files by name into each n-th and the rest; 0 takes all. keep: which part; `every: 5, keep: rest` leaves
    out each fifth file, `keep: picked` takes only those.

    Of a folder without pictures the `.mat` files are taken (see `crops.read_bytes`), each picture once: Levin's 32
    files hold four.
    """

    path: str
    every: Every = 0
    keep: Keep = "rest"

    def files(self, root: Path) -> list[Path]:
        """Raises: DataError for a folder that is not there or holds no picture."""
        place = root / self.path
        files = kept = _pictures(place)
        if self.every:
            picked = files[:: self.every]
            held = {*picked, *copies(files, picked)}  # the same scene under another name stays on its side of the split
            kept = picked if self.keep == "picked" else [file for file in files if file not in held]
        if not kept:
            raise DataError(f"{place}: no pictures to train on; known suffixes: {' '.join(images.READABLE)}")
        return kept

    def __str__(self) -> str:
        return f"{self.path}{part(self.every, self.keep)}"


def _pictures(place: Path) -> list[Path]:
    """Raises: DataError for a folder that is not there."""
    folder = place.parent if "*" in place.name else place
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --data names the folder that the recipe's paths start from")
    if folder != place:
        return sorted(folder.glob(place.name))
    if files := images.find([place]):
        return files
    different: dict[bytes, Path] = {}
    for file in sorted(place.glob("*.mat")):
        different.setdefault(read_bytes(file).numpy().tobytes(), file)
    return list(different.values())


@dataclass(frozen=True)
class PairFolder:
    """Pairs. root: folder below the data root. observed, clean: names of the two folders in it; None lets the layout be
    recognised. every, keep: as in `Folder`. maps: their guidance maps, a pattern with one star for a pair's name, such
    as `maps/*.png` or `rainregion-*` (see `pairs.with_maps`).
    """

    root: str = "."
    observed: str | None = None
    clean: str | None = None
    maps: str | None = None
    every: Every = 0
    keep: Keep = "rest"

    def pairs(self, root: Path) -> list[Pair]:
        """Raises: DataError for a folder without pairs, or one of which none is left."""
        pairs = layouts.find_pairs(root / self.root, observed=self.observed, clean=self.clean)
        kept = layouts.every(pairs, self.every, picked=self.keep == "picked")
        if not kept:
            raise DataError(f"{root / self.root}: every pair was left out; change every or keep")
        return kept if self.maps is None else layouts.with_maps(kept, root / self.root, self.maps)

    def __str__(self) -> str:
        return f"{self.root}/{self.observed or ''}{part(self.every, self.keep)}"


def part(every: int, keep: Keep) -> str:
    """Which part of a folder is meant, in words; empty for all of it.

    >>> part(5, "rest"), part(5, "picked"), part(0, "rest")
    (' (without every fifth scene)', ' (every fifth scene alone)', '')
    """
    if not every:
        return ""
    scene = f"every {_ORDINALS.get(every, f'{every}-th')} scene"
    return f" ({scene} alone)" if keep == "picked" else f" (without {scene})"


def files_of(folders: Iterable[Folder], root: Path) -> list[Path]:
    """Those of all folders. Raises: DataError as `Folder.files`."""
    return [file for folder in folders for file in folder.files(root)]


def pairs_of(folders: Iterable[PairFolder], root: Path) -> list[Pair]:
    """Those of all folders. Raises: DataError as `PairFolder.pairs`."""
    return [pair for folder in folders for pair in folder.pairs(root)]
