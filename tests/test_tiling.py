"""Padding and tiling: identities at every size, exactness for every tile, what happens when memory runs out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import TwofoldError
from twofold.tiling import Budget, overhead, padded, tiled


class Pyramid(nn.Module):
    """`depth` halvings and doublings with a convolution between; the receptive field is known by hand."""

    def __init__(self, depth: int, *, smooth: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3, 3, 3, 2, 1, dtype=torch.double) for _ in range(depth))
        self.flat = nn.Conv2d(3, 3, 3, 1, 1, dtype=torch.double)
        self.smooth = smooth
        self.multiple = 2**depth
        # In input pixels: a halving sees 1 at its own scale, the convolution 1 at the coarsest, a smooth doubling 1 at
        # the scale it starts from, and rounding to a coarse cell is at most one more of the coarsest.
        self.halo = sum(2**i for i in range(depth)) + 2**depth * 2 + sum(2 ** (i + 1) for i in range(depth))

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for down in self.down:
            x = torch.tanh(down(x))
        x = self.flat(x)
        for _ in self.down:
            x = F.interpolate(x, scale_factor=2, mode="bilinear" if self.smooth else "nearest")
        return x + images


sizes = st.integers(1, 70)


@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.integers(1, 50))
@settings(deadline=None)
def test_padding_and_cutting_back_is_the_identity(height: int, width: int, multiple: int) -> None:
    images = torch.rand(1, 2, height, width)
    wide = padded(images, multiple)
    assert wide.shape[-2] % multiple == wide.shape[-1] % multiple == 0
    assert 0 <= wide.shape[-2] - height < multiple
    assert torch.equal(wide[..., :height, :width], images)
    assert set(wide.flatten().tolist()) == set(images.flatten().tolist())


@pytest.mark.parametrize(("size", "multiple"), [(9, 16), (8, 12), (5, 9), (6, 6)])
def test_padding_is_a_reflection_where_torch_can_do_one(size: int, multiple: int) -> None:
    images = torch.rand(1, 3, size, size)
    extra = -size % multiple
    assert torch.equal(padded(images, multiple), F.pad(images, (0, extra, 0, extra), mode="reflect"))


def test_a_border_is_a_reflection_on_every_side() -> None:
    images = torch.rand(1, 3, 9, 11)
    assert torch.equal(padded(images, 8, border=3), F.pad(images, (3, 10, 3, 4), mode="reflect"))


@given(
    height=sizes,
    width=sizes,
    depth=st.integers(0, 3),
    smooth=st.booleans(),
    tile=st.integers(1, 80),
    seed=st.integers(),
)
@settings(deadline=None, max_examples=60)
def test_tiled_equals_untiled(height: int, width: int, depth: int, smooth: bool, tile: int, seed: int) -> None:
    torch.manual_seed(seed % 1000)
    net = Pyramid(depth, smooth=smooth)
    images = torch.rand(1, 3, height, width, dtype=torch.double)
    with torch.inference_mode():
        whole = net(padded(images, net.multiple))[..., :height, :width]
        pieces = tiled(net, images, halo=net.halo, multiple=net.multiple, tile=max(tile, height // 8, width // 8))
    assert torch.allclose(whole, pieces, rtol=0, atol=1e-12)


@given(height=sizes, width=sizes, depth=st.integers(0, 2), limit=st.integers(1, 8000))
@settings(deadline=None, max_examples=40)
def test_budgeted_tiles_equal_untiled_too(height: int, width: int, depth: int, limit: int) -> None:
    net = Pyramid(depth, smooth=True)
    images = torch.rand(1, 3, height, width, dtype=torch.double)
    with torch.inference_mode():
        whole = net(padded(images, net.multiple))[..., :height, :width]
        pieces = tiled(net, images, halo=net.halo, multiple=net.multiple, tile=Budget(limit, 1))
    assert torch.allclose(whole, pieces, rtol=0, atol=1e-12)


def test_a_halo_that_is_too_small_is_seen() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 5, padding=2)
    images = torch.rand(1, 3, 40, 40)
    with torch.inference_mode():
        assert (tiled(net, images, halo=1, tile=16) - net(images)).abs().max() > 1e-2
        assert (tiled(net, images, halo=2, tile=16) - net(images)).abs().max() < 1e-6


@given(
    height=st.integers(1, 1500),
    width=st.integers(1, 1500),
    halo=st.integers(0, 60),
    multiple=st.sampled_from([1, 4, 16]),
    limit=st.integers(100_000, 3_000_000),
)
@settings(deadline=None, max_examples=40)
def test_budgeted_tiles_keep_the_budget(height: int, width: int, halo: int, multiple: int, limit: int) -> None:
    seen = []

    def look(piece: Tensor) -> Tensor:
        seen.append(piece.shape[-2] * piece.shape[-1])
        assert piece.shape[-2] % multiple == piece.shape[-1] % multiple == 0
        return piece

    images = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    tiled(look, images, halo=halo, multiple=multiple, tile=Budget(limit * 10, 10))
    assert max(seen) <= limit
    area = -(-height // multiple) * -(-width // multiple) * multiple**2
    counted = overhead(height, width, halo=halo, multiple=multiple, tile=Budget(limit * 10, 10))
    assert counted == pytest.approx(sum(seen) / area)


def test_a_twelve_megapixel_photograph_costs_a_tenth_more_in_four_pieces() -> None:
    quarters = 3156 / 3000 * 4156 / 4000  # each inner edge is computed twice, 78 pixels deep on both sides
    assert overhead(3000, 4000, halo=78, tile=Budget(3_400_000, 1)) == pytest.approx(quarters)


def test_a_global_function_sees_the_picture_whole() -> None:
    images = torch.rand(1, 3, 50, 50)
    assert torch.equal(tiled(lambda x: x - x.mean(), images, halo=None, tile=16), images - images.mean())


def test_bytes_go_in_and_out_without_a_float_copy_of_the_whole() -> None:
    images = torch.randint(0, 256, (1, 3, 90, 70), dtype=torch.uint8)
    out = tiled(lambda x: (255 - x.float()).round().byte(), images, halo=3, tile=32, multiple=4)
    assert out.dtype == torch.uint8
    assert torch.equal(out, 255 - images)


def test_the_function_may_change_the_number_of_channels() -> None:
    images = torch.rand(2, 3, 30, 20)
    assert torch.equal(tiled(lambda x: x[:, :1], images, halo=0, tile=8), images[:, :1])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_tile_that_runs_out_of_memory_is_cut_in_two(error: Exception) -> None:
    net = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.double)

    def small_only(piece: Tensor) -> Tensor:
        if piece.shape[-1] * piece.shape[-2] > 20_000:
            raise error
        return net(piece)

    images = torch.rand(1, 1, 300, 260, dtype=torch.double)
    with torch.inference_mode():
        assert torch.allclose(tiled(small_only, images, halo=1, multiple=4), net(images), atol=1e-12)


def test_memory_that_never_suffices_is_one_line() -> None:
    def never(piece: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(TwofoldError, match="not enough memory"):
        tiled(never, torch.zeros(1, 1, 300, 300), halo=1)
    with pytest.raises(TwofoldError, match="not enough memory"):
        tiled(never, torch.zeros(1, 1, 300, 300), halo=None)


def test_other_errors_pass_through() -> None:
    def broken(piece: Tensor) -> Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        tiled(broken, torch.zeros(1, 1, 300, 300), halo=1)


def test_progress_counts_every_tile_once() -> None:
    calls: list[tuple[int, int]] = []
    tiled(
        lambda x: x,
        torch.zeros(1, 1, 64, 48),
        halo=0,
        tile=16,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 12) for done in range(13)]
