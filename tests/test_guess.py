"""The guess at the damage: right on what the library itself draws, quiet on good photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from skimage import data

from twofold import images
from twofold.guess import guess, statistics
from twofold.ui.examples import EXAMPLES, example

TASKS = {
    "coffee-rain": "rain",
    "rocket-haze": "haze",
    "astronaut-blur": "deconvolution",
    "coffee-dark": "lowlight",
    "astronaut-water": "underwater",
}


@pytest.mark.parametrize("key", EXAMPLES)
def test_every_example_is_taken_for_what_it_is(key: str, tmp_path: Path) -> None:
    path = example(key, tmp_path)
    assert path is not None
    assert guess(images.read(path).pixels).task == TASKS[key]


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_good_photographs_show_no_damage(name: str) -> None:
    assert guess(images.from_any(getattr(data, name)()).pixels).task is None


@pytest.mark.parametrize(
    ("height", "width", "channels"), [(1, 1, 3), (1, 1, 1), (2, 1, 3), (1, 700, 1), (3, 2, 3), (9, 9, 1), (4000, 5, 3)]
)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_any_size_and_any_flat_colour_gets_an_answer(height: int, width: int, channels: int, level: float) -> None:
    seen = statistics(torch.full((1, channels, height, width), level))
    assert seen.brightness == pytest.approx(level, abs=1e-5)
    assert all(torch.isfinite(torch.tensor(value)) for value in vars(seen).values())
    assert guess(torch.full((1, channels, height, width), level)).reason


def test_an_unknown_example_is_none(tmp_path: Path) -> None:
    assert example("../coffee", tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_streaks_are_counted_where_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((1, 3, 384, 384), 0.5)
    streaks = (torch.rand(1, 1, 1, 192, generator=generator) < 0.2).float().expand(-1, 3, 384, -1) * 0.4
    half = flat.clone()
    half[..., :192] += streaks
    assert statistics(flat).streaks == 0
    assert statistics(half).streaks == pytest.approx(0.5, abs=0.15)
    assert statistics(half.mT).streaks == 0
    assert statistics(half).bright > 0
