"""Pairs of pictures on disk, in the layouts the field uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from twofold import images
from twofold.contracts import DataError


@dataclass(frozen=True)
class Pair:
    """A spoilt picture and its clean one. facts: what the file's name tells of the damage (RESIDE: airlight, beta)."""

    observed: Path
    clean: Path
    name: str
    facts: dict[str, float] = field(default_factory=dict)


class Layout(NamedTuple):
    """Sub-folders of both sides, and the key by which their file names match."""

    name: str
    observed: str
    clean: str
    key: Callable[[str], str] = lambda stem: stem
    clean_key: Callable[[str], str] = lambda stem: stem


def _before_underscore(stem: str) -> str:
    return stem.split("_")[0]


def _without_word(stem: str) -> str:
    """rain-001, norain-001, x001, low00001 and normal00001 match by their number."""
    return re.sub(r"^(norain|rain|low|normal|x)[-_]?", "", stem)


# The first that is there wins, so the more telling names come first.
LAYOUTS = (
    Layout("UIEB", "raw-890", "reference-890"),
    Layout("EUVP", "trainA", "trainB"),
    Layout("LOL-v1", "our485/low", "our485/high"),
    Layout("LOL", "low", "high"),
    Layout("LOL-v2", "Low", "Normal", _without_word, _without_word),
    Layout("Rain1400", "rainy_image", "ground_truth", _before_underscore),
    Layout("Rain100", "rainy", "norain", _without_word, _without_word),
    Layout("Rain100", "rain", "norain", _without_word, _without_word),
    Layout("RESIDE", "hazy", "clear", _before_underscore),
    Layout("RESIDE", "hazy", "gt", _before_underscore),
    Layout("DehazeFormer", "hazy", "GT"),
    Layout("paired", "input", "target"),
    Layout("paired", "lq", "gt"),
    Layout("paired", "LQ", "GT"),
    Layout("paired", "input", "gt"),
    Layout("paired", "rain", "clean"),
    Layout("paired", "observed", "clean"),
)


def find_pairs(root: Path | str, *, observed: str | None = None, clean: str | None = None) -> list[Pair]:
    """The pairs below `root`, sorted by name; the layout is recognised where the sub-folders are not named.

    Names match exactly, or by the part that the layout says; one clean picture may belong to several observed ones.

    Raises: DataError where there are no pairs, or a picture has no partner (the first are named).
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; --data names the folder that the recipe's or the option's paths start from"
        )
    if (observed is None) != (clean is None):
        raise DataError("name both sub-folders, observed and clean, or neither")
    if observed is not None and clean is not None:
        layout = Layout("named", observed, clean)
    else:
        layout = recognised(root)
    return _matched(root, layout)


def recognised(root: Path) -> Layout:
    """The layout of a folder. Raises: DataError listing what is there and what was looked for."""
    for layout in LAYOUTS:
        if (root / layout.observed).is_dir() and (root / layout.clean).is_dir():
            return layout
    flat = [path.stem for path in root.iterdir() if path.suffix.lower() in images.SUFFIXES]
    if any(stem.startswith("norain") for stem in flat):
        return Layout("Rain100 flat", ".", ".", _without_word, _without_word)
    there = sorted(path.name for path in root.iterdir() if path.is_dir())[:8]
    known = ", ".join(f"{layout.observed}+{layout.clean}" for layout in LAYOUTS)
    raise DataError(f"{root}: no known layout of pairs (there: {', '.join(there) or 'no folders'}; known: {known})")


def _matched(root: Path, layout: Layout) -> list[Pair]:
    sides = [_pictures(root / folder) for folder in (layout.observed, layout.clean)]
    if layout.observed == layout.clean:  # one flat folder
        sides = [[p for p in sides[0] if p.stem.startswith("norain") == clean] for clean in (False, True)]
    cleans = {layout.clean_key(path.stem): path for path in sides[1]}
    pairs, alone = [], []
    for path in sides[0]:
        partner = _partner(path.stem, layout, cleans)
        if partner is None:
            alone.append(path.name)
        else:
            pairs.append(Pair(path, partner, path.stem, _facts(path.stem, layout)))
    if alone:
        raise DataError(
            f"{root}: {len(alone)} of {len(sides[0])} pictures of {layout.observed} have no partner in {layout.clean}: "
            f"{', '.join(alone[:3])}{' …' if len(alone) > 3 else ''}"
        )
    if not pairs:
        raise DataError(f"{root}: no pictures in {layout.observed}; known suffixes: {' '.join(images.SUFFIXES)}")
    return pairs


def _partner(stem: str, layout: Layout, cleans: dict[str, Path]) -> Path | None:
    """By the layout's key, by the whole name, else by dropping the name's parts from the end (scene_density ↔
    scene_RGB).
    """
    for key in (layout.key(stem), stem):
        if key in cleans:
            return cleans[key]
    parts = stem.split("_")
    for end in range(len(parts) - 1, 0, -1):
        key = "_".join(parts[:end])
        if key in cleans:
            return cleans[key]
    return None


def _facts(stem: str, layout: Layout) -> dict[str, float]:
    """RESIDE's OTS and SOTS-outdoor name their files id_airlight_beta."""
    found = re.fullmatch(r".+_(\d?\.?\d+)_(\d?\.?\d+)", stem)
    return {"airlight": float(found[1]), "beta": float(found[2])} if layout.name == "RESIDE" and found else {}


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in images.SUFFIXES and not p.name.startswith("."))


def every(pairs: Sequence[Pair], n: int, *, picked: bool) -> list[Pair]:
    """Each n-th clean scene by name with all its pairs (`picked`), or all the others: a split by scene, never by
    crop.
    """
    scenes = {scene: i for i, scene in enumerate(sorted({pair.clean for pair in pairs}))}
    return [pair for pair in pairs if not n or (scenes[pair.clean] % n == 0) == picked]
