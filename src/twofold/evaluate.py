"""Measures a restorer on image pairs under a protocol: scores per image, means with intervals, the papers' rows.

A score cannot be interpreted without its protocol and the score of the input, so an `Evaluation` contains both.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import stdev
from typing import Any, runtime_checkable
from typing import Protocol as Shape

import torch
from scipy.special import stdtrit
from torch import Tensor

from twofold import images
from twofold.contracts import DataError, Restored, Sample, TwofoldError
from twofold.data.pairs import middle
from twofold.files import write_text
from twofold.metrics import Protocol
from twofold.nets.perceptual import DirectionDistance
from twofold.printing import printable, table_cell
from twofold.settings import nearest


@runtime_checkable
class Files(Shape):
    """A pair of picture files, as `twofold.data.pairs.Pair`; read in its turn: a broken one costs only itself."""

    @property
    def name(self) -> str:
        """Of the pair, as tables show it."""

    @property
    def observed(self) -> Path:
        """The degraded picture."""

    @property
    def clean(self) -> Path:
        """The ground truth."""


Case = Files | tuple[str, Sample]
"""What is evaluated: two files, or a name and a sample of one picture, whose `kernel` is passed to the restorer."""


@dataclass(frozen=True)
class Row:
    """One picture: restored and untouched against clean. PSNR in dB, infinite where nothing differs.

    perceptual: a distance, less is nearer; None where no network was given.
    """

    name: str
    psnr: float
    ssim: float
    input_psnr: float
    input_ssim: float
    seconds: float
    perceptual: float | None = None
    input_perceptual: float | None = None


@dataclass(frozen=True)
class Failure:
    """A picture that has no score, and why."""

    name: str
    error: str


@dataclass(frozen=True)
class PaperRow:
    """A number printed in a paper.

    paper: who printed it. source: its table or figure. pictures: on which it was made. setting: noise level or such.
    protocol: the one of `twofold.metrics` that it was made with, as far as is known, else empty.
    """

    dataset: str
    method: str
    psnr: float
    ssim: float
    lpips: float | None
    setting: str
    paper: str
    source: str
    pictures: str
    protocol: str


@dataclass(frozen=True)
class Summary:
    """Means over the pictures; `gain` is the mean of psnr − input_psnr, and what a restorer is worth.

    Intervals hold the mean with 95 % confidence over the draw of pictures (see `interval`).
    """

    pictures: int
    failed: int
    psnr: float
    psnr_interval: tuple[float, float] | None
    ssim: float
    ssim_interval: tuple[float, float] | None
    input_psnr: float
    input_ssim: float
    gain: float
    gain_interval: tuple[float, float] | None
    seconds: float
    perceptual: float | None = None
    perceptual_interval: tuple[float, float] | None = None
    input_perceptual: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What came out. `failures` is empty when every picture has a score. perceptual: name of the distance, or empty."""

    model: str
    dataset: str
    protocol: Protocol
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    papers: tuple[PaperRow, ...]
    perceptual: str = ""

    def summary(self) -> Summary:
        """Means and intervals over the pictures that have a score."""
        psnr, ssim = [row.psnr for row in self.rows], [row.ssim for row in self.rows]
        gain = [0.0 if row.psnr == row.input_psnr else row.psnr - row.input_psnr for row in self.rows]
        distance = [row.perceptual for row in self.rows if row.perceptual is not None]
        before = [row.input_perceptual for row in self.rows if row.input_perceptual is not None]
        return Summary(
            pictures=len(self.rows),
            failed=len(self.failures),
            psnr=_mean(psnr),
            psnr_interval=interval(psnr),
            ssim=_mean(ssim),
            ssim_interval=interval(ssim),
            input_psnr=_mean([row.input_psnr for row in self.rows]),
            input_ssim=_mean([row.input_ssim for row in self.rows]),
            gain=_mean(gain),
            gain_interval=interval(gain),
            seconds=_mean([row.seconds for row in self.rows]),
            perceptual=_mean(distance) if distance else None,
            perceptual_interval=interval(distance),
            input_perceptual=_mean(before) if before else None,
        )

    def to_json(self) -> str:
        """Summary, protocol, pictures, failures, the papers' rows. An infinite PSNR is the string "inf"."""
        content = {
            "model": self.model,
            "dataset": self.dataset,
            "summary": asdict(self.summary()),
            "protocol": asdict(self.protocol),
            "perceptual": self.perceptual,
            "images": [asdict(row) for row in self.rows],
            "failures": [asdict(failure) for failure in self.failures],
            "papers": [asdict(row) for row in self.papers],
        }
        return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The same for people: means, the papers' rows, every picture, failures."""
        s, p = self.summary(), self.protocol
        low = f" On {self.dataset}." if self.dataset else ""
        lines = [
            f"# {self.model or 'restorer'}, protocol `{p.name}`",
            "",
            f"{s.pictures} pictures, {s.failed} failed, {s.seconds:.2f} s each.{low} SSIM variant `{p.ssim}`."
            + (" The restored picture is scaled to the mean of the clean one: read it against the input." * p.gt_mean),
            "",
            "| | PSNR | 95 % | SSIM | 95 % |",
            "|---|---|---|---|---|",
            f"| untouched input | {s.input_psnr:.2f} | | {s.input_ssim:.4f} | |",
            f"| {self.model or 'restored'} | {s.psnr:.2f} | {_span(s.psnr_interval, 2)} "
            f"| {s.ssim:.4f} | {_span(s.ssim_interval, 4)} |",
            f"| gain | {s.gain:+.2f} | {_span(s.gain_interval, 2)} | {s.ssim - s.input_ssim:+.4f} | |",
        ]
        if s.perceptual is not None:
            inside = _span(s.perceptual_interval, 4)
            lines += ["", f"| `{self.perceptual}`, less is nearer | mean | 95 % |", "|---|---|---|"]
            lines += [f"| untouched input | {s.input_perceptual:.4f} | |"]
            lines += [f"| {self.model or 'restored'} | {s.perceptual:.4f} | {inside} |"]
        if self.papers:
            lines += [
                "",
                "As printed in papers, on their own pictures: comparable only on the same ones under one protocol.",
            ]
            lines += [
                "",
                "| method | PSNR | SSIM | LPIPS | setting | pictures | protocol | printed in |",
                "|" + "---|" * 8,
            ]
            lines += [
                f"| {r.method} | {r.psnr} | {r.ssim} | {'' if r.lpips is None else r.lpips} | {r.setting} "
                f"| {r.pictures} | {r.protocol or 'not stated'} | {r.paper}, {r.source} |"
                for r in self.papers
            ]
        lines += ["", "| picture | PSNR | SSIM | input PSNR | input SSIM | s |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {table_cell(r.name)} | {r.psnr:.2f} | {r.ssim:.4f} | {r.input_psnr:.2f} | {r.input_ssim:.4f} "
            f"| {r.seconds:.2f} |"
            for r in self.rows
        ]
        if self.failures:
            lines += [
                "",
                "Failed:",
                "",
                *(f"* {printable(failure.name)}: {printable(failure.error)}" for failure in self.failures),
            ]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Writes Markdown to a path that ends in `.md`, else JSON; the file is complete or absent.

        Raises: TwofoldError where the folder cannot be written to.
        """
        write_text(path, self.to_markdown() if path.suffix == ".md" else self.to_json())


def evaluate(
    restorer: Callable[..., Restored],
    pairs: Iterable[Case],
    protocol: Protocol,
    *,
    model: str = "",
    dataset: str = "",
    kernel_of: Callable[[Files], Tensor] | None = None,
    distance: DirectionDistance | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Evaluation:
    """Restores every observed picture, compares it with the clean one, and sets the papers' rows beside.

    restorer: observed `(1, C, H, W)` in [0, 1], on the CPU, → Restored; tiles and devices are its own matter. It gets
    the keyword `kernel` where a sample has a blur kernel.
    pairs: files, or (name, sample). kernel_of: the blur kernel of two files.
    distance: LPIPS or another one of `nets.perceptual.DISTANCES`, of RGB pictures as the protocol writes them.
    dataset: whose rows of the papers to show (a key of `paper_datasets`), or empty.
    progress: called after every picture with how many are done and how many there are, None if unknown.

    A clean file that is a little larger is cropped to its middle (`data.pairs.middle`), as RESIDE's indoor set needs.
    A file that cannot be read, sizes that differ more and a restored picture that holds NaN become failures, and the
    rest goes on. Raises: DataError where no pair has a score, or for an unknown data set.
    """
    papers = paper_rows(dataset) if dataset else ()
    total = len(pairs) if isinstance(pairs, Sized) else None
    rows: list[Row] = []
    failures: list[Failure] = []
    for done, pair in enumerate(pairs, 1):
        try:
            rows.append(_row(restorer, pair, protocol, kernel_of, distance))
        except (TwofoldError, OSError) as error:
            failures.append(Failure(pair.name if isinstance(pair, Files) else pair[0], str(error)))
        if progress:
            progress(done, total)
    if not rows:
        why = (
            f"the first of {len(failures)}: {failures[0].name}: {failures[0].error}"
            if failures
            else "no pairs were given"
        )
        raise DataError(f"nothing to evaluate, {why}")
    name = "" if distance is None else distance.name
    return Evaluation(model, dataset, protocol, tuple(rows), tuple(failures), papers, name)


def _row(
    restorer: Callable[..., Restored],
    pair: Case,
    protocol: Protocol,
    kernel_of: Callable[[Files], Tensor] | None,
    distance: DirectionDistance | None,
) -> Row:
    given: dict[str, Tensor] = {}
    if isinstance(pair, Files):
        given = {} if kernel_of is None else {"kernel": kernel_of(pair)}
        name, observed, clean = pair.name, images.read(pair.observed).pixels, images.read(pair.clean).pixels
        clean = middle(clean, (observed.shape[-2], observed.shape[-1]), name=str(pair.clean))
    else:
        name, sample = pair
        observed, clean = sample.observed, sample.clean
        given = {} if sample.kernel is None else {"kernel": sample.kernel}
    if observed.shape != clean.shape:
        sizes = f"observed is {tuple(observed.shape)} and clean {tuple(clean.shape)}"
        raise DataError(f"{sizes}, where one shape is needed; crop or convert one of them")
    start = time.perf_counter()
    with torch.no_grad():
        restored = restorer(observed, **given).image.cpu()  # waits for a GPU, so the clock is right
    seconds = time.perf_counter() - start
    if not torch.isfinite(restored).all():
        raise DataError("the restored picture holds NaN or infinite values")
    after, before = protocol.score(restored, clean), protocol.score(observed, clean)
    row = Row(name, after.psnr.item(), after.ssim.item(), before.psnr.item(), before.ssim.item(), seconds)
    if distance is None:
        return row
    with torch.no_grad():
        apart = [distance(protocol.written(image, clean).float(), clean).item() for image in (restored, observed)]
    return replace(row, perceptual=apart[0], input_perceptual=apart[1])


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean; None for fewer than two values or where one is infinite.

    It says how the mean moves with the draw of pictures, not whether another training run would give it. Two restorers
    on the same pictures are compared by the interval of their differences (as `gain` is), never by overlap.

    Two values, one apart, leave nearly everything open: 12.7 standard errors of 0.5 to either side.

    >>> interval([30.0, 31.0])
    (24.14..., 36.85...)
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    reach = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return _mean(values) - reach, _mean(values) + reach


def paper_datasets() -> tuple[str, ...]:
    """The data sets that the papers print numbers for.

    >>> paper_datasets()[:2]
    ('Rain100L', 'Rain100H')
    """
    return tuple(_papers()["datasets"])


def paper_rows(dataset: str) -> tuple[PaperRow, ...]:
    """What the papers print for a data set, in their order; upper and lower case are alike.

    Raises: DataError for a data set that they do not use, naming the nearest.

    >>> [(row.method, row.psnr) for row in paper_rows("rain100h")][-2:]
    [('PReNet', 29.46), ('IRHG', 30.21)]
    """
    known = {name.lower(): name for name in paper_datasets()}
    if dataset.lower() not in known:
        raise DataError(f"no paper's numbers for {dataset!r}; {nearest(dataset, known.values())}")
    name, content = known[dataset.lower()], _papers()
    return tuple(
        PaperRow(
            dataset=name,
            method=row["method"],
            psnr=row["psnr"],
            ssim=row["ssim"],
            lpips=row.get("lpips"),
            setting=row.get("setting", ""),
            paper=content["papers"][row["paper"]],
            source=row["source"],
            pictures=content["datasets"][name]["pictures"],
            protocol=content["datasets"][name]["protocol"] or "",
        )
        for row in content["rows"]
        if row["dataset"] == name
    )


@cache
def _papers() -> Any:
    return json.loads(resources.files("twofold").joinpath("configs/paper_numbers.json").read_text(encoding="utf-8"))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)  # not fmean, which raises for infinities of both signs


def _span(interval: tuple[float, float] | None, digits: int) -> str:
    return "" if interval is None else f"{interval[0]:.{digits}f} … {interval[1]:.{digits}f}"


def _finite(content: Any) -> Any:
    """`content` with infinite numbers as strings: JSON has none, and `float("inf")` reads them back."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content
