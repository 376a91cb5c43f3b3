"""Convergence of a Bilevel Meta Optimization run: a figure and a JSON file made from its log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.contracts import ConfigError
from twofold.files import replacing, write_text

History = dict[str, list[float]]
LABELS = {
    "restoration": "upper loss",
    "lower": "lower loss, ½‖u − T(u)‖²",
    "gradient": "‖∇φ‖",
    "change": "‖w − w before‖",
    "contraction": "contraction factor",
}


def history(log: Path) -> History:
    """The series of a log.jsonl by name, `step` among them; of a step that a resumed run did twice, the later one.

    Raises: ConfigError where the log holds no steps of a scheme that iterates.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.strip()] if log.exists() else []
    steps = {int(line["step"]): line for line in lines if "residual/0" in line}
    if not steps:
        raise ConfigError(f"{log}: no residuals in it; only schemes that look for a fixed point (kind: meta) log them")
    ordered = [steps[step] for step in sorted(steps)]
    return {name: [float(line[name]) for line in ordered] for name in ordered[0] if all(name in o for o in ordered)}


def residuals(series: History) -> list[list[float]]:
    """One row a step of training, the residual at each iteration k.

    >>> residuals({"step": [1, 2], "residual/0": [4.0, 3.0], "residual/1": [2.0, 1.0]})
    [[4.0, 2.0], [3.0, 1.0]]
    """
    count = sum(name.startswith("residual/") for name in series)
    return [list(row) for row in zip(*(series[f"residual/{k}"] for k in range(count)), strict=True)]


def draw(series: History, path: Path) -> None:
    """Writes a PNG: the residual at each iteration for a few steps of training, and the other series over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2, 3)
    first, *rest = axes.flat
    rows = residuals(series)
    for i in sorted({round(share * (len(rows) - 1)) for share in (0, 0.05, 0.2, 0.5, 1)}):
        first.semilogy(range(len(rows[i])), rows[i], label=f"step {int(series['step'][i])}")
    first.set(title="residual ‖u − T(u)‖", xlabel="iteration k")
    first.legend(fontsize="small")
    for axis, (name, title) in zip(rest, LABELS.items(), strict=True):
        axis.plot(series["step"], series[name])
        axis.set(title=title, xlabel="step", yscale="linear" if name == "contraction" else "log")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def report(folder: Path) -> None:
    """Writes convergence.json and convergence.png beside the log.jsonl of a run.

    Raises: ConfigError as in `history`.
    """
    series = history(folder / "log.jsonl")
    write_text(folder / "convergence.json", json.dumps(series) + "\n")
    draw(series, folder / "convergence.png")


@dataclass(frozen=True)
class Convergence:
    """A report of `fit`: writes the picture and the JSON when a run ends. After `JsonLines`, whose log it reads."""

    folder: Path

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        if done == until:
            report(self.folder)

    def validated(self, done: int, scores: dict[str, float]) -> None:
        pass
