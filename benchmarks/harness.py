"""What all benchmarks share: command line, JSON, machine facts, CPU time, memory, PSNR, intervals, tables, figures.

A benchmark is a script `benchmarks/NAME.py` that writes `benchmarks/results/NAME.json`. It may define

    tables(result) -> dict[str, str]

which makes Markdown tables from that file (or, where the module has `RESULTS = ("NAME", ...)`, from these files, by
name). `docs/tables.py` puts them on the pages.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from twofold.evaluate import interval
from twofold.files import write_text
from twofold.metrics import psnr

RESULTS = Path(__file__).resolve().parent / "results"
RETURN_MEMORY_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which every large tensor is its own mapping, so that resident memory is the memory in use (glibc)."""

# Command line and files.


def parser(description: str | None, *, data: str | None = None, json_required: bool = False) -> argparse.ArgumentParser:
    """The options of every benchmark: --json FILE and, where `data` says what it has to contain, --data FOLDER."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, required=json_required, help="where to write the numbers")
    if data is not None:
        made.add_argument("--data", type=Path, required=True, help=f"folder with {data}")
    return made


def machine() -> dict[str, Any]:
    """Processor, versions, threads and load: what a time or a rounding error may depend on."""
    from twofold.runtime import processor

    return {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def write(path: Path | None, facts: Mapping[str, Any]) -> None:
    """Writes `facts` and the machine's as JSON; nothing without a path."""
    if path is not None:
        write_text(path, json.dumps({**facts, "machine": machine()}, indent=1, ensure_ascii=False) + "\n")


def read(path: Path | None) -> dict[str, Any]:
    """The facts of a file, without the machine's; empty without a path or where no file is."""
    if path is None or not path.exists():
        return {}
    return {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key != "machine"}


def result(name: str) -> dict[str, Any]:
    """The committed result `name`. Raises FileNotFoundError where there is none."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no result {path}; the benchmark that writes it is named in its module")
    return read(path)


# Time and memory.


def cpu_seconds(work: Mapping[str, Callable[[], object]], rounds: int, *, at_least: float = 0.0) -> dict[str, float]:
    """The least CPU time of each task: `rounds` interleaved rounds after one that warms up.

    Interleaving makes other work on the machine disturb all tasks alike. at_least: seconds for which rounds go on.
    A task shorter than 20 ms is repeated within its round. The garbage collector is off while a task runs.

    >>> sorted(cpu_seconds({"a": lambda: None, "b": lambda: sum(range(10))}, rounds=1))
    ['a', 'b']
    """
    best, repeats = dict.fromkeys(work, math.inf), dict.fromkeys(work, 1)
    began, number = time.process_time(), -1
    while (number := number + 1) <= rounds or time.process_time() - began < at_least:
        for name, task in work.items():
            gc.collect()
            gc.disable()
            before = time.process_time()
            for _ in range(repeats[name]):
                task()
            spent = (time.process_time() - before) / repeats[name]
            gc.enable()
            if number == 0:
                repeats[name] = max(1, math.ceil(0.02 / max(spent, 1e-7)))
            else:
                best[name] = min(best[name], spent)
    return best


def fresh_process(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What `script` prints in a process of its own. Raises CalledProcessError where it fails."""
    command = [sys.executable, script, *arguments]
    return subprocess.run(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def resident(key: str) -> int:
    """Bytes of this process by /proc/self/status (Linux): VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory grows at its peak while `work` runs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel resets the peak
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def largest_resident() -> int:
    """Bytes of resident memory at this process's peak since its start."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Scores.


def score(restored: Tensor, clean: Tensor) -> float:
    """Mean PSNR in dB of pictures (B, C, H, W), clamped to [0, 1], by `twofold.metrics.psnr`."""
    return float(psnr(restored.clamp(0, 1), clean).mean())


def means(rows: Sequence[Mapping[str, float]], digits: int = 4) -> dict[str, float]:
    """The mean of every column.

    >>> means([{"psnr": 30.0}, {"psnr": 31.0}])
    {'psnr': 30.5}
    """
    return {key: round(sum(row[key] for row in rows) / len(rows), digits) for key in rows[0]}


def interval_of(values: Sequence[float], digits: int = 3) -> list[float] | None:
    """Student's 95 % interval of the mean (`twofold.evaluate.interval`), rounded; None for fewer than two values.

    >>> interval_of([30.0, 31.0])
    [24.147, 36.853]
    """
    ends = interval(values)
    return None if ends is None else [round(end, digits) for end in ends]


def seeds_needed(deviation: float, half: float, most: int = 100_000) -> int:
    """How many values of that standard deviation make Student's 95 % interval of the mean no wider than ± `half`.

    >>> seeds_needed(0.5, 0.15), seeds_needed(0.1, 0.15)
    (46, 5)
    """
    return next(n for n in range(2, most) if stdtrit(n - 1, 0.975) * deviation / math.sqrt(n) <= half)


def half_interval(values: Sequence[float]) -> float:
    """Half the width of Student's 95 % interval; NaN for fewer than two values."""
    ends = interval(values)
    return math.nan if ends is None else (ends[1] - ends[0]) / 2


def binned(values: Sequence[float], bins: int = 40) -> list[float]:
    """Means of `bins` parts of about equal length.

    >>> binned([1.0, 3.0, 5.0, 7.0], 2)
    [2.0, 6.0]
    """
    edges = [round(i * len(values) / bins) for i in range(bins + 1)]
    parts = [values[a:b] for a, b in pairwise(edges) if b > a]
    return [float(f"{sum(part) / len(part):.4g}") for part in parts]


def rounded(node: Any) -> Any:
    """A tree of dicts and lists with every float to five significant digits."""
    if isinstance(node, dict):
        return {key: rounded(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [rounded(value) for value in node]
    return float(f"{node:.5g}") if isinstance(node, float) else node


# Tables and figures.


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["", "PSNR"], [["ours", "30.00"]]))
    |  | PSNR |
    | --- | --- |
    | ours | 30.00 |
    """
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def span(ends: Sequence[float] | None, sign: str = "", digits: int = 2) -> str:
    """An interval as text.

    >>> span([0.1, 0.2], sign="+")
    '+0.10 … +0.20'
    """
    return "one seed" if ends is None else " … ".join(f"{end:{sign}.{digits}f}" for end in ends)


def gained(facts: Mapping[str, Any], digits: int = 2) -> str:
    """A difference with its interval, from `{"mean": …, "interval": …}`."""
    return f"{facts['mean']:+.{digits}f} ({span(facts['interval'], sign='+', digits=digits)})"


def percent(level: str | float) -> str:
    """
    >>> percent("0.03")
    '3 %'
    """
    return f"{100 * float(level):g} %"


def figure(columns: int, size: tuple[float, float] = (4.6, 3.8)) -> tuple[Any, Any]:
    """A matplotlib figure without a display, and its axes; size: inches of one panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(size[0] * columns, size[1]), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(1, columns)
