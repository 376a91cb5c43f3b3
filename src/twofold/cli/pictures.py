"""What the verbs that turn pictures into pictures share: where outputs go, and how a run over many files is shown."""

from __future__ import annotations

import errno
import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twofold import images
from twofold.cli.misuse import Misuse
from twofold.contracts import ImageError, TwofoldError

FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff"}

Advance = Callable[[int, int], None]
"""Told how much of one picture is done: (tiles done, tiles in all)."""


@dataclass(frozen=True)
class Job:
    """One picture: where it comes from, where its result goes, and its name below the folder it was found in."""

    source: Path
    target: Path
    name: Path


def jobs(
    inputs: Sequence[Path],
    output: Path | None,
    *,
    others: Sequence[Path | None] = (),
    format: str | None = None,
    marker: str,
) -> list[Job]:
    """Pairs inputs with outputs.

    One picture goes to `output` if that has a suffix, else into the folder `output`, as several do. Without an output,
    `photo.jpg` goes to `photo-MARKER.jpg` and a folder to `FOLDER-MARKER`. Sub-folders are kept. Outputs of an earlier
    run that lie inside an input folder are no inputs.

    others: where else the run writes: files, folders, or None for what is not asked for.

    Raises: TwofoldError where an input is missing, or an output would replace an input or another output.
    """
    if format is not None and format not in FORMATS:
        raise Misuse(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    suffix = FORMATS[format] if format else None
    inputs = list(dict.fromkeys(inputs))
    if output is not None and len(inputs) == 1 and output.suffix and not (output.is_dir() or inputs[0].is_dir()):
        _check_name(output, suffix)
        found = [Job(source, output, Path(source.name)) for source in images.find(inputs)]
    else:
        if output is not None and (output.suffix.lower() in images.SUFFIXES or output.is_file()):
            raise Misuse(f"{output} names one file, but a folder is needed for a folder or several pictures")
        places = [place.resolve() for place in others if place is not None]
        found = [job for path in inputs for job in _jobs_of(path, output, places, suffix, marker)]
    if not found:
        raise ImageError(f"no pictures in {', '.join(map(str, inputs))}; known suffixes: {' '.join(images.SUFFIXES)}")
    found = list({(job.source.resolve(), job.target.resolve()): job for job in found}.values())  # each picture once
    check_places(found)
    return found


def _jobs_of(path: Path, output: Path | None, others: Sequence[Path], suffix: str | None, marker: str) -> Iterator[Job]:
    if path.is_dir():
        root = path.resolve()
        if output is None and not root.name:
            raise TwofoldError(f"{path} has no name to call a folder of outputs by; name one with -o")
        folder = output or (root if path.name in ("", "..") else path).with_name(f"{root.name}-{marker}")
        # At the folder itself or above it, a place leaves all in, so that replacing an input is noticed.
        inside = [place for place in (folder.resolve(), *others) if root in place.parents]
        for source in images.find([path]):
            if not any(source.resolve().is_relative_to(place) for place in inside):
                name = source.relative_to(path)
                yield Job(source, _ending(folder / name, suffix), name)
    else:
        (source,) = images.find([path])
        target = output / source.name if output else source.with_name(f"{source.stem}-{marker}{source.suffix}")
        yield Job(source, _ending(target, suffix), Path(source.name))


def _ending(path: Path, suffix: str | None) -> Path:
    own = path.suffix if path.suffix.lower() in images.SUFFIXES else ".png"
    return path.with_suffix(suffix or own)


def _check_name(output: Path, suffix: str | None) -> None:
    check_suffix(output, folder=True)
    same = {".jpeg": ".jpg", ".tif": ".tiff"}
    if suffix and same.get(output.suffix.lower(), output.suffix.lower()) != suffix:
        raise Misuse(f"{output} and --format {suffix[1:]} disagree; leave one of them out")


def beside(work: Sequence[Job], place: Path | None, *, option: str, deep: bool = False) -> dict[Job, Path]:
    """Where something that belongs to each picture lies: in the file `place` for one, as a PNG of the same name in the
    folder `place` for several. Empty without a place.

    deep: it needs 16 bits.
    """
    if place is None:
        return {}
    if place.is_file() and place.suffix.lower() not in images.SUFFIXES:
        raise Misuse(f"{option} {place} is a file, but no picture; name another place")
    if len(work) == 1 and place.suffix and not place.is_dir():  # as for the result of one picture
        check_suffix(place, folder=True)
    if place.suffix.lower() not in images.SUFFIXES or place.is_dir():
        return {job: (place / job.name).with_suffix(".png") for job in work}
    if len(work) > 1:
        raise Misuse(f"{option} {place} is one file, but there are {len(work)} pictures; name a folder")
    if deep and place.suffix.lower() not in (".png", ".tif", ".tiff"):
        raise Misuse(f"{option} {place}: a map needs 16 bits; name a .png or .tiff file")
    return {work[0]: place}


def twin_of(folder: Path, name: Path) -> Path:
    """The file of `folder` that is called like the picture `name`, whatever its suffix: in the same sub-folder, or else
    in the folder itself.

    Raises: TwofoldError where there is none, or more than one.
    """
    for place in (folder / name.parent, folder):
        # The pattern finds `photo.alt.png` for `photo.jpg` too; only a whole stem is a twin.
        found = sorted(
            file for file in place.glob(f"{glob.escape(name.stem)}*") if file.stem == name.stem and file.is_file()
        )
        if len(found) > 1:
            raise TwofoldError(f"{place} has several files called {name.stem}: {_listed(found)}; keep one")
        if found:
            return found[0]
    raise TwofoldError(f"{folder} has no file called {name.stem}; put it there, or name one file for all pictures")


def twins(work: Sequence[Job], place: Path) -> dict[Job, Path]:
    """The file `place` for every picture, or each one's twin in the folder `place`, where it has one."""
    if not place.is_dir():
        return dict.fromkeys(work, place)
    found = {}
    for job in work:
        with suppress(TwofoldError):
            found[job] = twin_of(place, job.name)
    return found


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (" …" if len(files) > 3 else "")


def check_suffix(path: Path, *, folder: bool = False) -> None:
    """Raises: Misuse where no format goes by the suffix of a file to be written.

    folder: it could also be one, if it were there.
    """
    if path.suffix.lower() not in images.SUFFIXES:
        more = "; or make the folder first" if folder else ""
        raise Misuse(f"cannot write {path}; known suffixes: {' '.join(images.SUFFIXES)}{more}")


def check_places(
    work: Sequence[Job], *outputs: Mapping[Job, Path], sheet: Path | None = None, given: Iterable[Path] = ()
) -> None:
    """Raises: ImageError where an output would replace an input or another output.

    outputs: what is kept of each picture beside its result. sheet: one file of all pictures. given: what is read beside
    the pictures.
    """
    places: list[tuple[Path, Job | None]] = [(job.target, job) for job in work]
    places += [(path, job) for kept in outputs for job, path in kept.items()]
    places += [] if sheet is None else [(sheet, None)]
    inputs = {path.resolve() for path in (*(job.source for job in work), *given)}
    taken: dict[Path, Job | None] = {}
    for path, job in places:
        place = path.resolve()
        if place in inputs:
            raise ImageError(f"{path} would replace an input; name another output")
        if place in taken:
            first = taken[place]
            mend = "; name different places for the two"
            if first and job and first != job:
                mend = f", for {first.source} and for {job.source}; rename one of them"
            raise ImageError(f"{path} would be written twice{mend}")
        taken[place] = job


def tile_size(text: str) -> int | Literal["auto"]:
    """What --tile says. Raises: TwofoldError."""
    if text == "auto":
        return "auto"
    if not (text.isdecimal() and int(text) > 0):
        raise Misuse(f"--tile takes auto or a number of pixels, got {text!r}")
    return int(text)


def save_picture(path: Path, picture: images.Picture) -> None:
    """Writes a picture, and the folder it goes into. Raises: TwofoldError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TwofoldError(f"{path.parent}: cannot be made ({error.strerror}); choose another output") from error
    images.write(path, picture)


@dataclass
class Outcome:
    """What happened to the files of a run, printed at its end. stopped: why it ended early."""

    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""

    def close(self, *, as_json: bool, verb: str) -> int:
        """Prints the summary; returns the exit code."""
        if as_json:
            failed = [{"input": name, "error": message} for name, message in self.failed.items()]
            print(json.dumps({"done": self.done, "skipped": self.skipped, "failed": failed}, indent=2))
        else:
            for facts in self.done[:20]:
                print(f"{facts['input']} → {facts['output']} ({facts['seconds']:.1f} s)")
            if len(self.done) + len(self.skipped) > 1:
                more = " (the first 20 are named)" if len(self.done) > 20 else ""
                print(f"{len(self.done)} {verb}{more}" + (f", {len(self.skipped)} skipped" if self.skipped else ""))
        for facts in self.done:
            if "frames" in facts:
                print(f"twofold: {facts['input']}: only the first of {facts['frames']} frames", file=sys.stderr)
        for message in self.failed.values():
            print(f"twofold: {message}", file=sys.stderr)
        if self.failed:
            print(f"twofold: {len(self.failed)} of {len(self.done) + len(self.failed)} failed", file=sys.stderr)
        if self.stopped:
            print(f"twofold: {self.stopped}; nothing is half-written, --skip-existing goes on later", file=sys.stderr)
        return 130 if self.stopped == INTERRUPTED else 1 if self.failed else 0


INTERRUPTED = "interrupted"
# What the next picture would meet too, after being computed: a full or read-only disk, a folder that cannot be used.
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@contextmanager
def bar(total: int, what: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error; the function yielded says how much is done. Silent where nobody watches."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def run_jobs(
    work: Sequence[Job],
    act: Callable[[Job, Advance], dict[str, Any]],
    *,
    skip: bool = False,
    passing: Callable[[Job], None] | None = None,
    what: str,
) -> Outcome:
    """Runs `act(job, step)` on every job, in which `step` moves the progress bar. What fails is noted and the rest goes
    on; Ctrl-C and a place that takes no more files end the run, with what was done noted.

    skip: leave jobs whose target is there. passing: called with each of those.
    """
    outcome = Outcome()

    def one(number: int, job: Job, show: Callable[[float], None]) -> None:
        if skip and job.target.exists():
            if passing is not None:
                passing(job)
            outcome.skipped.append(str(job.source))
        else:
            outcome.done.append(act(job, lambda done, total: show(number + done / total)))

    with bar(len(work), what) as show:
        for number, job in enumerate(work):
            try:
                one(number, job, show)
            except TwofoldError as error:
                source, message = str(job.source), str(error)
                outcome.failed[source] = message if message.startswith(source) else f"{source}: {message}"
                if getattr(error.__cause__, "errno", None) in _LASTING:
                    outcome.stopped = "stopped, as the others could not be written either"
                    break
            except KeyboardInterrupt:
                outcome.stopped = INTERRUPTED
                break
            show(number + 1)
    return outcome


def frames_of(picture: images.Picture) -> dict[str, int]:
    """What an outcome tells of a picture that has more frames than the first, which is the one that is read."""
    return {"frames": picture.frames} if picture.frames > 1 else {}


def cache_folder() -> Path:
    """Where this machine's answers are remembered: $XDG_CACHE_HOME/twofold, or ~/.cache/twofold."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twofold"
