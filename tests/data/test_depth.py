"""Depth: what a photograph gets that has none."""

import pytest
import torch

from twofold.data.depth import made_up_depth


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 48)])
def test_made_up_depth_is_possible_for_any_picture(size):
    picture = torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    depth = made_up_depth(picture)
    assert depth.shape == (1, *size)
    assert torch.isfinite(depth).all()
    assert float(depth.min()) > 0
    assert float(depth.max()) <= 1


def test_made_up_depth_ends_where_a_thing_ends():
    picture = torch.full((3, 80, 80), 60, dtype=torch.uint8)  # ground
    picture[:, :32] = 100  # and what is behind it
    picture[:, 10:60, 20:40] = 200  # stands upright, its foot at three quarters
    depth = made_up_depth(picture)[0]
    thing, behind = depth[14:50, 24:36], depth[12:28, 50:70]
    assert thing.std() < 0.05
    assert thing.mean() < 0.3 * behind.mean()
