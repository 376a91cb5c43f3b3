"""Pairs of pictures on disk, in the layouts the field uses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from twofold import images
from twofold.contracts import DataError
from twofold.data.digests import copies
from twofold.nets.fourier import center_crop


@dataclass(frozen=True)
class Pair:
    """A degraded picture and its clean one. facts: read from the file's name (RESIDE: airlight, beta). map: file of the
    guidance map, if there is one.
    """

    observed: Path
    clean: Path
    name: str
    facts: dict[str, float] = field(default_factory=dict)
    map: Path | None = None


class Layout(NamedTuple):
    """The sub-folders of both sides, in any case of letters; "." is the folder itself."""

    name: str
    observed: str
    clean: str


LAYOUTS = (
    Layout("UIEB", "raw-890", "reference-890"),
    Layout("EUVP", "trainA", "trainB"),
    Layout("LOL", "low", "high"),
    Layout("LOL-v2", "low", "normal"),
    Layout("Rain1400", "rainy_image", "ground_truth"),
    Layout("Rain100", "rainy", "norain"),
    Layout("Rain100", "rain", "norain"),
    Layout("Rain100", "rainy", "gt"),
    Layout("Rain100", "rain", "gt"),
    Layout("Rain100", "rainy", "."),
    Layout("Rain100", ".", "."),
    Layout("RESIDE", "hazy", "clear"),
    Layout("RESIDE", "hazy", "gt"),
    Layout("RESIDE", "haze", "clear"),
    Layout("RESIDE", "OTS", "clear_images"),
    Layout("RESIDE", "ITS_haze", "ITS_clear"),
    Layout("FiveK", "input", "expertC"),
    Layout("paired", "input", "target"),
    Layout("paired", "input", "gt"),
    Layout("paired", "lq", "gt"),
    Layout("paired", "rain", "clean"),
    Layout("paired", "light", "clean"),
    Layout("paired", "heavy", "clean"),
    Layout("paired", "observed", "clean"),
)
"""LOL-v1, FiveK, Rain13K and DehazeFormer's RESIDE are some of these below folders such as our485 or test/Rain100H."""

ROLES = re.compile(r"(?:^|(?<=[-_]))(?:norain|rain|low|normal|high|hazy|gt|clear|clean|rgb|x(?=\d))(?=[-_\d]|$)")
DRY = re.compile(r"norain[-_]?\d+$", re.IGNORECASE)
WET = re.compile(r"rain[-_]?\d+$", re.IGNORECASE)


