"""What the verbs that turn pictures into pictures share: where outputs go, and how a run over many files is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twofold import images
from twofold.contracts import ImageError, TwofoldError

FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff"}


@dataclass(frozen=True)
class Job:
    """One picture: where it comes from, where its result goes, and its name below the folder it was found in."""

    source: Path
    target: Path
    name: Path


def jobs(inputs: Sequence[Path], output: Path | None, *, suffix: str | None, marker: str) -> list[Job]:
    """Pairs inputs with outputs. A single file goes to `output` if that is named like a picture, else into the folder
    `output`.

    Without an output, `photo.jpg` goes to `photo-MARKER.jpg` and a folder to `FOLDER-MARKER`. Sub-folders are kept.

    Raises: ImageError where an input is missing, or an output would replace an input or another output.
    """
    found: list[Job] = []
    for path in inputs:
        inside = path.is_dir()
        for source in images.find([path]):
            ending = suffix or source.suffix
            if inside:
                folder = output or path.with_name(f"{path.resolve().name}-{marker}")
                target = (folder / source.relative_to(path)).with_suffix(ending)
            elif output is None:
                target = source.with_name(f"{source.stem}-{marker}{ending}")
            elif output.suffix.lower() in images.SUFFIXES and not output.is_dir():
                if len(inputs) > 1:
                    raise ImageError(f"{output} is one file, but there are {len(inputs)} inputs; name a folder")
                target = output
            else:
                target = (output / source.name).with_suffix(ending)
            found.append(Job(source, target, source.relative_to(path) if inside else Path(source.name)))
    if not found:
        raise ImageError(f"no pictures in {', '.join(map(str, inputs))}; known suffixes: {' '.join(images.SUFFIXES)}")
    sources, targets = {job.source.resolve() for job in found}, set()
    for job in found:
        place = job.target.resolve()
        if place in sources:
            raise ImageError(f"{job.target} would replace an input; name another output with -o")
        if place in targets:
            raise ImageError(f"two inputs would be written to {job.target}; restore them into different folders")
        targets.add(place)
    return found


@dataclass
class Outcome:
    """What happened to the files of a run, printed at its end."""

    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def close(self, *, as_json: bool, verb: str) -> int:
        """Prints the summary; returns the exit code."""
        if as_json:
            failed = [{"input": name, "error": message} for name, message in self.failed.items()]
            print(json.dumps({"done": self.done, "skipped": self.skipped, "failed": failed}, indent=2))
        else:
            for facts in self.done[:20]:
                print(f"{facts['input']} → {facts['output']} ({facts['seconds']:.1f} s)")
            more = f" (first 20 of {len(self.done)} named)" if len(self.done) > 20 else ""
            skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
            if len(self.done) + len(self.skipped) > 1 or skipped:
                print(f"{len(self.done)} {verb}{more}{skipped}")
        for message in self.failed.values():
            print(f"twofold: {message}", file=sys.stderr)
        if self.failed:
            print(f"twofold: {len(self.failed)} of {len(self.done) + len(self.failed)} failed", file=sys.stderr)
        return 1 if self.failed else 0


@contextmanager
def bar(total: int, what: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error; the function yielded says how much is done. Silent where nobody watches."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def each(
    work: Sequence[Job], act: Callable[[Job, Callable[[float], None]], dict[str, Any]], *, skip: bool, what: str
) -> Outcome:
    """Runs `act(job, progress)` on every job; a failure is kept and the rest goes on. progress takes a share in [0,
    1].
    """
    outcome = Outcome()
    with bar(len(work), what) as show:
        for number, job in enumerate(work):
            if skip and job.target.exists():
                outcome.skipped.append(str(job.source))
                continue
            try:
                job.target.parent.mkdir(parents=True, exist_ok=True)
                outcome.done.append(act(job, lambda share, number=number: show(number + share)))  # type: ignore[misc]
            except TwofoldError as error:
                message = str(error)
                outcome.failed[str(job.source)] = message if str(job.source) in message else f"{job.source}: {message}"
            except OSError as error:
                outcome.failed[str(job.source)] = f"cannot write {job.target}: {error.strerror or error}"
            show(number + 1)
    return outcome
