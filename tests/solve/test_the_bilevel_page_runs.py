"""Every Python block of docs/bilevel.md runs, in order, and comes to what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bilevel.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def pages() -> list[dict[str, object]]:
    """What the names of the page mean after each block."""
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    after = []
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), names)
        after.append(dict(names))
    return after


def test_a_strategy_without_second_derivatives_agrees_with_the_closed_form(pages):
    x, y, found = (pages[0][name] for name in ("x", "y", "found"))
    assert found.cost.products == 0
    w = torch.zeros(5, requires_grad=True)
    train = x[:40]
    u = torch.linalg.solve(train.T @ train / 40 + w.exp().diag(), train.T @ y[:40] / 40)
    (gradient,) = torch.autograd.grad(pages[0]["problem"].upper(w, u), w)
    torch.testing.assert_close(found.gradient, gradient, rtol=0.05, atol=1e-3)


def test_mini_batches_lower_the_held_out_loss(pages):
    turn, problem = pages[1]["turn"], pages[0]["problem"]
    x, y = pages[0]["x"][:40], pages[0]["y"][:40]

    def value(w):
        return problem.upper(w, torch.linalg.solve(x.T @ x / 40 + w.exp().diag(), x.T @ y / 40)).item()

    assert value(turn.upper_params) < value(torch.zeros(5))


def test_three_levels_give_the_gradient_that_the_page_states(pages):
    torch.testing.assert_close(pages[2]["found"].gradient, torch.full((2,), -1.25), rtol=0.03, atol=0)


def test_the_page_has_three_blocks():
    assert len(BLOCKS) == 3
