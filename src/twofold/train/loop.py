"""The training loop, the same for every scheme."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from twofold.contracts import Sample, TwofoldError, WeightsError
from twofold.files import remove_orphans, write_text
from twofold.train import checkpoint
from twofold.train.schemes import Report, Scheme, load_state, state_of

DrawsOfStep = Callable[[int], tuple[Sequence[Sample], ...]]  # the draws of step n, a pure function of n
Tensors = tuple[Tensor, ...] | list[Tensor]
Validate = Callable[[int, nn.Module], dict[str, float]]  # (steps done, restorer in evaluation mode) → scores


def average_of(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a module's parameters: what is validated and shipped. It starts at their values.

    decay: share of the old average kept at update n, reached gradually: min(decay, (1 + n) / (10 + n)). Buffers are not
    averaged: they are those of the module.
    """

    def follow(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    average = AveragedModel(module, multi_avg_fn=follow)
    average.update_parameters(module)  # the first update copies
    return average


@dataclass(frozen=True)
class Run:
    """Where a run is stored and how often its state is saved.

    folder: gets `state.safetensors`. minutes: between checkpoints. stop_after: minutes until the run stops itself
    with a checkpoint, as at Ctrl-C; None for no limit. validate_every: steps between validations. main:
    False on all ranks but the first, which write nothing.
    """

    folder: Path
    minutes: float = 5.0
    stop_after: float | None = None
    validate_every: int = 1000
    main: bool = True

    @property
    def state(self) -> Path:
        """The file of the state that a run is resumed from."""
        return self.folder / "state.safetensors"


class TimeUp(TwofoldError):
    """The time that a run was given is over; its state is saved, and the same call goes on."""


class Spent(NamedTuple):
    """What a run has taken so far: seconds of wall time and of processor time."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


def clocks() -> Spent:
    """Both clocks now, from an unspecified zero: only differences mean something."""
    return Spent(time.monotonic(), time.process_time())


def fit(
    scheme: Scheme,
    batches: DrawsOfStep,
    *,
    until: int,
    run: Run,
    reports: Sequence[Report] = (),
    average: AveragedModel | None = None,
    validate: Validate | None = None,
) -> Spent:
    """Trains until `until` steps are done in all; a run found in its folder is continued as if it had never stopped.

    Returns the time that training and validation took, earlier parts of the run included.

    average: see `average_of`. validate: called every `run.validate_every` steps and at the end with the number of steps
    done and what is validated, the average if there is one. Ctrl-C or SIGTERM takes effect between two steps: the state
    is saved, then KeyboardInterrupt raised. A second one stops at once. At the end of `run.stop_after` the state is
    saved and TimeUp raised.
    """
    done, before = resume(scheme, run, average)
    began, secured = clocks(), time.monotonic()
    deadline = math.inf if run.stop_after is None else secured + 60 * run.stop_after

    def spent() -> Spent:
        return Spent(*(earlier + now - then for earlier, now, then in zip(before, clocks(), began, strict=True)))

    with interruption() as asked_to_stop:
        while done < until:
            started = time.perf_counter()
            draws = batches(done)
            losses = scheme.step(*draws)
            done += 1
            if average is not None:
                average.update_parameters(scheme.restorer)
            images = sum(sample.clean.shape[0] for draw in draws for sample in draw)
            for report in reports:
                report.step(done, until, losses, images / (time.perf_counter() - started))
            if validate is not None and (done % run.validate_every == 0 or done == until):
                scores = validated(scheme, average, validate, done)
                for report in reports:
                    report.validated(done, scores)
            stop = asked_to_stop()
            late = done < until and time.monotonic() >= deadline
            if stop or late or done == until or time.monotonic() - secured > 60 * run.minutes:
                secured = time.monotonic()
                secure(scheme, run, average, done, spent())
            if stop:
                raise KeyboardInterrupt
            if late:
                raise TimeUp(f"stopped after {run.stop_after:g} minutes at step {done:,} of {until:,}, as asked")
    return spent()


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Holds the first Ctrl-C or SIGTERM back: the function yielded says whether one came. A second one acts as usual.

    Only the main thread can listen. A signal that this process ignores, as `nohup` arranges, stays ignored.
    """
    came = False

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def listen(number: int, frame: object) -> None:
        nonlocal came
        came = True
        restore()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    former = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in former:
        signal.signal(number, listen)
    try:
        yield lambda: came
    finally:
        restore()


def validated(scheme: Scheme, average: AveragedModel | None, validate: Validate, done: int) -> dict[str, float]:
    """What `validate` finds after `done` steps: of the average, or of the restorer where there is none."""
    restorer = scheme.restorer if average is None else average.module
    restorer.eval()
    try:
        with torch.no_grad():
            return validate(done, restorer)
    finally:
        restorer.train()


def secure(scheme: Scheme, run: Run, average: AveragedModel | None, done: int, spent: Spent) -> None:
    """Raises: TwofoldError where the state cannot be written; the former one is then still whole."""
    if run.main:
        kept = None if average is None else average.module.state_dict()
        state = {"done": done, **spent._asdict(), "scheme": state_of(scheme), "average": kept}
        checkpoint.write_state(run.state, state)


def resume(scheme: Scheme, run: Run, average: AveragedModel | None) -> tuple[int, Spent]:
    """The number of steps already done, and the time they took.

    Raises: WeightsError for a damaged state, or one of another model, scheme or average.
    """
    if run.main:
        remove_orphans(run.folder)  # of a kill while the state was written
    if not run.state.exists():
        return 0, Spent()
    state: dict[str, Any] = checkpoint.read_state(run.state)
    try:
        load_state(scheme, state["scheme"])
        if average is not None:
            average.module.load_state_dict(state["average"])
            average.n_averaged.fill_(state["done"] + 1)
        return int(state["done"]), Spent(*(float(state[name]) for name in Spent._fields))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{run.state} is the state of another model or scheme ({reason}); name another folder, or remove the file"
        ) from error


