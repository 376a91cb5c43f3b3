"""A run over many images: reading, computing and writing, what became of each, and how it is reported."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twofold import images
from twofold.cli.pictures import STREAM, Job, read_input, save_picture
from twofold.contracts import TwofoldError
from twofold.files import remove_orphans
from twofold.printing import printable

Advance = Callable[[int, int], None]
"""Called with how much of one image is done: (tiles done, tiles in all)."""

INTERRUPTED = "interrupted"
# What the next image would meet too, after being computed: a full or read-only disk, a folder that cannot be used.
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@dataclass
class Outcome:
    """What happened to the files of a run, printed at its end.

    total: jobs in all. stopped: why it ended early. errors: what failed beside the images.
    """

    total: int = 0
    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    errors: list[str] = field(default_factory=list)

    def close(self, *, as_json: bool, verb: str, quiet: bool = False) -> int:
        """Prints the summary; returns the exit code."""
        if as_json:
            failed = [{"input": name, "error": message} for name, message in self.failed.items()]
            report = {"done": self.done, "skipped": self.skipped, "failed": failed}
            print(json.dumps({**report, "errors": self.errors, "stopped": self.stopped or None}, indent=2))
        elif not quiet:
            for facts in self.done[:20]:
                guessed = f" by {facts['models'][0]}: {facts['guess']}" if "guess" in facts else ""
                print(f"{printable(facts['input'])} → {printable(facts['output'])} ({facts['seconds']:.1f} s){guessed}")
            if len(self.done) + len(self.skipped) > 1:
                more = " (the first 20 are named)" if len(self.done) > 20 else ""
                print(f"{len(self.done)} {verb}{more}" + (f", {len(self.skipped)} skipped" if self.skipped else ""))
        for message in [*self._warnings(), *self.failed.values(), *self.errors]:
            print(f"twofold: {printable(message)}", file=sys.stderr)
        if self.failed and self.total > 1:
            print(f"twofold: {len(self.failed)} of {len(self.done) + len(self.failed)} failed", file=sys.stderr)
        if self.stopped and (self.total > 1 or self.stopped == INTERRUPTED):
            print(f"twofold: {self.stopped}; nothing is half-written, --skip-existing goes on later", file=sys.stderr)
        return 130 if self.stopped == INTERRUPTED else 1 if self.failed or self.errors else 0

    def _warnings(self) -> Iterator[str]:
        for facts in self.done:
            if "frames" in facts:
                yield f"{facts['input']}: only the first of {facts['frames']} frames"
            if "damage" in facts:
                yield f"{facts['input']}: {facts['damage']}; the rest is restored"
        lost: Counter[tuple[str, str]] = Counter()
        for facts in self.done:
            lost.update((facts["format"], name) for name in facts.get("not_kept", []))
        for (format, name), count in lost.items():
            files = f"{count} outputs" if count > 1 else next(f["output"] for f in self.done if "not_kept" in f)
            yield f"{files}: {name} of the input is not kept in {format.upper()} files; --format png keeps it"


class Computed(NamedTuple):
    """What came of one image: facts for the report, files to be written beside the result, and the result.

    The result is written last: where it is there, so are the others, and --skip-existing loses none.
    """

    facts: dict[str, Any]
    beside: Sequence[tuple[Path, images.Picture]]
    result: images.Picture


@contextmanager
def bar(total: int, what: str, *, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error; the function yielded says how much is done. Silent without a terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    silent = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=silent) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def run_jobs(
    work: Sequence[Job],
    compute: Callable[[Job, images.Picture, Advance], Computed],
    *,
    parallel: int = 1,
    skip: bool = False,
    passing: Callable[[Job], None] | None = None,
    quality: int | None = None,
    quiet: bool = False,
    what: str,
) -> Outcome:
    """Reads every job's image, computes its result and writes that. What fails is noted and the rest goes on; Ctrl-C
    and a place that takes no more files end the run, with what was done noted.

    compute: called in this thread, in the order of the jobs; its last argument moves the progress bar. parallel: with
    more than 1, so many images are read ahead and written behind by other threads; the files are the same. skip: leave
    jobs whose target is there and not empty. passing: called with each of those. quality: of JPEG and WebP files.
    """
    for folder in {job.target.parent for job in work}:
        remove_orphans(folder)
    with bar(len(work), what, quiet=quiet) as show, _threads(parallel) as threads:
        outcome = Outcome(len(work))
        _JobQueue(work, compute, threads, parallel, skip, passing, quality, show, outcome).run()
    return outcome


@dataclass
class _JobQueue:
    work: Sequence[Job]
    compute: Callable[[Job, images.Picture, Advance], Computed]
    threads: Executor
    ahead: int
    skip: bool
    passing: Callable[[Job], None] | None
    quality: int | None
    show: Callable[[float], None]
    noted: Outcome
    reads: deque[Future[tuple[images.Picture, float]] | None] = field(default_factory=deque)
    writes: deque[tuple[Job, Future[dict[str, Any]]]] = field(default_factory=deque)

    def run(self) -> None:
        try:
            for number, job in enumerate(self.work):
                for later in self.work[number + len(self.reads) : number + self.ahead]:
                    self.reads.append(None if self.skip and is_done(later) else self.threads.submit(_timed_read, later))
                self.one(number, job, self.reads.popleft())
                self.settle(self.ahead - 1)
                if self.noted.stopped:
                    break
                self.show(number + 1)
            self.settle(0)
        except KeyboardInterrupt:
            self.noted.stopped = INTERRUPTED
            self.settle(0)  # of files that are being written, none is lost
        for read in self.reads:
            if read is not None:
                read.cancel()

    def one(self, number: int, job: Job, read: Future[tuple[images.Picture, float]] | None) -> None:
        try:
            if read is None:
                if self.passing is not None:
                    self.passing(job)
                self.noted.skipped.append(str(job.source))
                return
            picture, seconds = read.result()
            started = time.perf_counter()
            computed = self.compute(job, picture, lambda done, total: self.show(number + done / total))
            seconds += time.perf_counter() - started
            about: dict[str, Any] = {"frames": picture.frames} if picture.frames > 1 else {}
            about |= {"damage": picture.damage} if picture.damage else {}
            self.writes.append((job, self.threads.submit(_written, job, computed, about, self.quality, seconds)))
        except TwofoldError as error:
            self.note(job, error)

    def settle(self, left: int) -> None:
        """Waits until at most `left` images are still being written."""
        while len(self.writes) > left:
            job, write = self.writes.popleft()
            try:
                self.noted.done.append(write.result())
            except TwofoldError as error:
                self.note(job, error)

    def note(self, job: Job, error: TwofoldError) -> None:
        source, message = str(job.source), str(error)
        known = message.startswith(source) or job.source == STREAM
        self.noted.failed[source] = message if known else f"{source}: {message}"
        if getattr(error.__cause__, "errno", None) in _LASTING:
            self.noted.stopped = "stopped, as the others could not be written either"


def is_done(job: Job) -> bool:
    """Whether its output is there, and not empty as after a loss of power."""
    return job.target != STREAM and os.path.isfile(job.target) and job.target.stat().st_size > 0


def _timed_read(job: Job) -> tuple[images.Picture, float]:
    started = time.perf_counter()
    return read_input(job), time.perf_counter() - started


def _written(
    job: Job, computed: Computed, about: dict[str, Any], quality: int | None, seconds: float
) -> dict[str, Any]:
    started = time.perf_counter()
    for path, picture in computed.beside:
        save_picture(path, picture)
    save_picture(job.target, computed.result, suffix=job.suffix, quality=quality)
    lost = images.not_kept(computed.result, job.suffix)
    facts: dict[str, Any] = {"input": str(job.source), "output": str(job.target), "format": job.suffix[1:]}
    facts |= {**computed.facts, **about}
    facts |= {"not_kept": lost} if lost else {}
    return {**facts, "seconds": round(seconds + time.perf_counter() - started, 3)}


class _AtOnce(Executor):
    """Runs what is submitted in the calling thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _threads(parallel: int) -> Executor:
    return _AtOnce() if parallel == 1 else ThreadPoolExecutor(2 * parallel)


def dry_run(work: Sequence[Job], *, skip: bool, as_json: bool) -> int:
    """Prints what a run would do."""
    skipped = [job for job in work if skip and is_done(job)]
    planned = [job for job in work if job not in skipped]
    if as_json:
        pairs = [{"input": str(job.source), "output": str(job.target)} for job in planned]
        print(json.dumps({"planned": pairs, "skipped": [str(job.source) for job in skipped]}, indent=2))
        return 0
    for job in planned:
        print(f"{printable(job.source)} → {printable(job.target)}")
    print(f"{len(planned)} planned, {len(skipped)} skipped; nothing was written")
    return 0
