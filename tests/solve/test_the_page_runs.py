"""Every Python block of docs/solve.md runs, in order, and comes to what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "solve.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def pages() -> list[dict[str, object]]:
    """What the names of the page mean after each block."""
    names: dict[str, object] = {"__name__": "page"}
    after = []
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), names)
        after.append(dict(names))
    return after


def test_the_quadratic_has_the_gradient_of_its_closed_form(pages):
    found = pages[0]["found"]
    assert found.value.item() == pytest.approx(3)
    torch.testing.assert_close(found.gradient, torch.full((3,), -4.0))
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 11


def test_the_features_that_matter_are_shrunk_less_and_the_held_out_loss_falls(pages):
    last = pages[1]["r"]
    decay = last.upper_params.exp()
    assert decay[:3].max() < 0.5 * decay[3:].mean()
    assert last.cost.lower_distance < 0.05


def test_wrong_labels_weigh_less_than_right_ones(pages):
    weights, wrong = pages[2]["w"].sigmoid(), pages[2]["wrong"]
    assert weights[wrong].mean() < weights[~wrong].mean() - 0.1


def test_the_equilibrium_network_learns(pages):
    assert pages[3]["loss"].item() < 0.8  # it begins near log 3


def test_the_page_has_a_block_for_each_of_the_four_questions():
    assert len(BLOCKS) == 4