@contextmanager
def telling_what_cannot_be_written(path: Path) -> Iterator[None]:
    """Turns an OSError, such as that of a full disk, into a TwofoldError that names `path`."""
    try:
        yield
    except OSError as error:
        raise TwofoldError(f"cannot write {path}: {error.strerror or error}") from error


class JsonLines:
    """Appends one JSON line a report to `path`: step, losses, images/s; and every validation.

    A run that goes on from step n first drops the lines after n, which an interruption left: every step stands there
    once.
    """

    def __init__(self, path: Path, every: int = 10) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.every = path, every
        self.begun = False

    def _append(self, **facts: Any) -> None:
        with telling_what_cannot_be_written(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        if not self.begun and self.path.exists():
            write_text(self.path, "".join(lines_before(done, self.path.read_text(encoding="utf-8", errors="replace"))))
        self.begun = True
        if done % self.every == 0 or done == until:
            self._append(step=done, images_per_second=round(images_per_second, 2), **losses)

    def validated(self, done: int, scores: dict[str, float]) -> None:
        self._append(step=done, validation=scores)


def lines_before(step: int, text: str) -> list[str]:
    """The complete lines of a log that belong to earlier steps.

    >>> lines_before(20, '{"step": 10}\\n{"step": 20}\\n{"tur')
    ['{"step": 10}\\n']
    """
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except (ValueError, LookupError, TypeError):  # cut off by a kill
            continue
    return kept


class Board:
    """Writes losses, images/s and scores for TensorBoard into `folder`."""

    def __init__(self, folder: Path, every: int = 10) -> None:
        self.folder, self.every = folder, every
        self.writer: Any = None

    def _show(self, done: int, facts: dict[str, float]) -> None:
        with telling_what_cannot_be_written(self.folder):
            if self.writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(self.folder, purge_step=done)
            for name, value in facts.items():
                self.writer.add_scalar(name, value, done)
            self.writer.flush()  # its queue is lost if the process is killed

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        if done % self.every == 0:
            self._show(done, {**losses, "images_per_second": images_per_second})

    def validated(self, done: int, scores: dict[str, float]) -> None:
        self._show(done, {f"validation/{name}": value for name, value in scores.items()})
