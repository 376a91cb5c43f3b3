"""Classical corrections of underwater images: functions of a pixel and of statistics of the whole image."""

from __future__ import annotations

import pytest
import torch

from twofold.restorers.classical import UnderwaterStretch, candidates, colour_statistics


def image(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_stretched_candidates_span_the_whole_range_and_grey_world_levels_the_channels() -> None:
    water = image(64, 64) * torch.tensor([0.3, 0.6, 0.7])[:, None, None] + 0.1
    stats = colour_statistics(water)
    assert stats.shape == (1, 20)
    made = candidates(water, stats)
    assert made.shape == (1, 5, 3, 64, 64)
    assert torch.equal(made[:, 0], water)
    means = made[0, 1].mean((1, 2))
    assert means.max() - means.min() < 0.02
    for each in made[0, 2:4]:
        assert each.amin((1, 2)).max() == 0
        assert each.amax((1, 2)).min() == 1


def test_a_channel_without_content_is_not_amplified_to_the_whole_range() -> None:
    water = image(64, 64) * torch.tensor([0.02, 0.6, 0.7])[:, None, None]
    made = candidates(water, colour_statistics(water))
    assert 0.06 < made[0, 2, 0].amax() <= 4 * 0.02
    assert made[0, 2, 1:].amax((1, 2)).min() == 1


def test_candidates_of_a_tile_are_those_of_the_whole() -> None:
    water = 0.5 * image(50, 60)
    stats = colour_statistics(water)
    assert torch.equal(candidates(water[..., 10:30, 5:25], stats), candidates(water, stats)[..., 10:30, 5:25])


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_images_of_one_colour_are_corrected_to_finite_ones(constant: float) -> None:
    flat = torch.full((1, 3, 5, 4), constant)
    assert torch.isfinite(UnderwaterStretch()(flat).image).all()