def find_pairs(root: Path | str, *, observed: str | None = None, clean: str | None = None) -> list[Pair]:
    """The pairs below `root`, sorted by name; the layout is recognised where the sub-folders are not named.

    Names match whole, or without the words that say which side they are on (rain-001 and norain-001), or without
    their last parts (1400_7 and 1400): one clean picture may belong to several observed ones.

    Raises: DataError where there are no pairs, where several sets lie below `root`, or where a picture has no partner
    (the first are named).
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; --data names the folder that the recipe's or the option's paths start from"
        )
    if (observed is None) != (clean is None):
        raise DataError("name both sub-folders, observed and clean, or neither")
    if observed is not None and clean is not None:
        return _matched(root, Layout("named", observed, clean))
    return _matched(*recognised(root))


def with_maps(pairs: Sequence[Pair], root: Path, pattern: str) -> list[Pair]:
    """The pairs with the files of their guidance maps below `root`.

    pattern: a path with one star, which stands for the observed picture's name, whole or without the words that say
    which side it is on (`rainregion-*` for rain-12 is rainregion-12), or for its clean one's. The suffix may be left
    out.

    Raises: DataError for a pattern without one star, and where a pair has no map (the first are named).
    """
    name = Path(pattern).name
    if pattern.count("*") != 1 or "*" not in name:
        raise DataError(f"maps: {pattern!r} needs one star in the file's name, such as maps/*.png or rainregion-*")
    folder, (before, after) = (root / pattern).parent, name.split("*")
    files = sorted(folder.glob(name if "." in after else f"{name}.*")) if folder.is_dir() else []
    after = after.partition(".")[0]
    known = {file.stem.removeprefix(before).removesuffix(after): file for file in files}
    found = [next((known[key] for key in _map_keys(pair) if key in known), None) for pair in pairs]
    alone = [pair.name for pair, file in zip(pairs, found, strict=True) if file is None]
    if alone:
        raise DataError(
            f"{folder / name}: {len(alone)} of {len(pairs)} pairs have no map there: "
            f"{', '.join(alone[:3])}{' …' if len(alone) > 3 else ''}"
        )
    return [replace(pair, map=file) for pair, file in zip(pairs, found, strict=True)]


def _map_keys(pair: Pair) -> tuple[str, ...]:
    return pair.name, _bare(pair.name), pair.clean.stem, _bare(pair.clean.stem)


def recognised(root: Path) -> tuple[Path, Layout]:
    """The folder that holds a known layout, `root` or one up to three levels below it, and the layout.

    Raises: DataError where there is none (listing what is there) or more than one (listing them).
    """
    found = [(folder, layout) for folder in _folders(root, 3) for layout in _layouts(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        named = [f"{folder}: {layout.observed} + {layout.clean} ({layout.name})" for folder, layout in found]
        raise DataError(
            f"{root}: {len(found)} sets of pairs are here, choose one by its folder or by observed and clean: "
            f"{'; '.join(named[:6])}{' …' if len(found) > 6 else ''}"
        )
    there = sorted(set(_names(root).values()) - {"."})[:8]
    known = ", ".join(f"{layout.observed}+{layout.clean}" for layout in LAYOUTS if layout.clean != ".")
    raise DataError(f"{root}: no known layout of pairs (there: {', '.join(there) or 'no folders'}; known: {known})")


def read_pair(pair: Pair) -> tuple[Tensor, Tensor]:
    """(observed, clean), `(1, C, H, W)` each; a clean picture that is larger loses the same border on both sides.

    RESIDE's indoor haze is 620 × 460 over clean pictures of 640 × 480, and others follow it.

    Raises: ImageError for a file that cannot be read; DataError where the sizes do not fit.
    """
    observed, clean = images.read(pair.observed).pixels, images.read(pair.clean).pixels
    return observed, middle(clean, (observed.shape[-2], observed.shape[-1]), name=str(pair.clean))


def middle(picture: Tensor, size: tuple[int, int], *, name: str = "clean") -> Tensor:
    """The middle `(…, h, w)` of a picture `(…, H, W)` that is at most a tenth larger on each side.

    Raises: DataError where it is smaller, or so much larger that it is likely to be another picture.
    """
    height, width = picture.shape[-2:]
    if not (size[0] <= height <= 1.1 * size[0] and size[1] <= width <= 1.1 * size[1]):
        raise DataError(
            f"{name}: is {width}x{height} where its observed picture is {size[1]}x{size[0]}; are they a pair? "
            "A clean picture may be up to a tenth larger, and is cropped to the middle"
        )
    return center_crop(picture, size)


def every(pairs: Sequence[Pair], n: int, *, picked: bool) -> list[Pair]:
    """Each n-th clean file by name with all its pairs (`picked`), or all the others: a split by scene, never by crop.

    A clean picture that is there twice under two names (Rain100 has some) would sit on both sides of the split: the
    others come without the copies of what was picked. n = 0: all, no split.

    Raises: DataError for a file that cannot be read.
    """
    if n == 0:
        return list(pairs)
    cleans = sorted({pair.clean for pair in pairs})
    held = set(cleans[::n])
    if picked:
        return [pair for pair in pairs if pair.clean in held]
    held |= copies(cleans, held)
    return [pair for pair in pairs if pair.clean not in held]


def _matched(root: Path, layout: Layout) -> list[Pair]:
    wet, dry = _pictures(root, layout.observed), _pictures(root, layout.clean)
    if layout.clean == ".":  # both sides share a folder, or one lies in the other's
        wet, dry = [p for p in wet if WET.match(p.stem)], [p for p in dry if DRY.match(p.stem)]
    if not wet:
        raise DataError(f"{root}: no pictures in {layout.observed}; known suffixes: {' '.join(images.READABLE)}")
    cleans = {path.stem: path for path in dry}
    if len(cleans) < len(dry):
        twice = sorted(path.name for path in dry if cleans[path.stem] != path)
        raise DataError(f"{root}: several clean pictures of one name in {layout.clean}: {', '.join(twice[:3])}")
    bare = {_bare(stem): path for stem, path in cleans.items()}
    pairs, alone = [], []
    for path in wet:
        partner = _partner(path.stem, cleans, bare)
        if partner is None:
            alone.append(path.name)
        else:
            pairs.append(Pair(path, partner, path.stem, _facts(path.stem)))
    if alone:
        raise DataError(
            f"{root}: {len(alone)} of {len(wet)} pictures of {layout.observed} have no partner in {layout.clean}: "
            f"{', '.join(alone[:3])}{' …' if len(alone) > 3 else ''}"
        )
    return pairs


def _partner(stem: str, cleans: dict[str, Path], bare: dict[str, Path]) -> Path | None:
    if stem in cleans:
        return cleans[stem]
    parts = re.split(r"(?=_)", _bare(stem))
    for end in range(len(parts), 0, -1):
        key = "".join(parts[:end])
        if key in bare:
            return bare[key]
    return None


def _bare(stem: str) -> str:
    """rain-001, norain-001, x001, low001 and normal001 are 001; 01_outdoor_hazy and 01_outdoor_GT are 01_outdoor."""
    return re.sub(r"[-_]{2,}", "_", ROLES.sub("", stem.lower())).strip("-_")


def _facts(stem: str) -> dict[str, float]:
    """RESIDE's outdoor files are called id_airlight_beta, with beta up to 0.2; the indoor ones are id_number or
    id_number_x with larger x, of which nothing is known for sure.
    """
    found = re.fullmatch(r".+_(0?\.\d+|1|1\.0*)_(0?\.\d+)", stem)
    if not found or float(found[2]) > 0.5:
        return {}
    return {"airlight": float(found[1]), "beta": float(found[2])}


def _layouts(folder: Path) -> list[Layout]:
    """The known layouts of a folder, with its own spelling of the names."""
    names = _names(folder)
    found = []
    for layout in LAYOUTS:
        observed, clean = names.get(layout.observed.lower()), names.get(layout.clean.lower())
        if observed and clean and (clean != "." or ("norain" not in names and _holds_both(folder, observed))):
            found.append(Layout(layout.name, observed, clean))
    return found


def _holds_both(folder: Path, observed: str) -> bool:
    sides = ((folder / observed, WET), (folder, DRY))
    return all(any(pattern.match(path.stem) for path in place.iterdir()) for place, pattern in sides)


def _names(folder: Path) -> dict[str, str]:
    """Sub-folders by their names in small letters, and the folder itself."""
    with os.scandir(folder) as entries:
        inside = {e.name.lower(): e.name for e in entries if not e.name.startswith(".") and e.is_dir()}
    return {".": "."} | inside


def _folders(root: Path, levels: int) -> Iterator[Path]:
    yield root
    if levels:
        for name in sorted(set(_names(root).values()) - {"."}):
            yield from _folders(root / name, levels - 1)


def _pictures(root: Path, side: str) -> list[Path]:
    """Those in the folder of one side; where it has none, those of its sub-folders, as RESIDE's outdoor haze lies."""
    folder = root / side
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures")

    def inside(pattern: str) -> list[Path]:
        return sorted(p for p in folder.glob(pattern) if p.suffix.lower() in images.READABLE and p.name[0] != ".")

    return inside("*") or ([] if side == "." else inside("*/*"))
