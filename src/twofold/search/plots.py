"""Plots of a search: weights by task, weights over time, the architecture, and the features of chosen layers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofold import images
from twofold.contracts import ConfigError, Sample
from twofold.files import replacing
from twofold.nets.perceptual import FeatureNetwork
from twofold.sheets import contact_sheet
from twofold.space.genotype import Genotype
from twofold.space.operations import CONVERT_CANDIDATES, UNIT_CANDIDATES

Traces = dict[str, list[float | None]]  # series by name; None before it was begun


def draw_weights(path: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    """A heat map: a row for each task or seed, a column for each loss, its weight written in the cell."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = [[row.get(name, 0.0) for name in names] for row in rows.values()]
    figure = _figure(1.6 + 1.05 * len(names), 1.6 + 0.5 * len(rows))
    axes = figure.subplots()
    axes.imshow(table, cmap="viridis", aspect="auto", vmin=0.0)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axes.set_yticks(range(len(rows)), list(rows))
    high = max(map(max, table))
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 * high else "black")
    axes.set_title("weights of the losses")
    _save(figure, path)


def draw_architecture(path: Path, genotype: Genotype) -> None:
    """A row for each group, a box for each operation, in the order of the data; white for SC."""
    names = list(dict.fromkeys([*UNIT_CANDIDATES, *CONVERT_CANDIDATES]))
    columns = max(map(len, genotype.groups.values()))
    figure = _figure(1.0 + columns, 0.5 * len(genotype.groups) + 0.6)
    figure.set_layout_engine("none")  # the axes fill the figure
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    for row, (group, chosen) in enumerate(genotype.groups.items()):
        axes.text(-1.1, row + 0.4, group, va="center", fontsize=10)
        shades = ["white" if name == "SC" else f"C{names.index(name) % 10}" for name in chosen]
        places = [column + 0.46 for column in range(len(chosen))]
        heights = [0.8] * len(chosen)
        axes.bar(places, heights, 0.92, bottom=row, color=shades, edgecolor="black", alpha=0.55, lw=0.6)
        for place, name in zip(places, chosen, strict=True):
            axes.text(place, row + 0.4, name, ha="center", va="center", fontsize=9)
        if group.startswith("unit") and len(chosen) > genotype.ops_per_branch:
            axes.axvline(genotype.ops_per_branch - 0.04, color="black", lw=0.5)
    axes.set(xlim=(-1.2, columns), ylim=(len(genotype.groups), -0.9))
    for branch, head in enumerate(("R_u: numerator", "R_v: divisor")):
        axes.text(branch * genotype.ops_per_branch, -0.35, head, fontsize=9, style="italic")
    _save(figure, path)


def traces_of(log: Path) -> Traces:
    """Series by name from the log of a search, "step" among them."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    names = [name for name in lines[-1] if name != "images_per_second"] if lines else []
    return {name: [line.get(name) for line in lines] for name in names}


def traces(path: Path, stages: Mapping[str, Traces]) -> None:
    """Per stage: both levels' losses, the weights of the losses, entropy and share of skips, over the steps."""
    figure = _figure(13, 3.6 * len(stages))
    axes = figure.subplots(len(stages), 3, squeeze=False)
    for row, (stage, series) in zip(axes, stages.items(), strict=True):
        groups: list[tuple[str, list[str]]] = [
            (f"{stage}: losses", ["restoration", "upper"]),
            ("weights", [name for name in series if name.startswith("weight/")]),
            ("choices", ["entropy", "skip_ratio"]),
        ]
        for axis, (title, names) in zip(row, groups, strict=True):
            shown = [name for name in names if name in series]
            for name in shown:
                values = _smooth(series[name]) if title.endswith("losses") else series[name]
                axis.plot(series["step"], _gaps(values), label=name.removeprefix("weight/"))
            axis.set(title=title, xlabel="step")
            if title.endswith("losses"):
                axis.set_yscale("log")
            if shown:
                axis.legend(fontsize="x-small")
    _save(figure, path)


@torch.no_grad()
def features(path: Path, network: FeatureNetwork, layers: Sequence[int], sample: Sample, restored: Tensor) -> None:
    """The channel of each chosen layer in which the observed picture differs most from the clean one, for the first
    picture of the batch `(B, 3, H, W)`: observed, restored, clean (Zhu et al. 2022, Fig. 8).
    """
    if not layers:
        return
    shown = [picture[:1].float().clamp(0, 1) for picture in (sample.observed, restored, sample.clean)]
    maps = [network(picture, layers) for picture in shown]
    rows = [[picture.cpu()] for picture in shown]
    titles = ["picture"]
    for number, layer in enumerate(layers):
        observed, _, clean = (found[number] for found in maps)
        channel = int((observed - clean).abs().mean(dim=(0, 2, 3)).argmax())
        planes = [found[number][:, channel : channel + 1] for found in maps]
        low, high = min(float(p.min()) for p in planes), max(float(p.max()) for p in planes)
        for row, plane in zip(rows, planes, strict=True):
            row.append(((plane - low) / max(high - low, 1e-6)).cpu())
        titles.append(f"layer {layer}, channel {channel}")
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, images.Picture(contact_sheet(titles, rows, height=160)))


def _smooth(values: Sequence[float | None]) -> list[float | None]:
    """A running mean (0.9 of the last one), because single batches are noisy."""
    found: list[float | None] = []
    mean: float | None = None
    for value in values:
        if value is not None:
            mean = value if mean is None else 0.9 * mean + 0.1 * value
        found.append(mean)
    return found


def _gaps(values: Sequence[float | None]) -> list[float]:
    """NaN for None, which matplotlib leaves out."""
    return [math.nan if value is None else value for value in values]


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib; pip install 'twofold[train]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
