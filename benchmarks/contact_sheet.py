"""Contact sheets of real photographs: the shipped models beside classical restorers and other people's networks.

    python benchmarks/contact_sheet.py --data DATA --peers FOLDER --output SHEETS [--task rain haze] [--rows 4]

The photographs have no truth: the sheets are for looking at. What was seen in them is listed in docs/results.md. They
are not part of the project, because the terms of most photographs do not allow it. Large photographs are reduced
first; FOLDER is that of benchmarks/peers.py, and what it lacks is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from peers import Candidate, ours, theirs
from twofold import images
from twofold.degrade.blur import read_kernel
from twofold.sheets import contact_sheet

FOLDERS = {
    "rain": ("rain/real",),
    "haze": ("haze/real",),
    "lowlight": ("lowlight/unpaired",),
    "underwater": ("underwater/U45", "underwater/UIEB_challenging60"),
    "deconvolution": ("deblur/real/DWDN_examples/blurredImage", "deblur/real/FDN_examples"),
}

SHOWN = {
    "rain": ("PReNet, heavy rain",),
    "haze": ("dark-channel", "GCANet"),
    "lowlight": ("retinex", "Zero-DCE", "IAT"),
    "underwater": ("underwater", "grey-world", "FA+Net"),
    "deconvolution": ("wiener", "hyper-laplacian"),
}
"""Besides the shipped networks of a task."""


class Photograph(NamedTuple):
    """observed: `(1, 3, h, w)`. kernel: of its blur, or None."""

    observed: Tensor
    kernel: Tensor | None


def photographs(task: str, data: Path, longest: int) -> Iterator[Photograph]:
    """The real photographs of a task; those without a kernel are reduced to `longest` pixels along a side."""
    for path in images.find([data / folder for folder in FOLDERS[task]]):
        pixels = images.read(path).pixels.float().expand(-1, 3, -1, -1)
        if task == "deconvolution":
            beside = path.with_suffix(".dlm")
            kernel = beside if beside.exists() else path.parent.parent / "kernelImage" / path.name
            yield Photograph(pixels, read_kernel(kernel))
            continue
        factor = min(1.0, longest / max(pixels.shape[-2:]))
        if factor < 1:
            size = tuple(round(side * factor) for side in pixels.shape[-2:])
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        yield Photograph(pixels, None)


def row(photograph: Photograph, candidates: Sequence[Candidate]) -> dict[str, Tensor]:
    """Titles and pictures: observed, what every candidate makes of it, the map of a shipped network that has one."""
    given = {} if photograph.kernel is None else {"kernel": photograph.kernel}
    shown = {"observed": photograph.observed}
    for one in candidates:
        found = one.restore(photograph.observed, **given)
        shown[one.name] = found.image
        if one.kind == "ours" and found.guidance is not None:
            shown[f"{one.name}: its map"] = found.guidance / found.guidance.max().clamp(min=1e-6)
    return shown


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="folder with the real photographs")
    made.add_argument("--peers", type=Path, help="folder with clones of the peers' repositories")
    made.add_argument("--output", type=Path, required=True, help="folder for the sheets")
    made.add_argument("--task", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    made.add_argument("--rows", type=int, default=4, help="photographs on a sheet")
    made.add_argument("--height", type=int, default=300, help="pixels of a photograph on a sheet")
    made.add_argument("--longest", type=int, default=640, help="pixels along a side of a photograph")
    options = made.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for task in options.task:
        candidates = [one for one in ours(task) if one.kind == "ours" or one.name in SHOWN[task]]
        candidates += [one for one in theirs(task, options.peers) if one.name in SHOWN[task]]
        rows = []
        for number, photograph in enumerate(photographs(task, options.data, options.longest), 1):
            rows.append(row(photograph, candidates))
            if len(rows) == options.rows:
                write(options.output / f"{task}-{number - len(rows) + 1:02d}.png", rows, options.height)
                rows = []
        if rows:
            write(options.output / f"{task}-{number - len(rows) + 1:02d}.png", rows, options.height)


def write(path: Path, rows: Sequence[dict[str, Tensor]], height: int) -> None:
    sheet = contact_sheet(list(rows[0]), [list(row.values()) for row in rows], height=height)
    images.write(path, images.Picture(sheet))
    print(path, flush=True)


if __name__ == "__main__":
    main()
