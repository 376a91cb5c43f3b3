"""Depth: what a photograph gets that has none."""

import pytest
import torch

from twofold import images
from twofold.data.depth import made_up_depth, read_depth


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


def written(tmp_path, values):
    depth = torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1).expand(1, 1, 4, -1)
    images.write(tmp_path / "depth.png", images.Picture(depth, bits=16))
    return tmp_path / "depth.png"


def test_depth_is_in_units_of_the_maximum_where_that_is_asked_for(tmp_path):
    depth = read_depth(written(tmp_path, [0.1, 0.2, 0.8]), unit="maximum")
    assert torch.allclose(depth[0, 0], torch.tensor([0.125, 0.25, 1.0]), atol=1e-3)


def test_beyond_the_limit_all_depths_are_the_same(tmp_path):
    depth = read_depth(written(tmp_path, [0.1, 0.2, 0.4, 0.9]), unit="maximum", limit=0.4)
    assert torch.allclose(depth[0, 0], torch.tensor([0.25, 0.5, 1.0, 1.0]), atol=1e-3)
