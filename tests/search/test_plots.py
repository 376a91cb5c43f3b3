"""The plots of a search: they are pictures, and show what they are given."""

from __future__ import annotations

from pathlib import Path

from twofold import images
from twofold.search.plots import draw_architecture, draw_weights, traces, traces_of
from twofold.space.genotype import uniform_genotype


def test_the_plot_of_an_architecture_shows_its_operations(tmp_path: Path) -> None:
    for name in ("SC", "3-RC"):
        draw_architecture(tmp_path / f"{name}.png", uniform_genotype(name, "5-C"))
    skips, convolutions = (images.read(tmp_path / f"{name}.png").pixels for name in ("SC", "3-RC"))
    assert skips.shape == convolutions.shape
    assert skips.mean() > convolutions.mean(), "skips are white, other operations have a colour"


def test_weights_of_any_rows_are_drawn_and_a_loss_that_a_row_lacks_counts_as_zero(tmp_path: Path) -> None:
    draw_weights(tmp_path / "weights.png", {"one": {"l1": 1.0}, "two": {"ssim": 0.5}})
    assert images.read(tmp_path / "weights.png").pixels.shape[1] == 3


def test_series_that_begin_late_have_gaps_in_traces(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "restoration": 2.0}\n{"step": 2, "restoration": 1.0, "upper": 0.5}\n')
    series = traces_of(log)
    assert series == {"step": [1, 2], "restoration": [2.0, 1.0], "upper": [None, 0.5]}
    traces(tmp_path / "traces.png", {"loss": series})
    assert (tmp_path / "traces.png").exists()
