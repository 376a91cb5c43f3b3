"""The examples run, and the first one is as short as it is said to be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from twofold.losses import PLAIN, LossSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *options: str) -> str:
    return subprocess.check_output(
        [sys.executable, EXAMPLES / name, *options], text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_bilevel_problem_takes_less_than_thirty_lines_and_finds_the_features_that_matter() -> None:
    assert len((EXAMPLES / "bilevel.py").read_text().splitlines()) < 30
    *rounds, last = run("bilevel.py").splitlines()
    errors = [float(line.split("error")[1].split()[0]) for line in rounds]
    assert errors[-1] < 0.8 * errors[0]
    matter, rest = last.removeprefix("shrinkage of the three that matter: ").split("; of the others, mean: ")
    assert max(float(number) for number in matter.strip("[]").split(",")) < float(rest)


@pytest.mark.slow
def test_a_learned_metric_needs_fewer_iterations_than_ista() -> None:
    lines = run("sparse_coding.py", "--steps", "30").splitlines()
    needed = {line[:16].strip(): int(line[16:].split()[0]) for line in lines if line.endswith("iterations")}
    assert needed["learned"] < needed["ISTA"] / 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deconvolution", "rain_layers"])
def test_a_picture_is_restored_and_drawn(tmp_path: Path, name: str) -> None:
    picture = tmp_path / "sheet.png"
    said = run(f"{name}.py", "--steps", "2", "--output", str(picture))
    assert "residual" in said
    with Image.open(picture) as sheet:
        assert sheet.width > 500


@pytest.mark.slow
def test_a_loss_search_leaves_a_file_that_training_reads(tmp_path: Path) -> None:
    said = run("loss_search.py", "--steps", "40", "--output", str(tmp_path / "loss.yaml"))
    assert "l1" in said
    found = LossSpec.from_yaml((tmp_path / "loss.yaml").read_text())
    assert set(found.weights) == set(PLAIN)
    assert any(abs(weight - 1) > 0.05 for weight in found.weights.values())
