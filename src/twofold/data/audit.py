"""Checks image pairs, and finds scenes that training and test sets share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold import images
from twofold.contracts import DataError, Progress, TwofoldError
from twofold.data.pairs import Pair, middle
from twofold.printing import printable

ALIKE = 0.8
"""Fingerprints of one scene, recompressed, resized, brightened or cropped by 2 % on each side, agree by 0.85 and more;
those of two different photographs by less than 0.6 (588 photographs of five sets, all couples).
"""


@dataclass(frozen=True)
class Finding:
    """kind: "unreadable", "size", "shifted" or "partner" (of one pair), "same scene" or "mirrored scene" (of two)."""

    kind: str
    files: tuple[Path, ...]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {' | '.join(map(printable, self.files))}: {printable(self.detail)}"


def audit(train: Sequence[Pair], test: Sequence[Pair], *, progress: Progress | None = None) -> list[Finding]:
    """Faults of both sets, scenes that both hold, and scenes that one holds twice under different names.

    Clean pictures are compared, each once, however many observed ones it has. progress: (done, all) pictures.
    """
    pairs = [*train, *test]
    step = _counter(progress, len(pairs))
    prints: dict[Path, Tensor] = {}
    found: list[Finding] = []
    for pair in pairs:
        found += _faults(pair, prints)
        step()
    found += _strangers(train, prints) + _strangers(test, prints)
    taught, asked = (sorted({pair.clean for pair in side} & prints.keys()) for side in (train, test))
    return found + _same(taught, taught, prints) + _same(asked, asked, prints) + _same(taught, asked, prints)


def faults(pairs: Sequence[Pair], *, progress: Progress | None = None) -> list[Finding]:
    """What is wrong with the pairs of one set."""
    return audit(pairs, [], progress=progress)


def leaks(train: Sequence[Path], test: Sequence[Path], *, progress: Progress | None = None) -> list[Finding]:
    """Scenes of `test` that are in `train` too, as they are or mirrored; the files need not be pairs."""
    step = _counter(progress, len(train) + len(test))
    prints: dict[Path, Tensor] = {}
    found: list[Finding] = []
    for path in [*train, *test]:
        try:
            prints[path] = fingerprint(images.read(path).pixels)
        except TwofoldError as error:
            found.append(_unreadable(path, error))
        step()
    return found + _same([p for p in train if p in prints], [p for p in test if p in prints], prints)


def fingerprint(picture: Tensor) -> Tensor:
    """A picture `(1, C, H, W)` → `(2, 16, 16)` of norm 1: how a thumbnail changes to the right and downwards.

    The inner product of two is near 1 for the same scene: a difference hash that keeps the size of the differences, so
    that flat skies, whose signs are chance, weigh nothing. Small changes of brightness, size and coding do not matter.
    """
    grey = picture.mean(1, keepdim=True)
    right = F.interpolate(grey, size=(16, 17), mode="area").diff(dim=-1)
    down = F.interpolate(grey, size=(17, 16), mode="area").diff(dim=-2)
    return F.normalize(torch.cat([right, down]).flatten(), dim=0).view(2, 16, 16)


def shift(observed: Tensor, clean: Tensor, *, reach: int = 24) -> tuple[int, int, float]:
    """(down, right, certainty): by how many pixels `observed` lies off `clean`, both `(1, C, H, W)`.

    Phase correlation. certainty: the peak over what no shift has; 1 where there is none.
    """
    size = observed.shape[-2], observed.shape[-1]
    window = torch.hann_window(size[0])[:, None] * torch.hann_window(size[1])
    spectra = [torch.fft.rfft2(window * (p.mean((0, 1)) - p.mean())) for p in (observed, clean)]
    cross = spectra[0] * spectra[1].conj()
    # Frequencies above a quarter of the grid's are mostly noise, rain and coding: smooth them away.
    y, x = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])
    phase = cross / cross.abs().clamp(min=1e-12) * torch.exp(-0.5 * (y * y + x * x) / 0.12**2)
    surface = torch.fft.fftshift(torch.fft.irfft2(phase, s=size))
    top, left = size[0] // 2, size[1] // 2
    rows, columns = min(reach, top), min(reach, left)
    near = surface[top - rows : top + rows + 1, left - columns : left + columns + 1]
    down, right = divmod(int(near.argmax()), near.shape[1])
    certainty = (near.max() / near[rows, columns].clamp(min=1e-6)).item()
    return down - rows, right - columns, certainty


def _faults(pair: Pair, prints: dict[Path, Tensor]) -> list[Finding]:
    """What is wrong with one pair; notes the fingerprints of its pictures."""
    read: list[Tensor] = []
    for path in (pair.observed, pair.clean):
        try:
            read.append(images.read(path).pixels)
        except TwofoldError as error:
            return [_unreadable(path, error)]
        if path not in prints:
            prints[path] = fingerprint(read[-1])
    observed, clean = read
    try:
        clean = middle(clean, (observed.shape[-2], observed.shape[-1]))
    except DataError as error:
        return [Finding("size", (pair.observed, pair.clean), str(error))]
    down, right, certainty = shift(observed, clean)
    if max(abs(down), abs(right)) >= 1 and certainty > 2:
        return [
            Finding("shifted", (pair.observed, pair.clean), f"{down} pixels down and {right} to the right of the clean")
        ]
    return []


def _unreadable(path: Path, error: TwofoldError) -> Finding:
    return Finding("unreadable", (path,), str(error).removeprefix(f"{path}: "))


def _strangers(pairs: Sequence[Pair], prints: dict[Path, Tensor]) -> list[Finding]:
    """Pairs whose observed picture is clearly more like the clean picture of another one."""
    pairs = [pair for pair in pairs if pair.observed in prints and pair.clean in prints]
    cleans = sorted({pair.clean for pair in pairs})
    if len(cleans) < 2:
        return []
    found = []
    table = torch.stack([prints[clean].flatten() for clean in cleans])
    for pair in pairs:
        likeness = table @ prints[pair.observed].flatten()
        own, best = likeness[cleans.index(pair.clean)].item(), int(likeness.argmax())
        if likeness[best] > 0.5 and likeness[best] > own + 0.3:
            detail = f"is more like {cleans[best]} ({likeness[best]:.2f}) than its partner ({own:.2f})"
            found.append(Finding("partner", (pair.observed, pair.clean), detail))
    return found


def _same(first: Sequence[Path], second: Sequence[Path], prints: dict[Path, Tensor]) -> list[Finding]:
    """Files of two lists that show one scene; of one list given twice, each couple once."""
    if not first or not second:
        return []
    table = torch.stack([prints[path] for path in first])
    mirrored = table.flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)  # what rose to the right now falls
    others = torch.stack([prints[path] for path in second]).flatten(1).T
    found = []
    for kind, prints_ in (("same scene", table), ("mirrored scene", mirrored)):
        likeness = prints_.flatten(1) @ others
        for i, j in (likeness > ALIKE).nonzero().tolist():
            if first is not second or (i < j):
                found.append(Finding(kind, (first[i], second[j]), f"likeness {likeness[i, j]:.2f} of 1"))
    return found


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    return step
