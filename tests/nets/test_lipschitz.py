"""The norm of a convolution, against the matrix that the convolution is."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.nets.lipschitz import circular_conv_norm, conv_norm_bound, conv_norm_every_size


def matrix_of(weight: Tensor, size: tuple[int, int], *, padding: str) -> Tensor:
    """The slow twin: every unit picture is sent through the convolution."""
    channels = weight.shape[1]
    units = torch.eye(channels * size[0] * size[1], dtype=weight.dtype).reshape(-1, channels, *size)
    if padding == "circular":
        units = F.pad(units, (0, weight.shape[3] - 1, 0, weight.shape[2] - 1), mode="circular")
        return F.conv2d(units, weight).flatten(1)
    return F.conv2d(units, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2)).flatten(1)


def random_weight(out: int, into: int, height: int, width: int, seed: int) -> Tensor:
    return torch.randn(out, into, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(
    out=st.integers(1, 4), into=st.integers(1, 4), k=st.sampled_from([(1, 1), (3, 3), (2, 5)]), seed=st.integers(0, 99)
)
def test_fourier_norm_is_the_norm_of_the_matrix_under_circular_padding(out, into, k, seed):
    weight = random_weight(out, into, *k, seed)
    expected = torch.linalg.matrix_norm(matrix_of(weight, (5, 6), padding="circular"), 2)
    torch.testing.assert_close(circular_conv_norm(weight, (5, 6)), expected)


@settings(max_examples=20, deadline=None)
@given(out=st.integers(1, 4), into=st.integers(1, 4), side=st.integers(3, 7), seed=st.integers(0, 99))
def test_bounds_for_every_size_hold_for_both_paddings(out, into, side, seed):
    weight = random_weight(out, into, 3, 3, seed)
    truth = max(
        torch.linalg.matrix_norm(matrix_of(weight, (side, side), padding=padding), 2).item()
        for padding in ("circular", "zeros")
    )
    assert truth <= conv_norm_every_size(weight, grid=16).item() * (1 + 1e-12)
    assert truth <= conv_norm_bound(weight).item() * (1 + 1e-12)


def test_bound_for_every_size_is_sharp_within_a_hundredth_of_a_large_circular_grid():
    weight = random_weight(8, 8, 3, 3, 0)
    assert circular_conv_norm(weight, 97) <= conv_norm_every_size(weight) <= 1.012 * circular_conv_norm(weight, 97)


def test_spectral_norm_of_the_reshaped_weight_is_not_the_norm_of_the_convolution():
    weight = torch.ones(1, 1, 3, 3)
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(3.0)
    assert circular_conv_norm(weight, 8).item() == pytest.approx(9.0)


def test_zero_padding_is_bounded_by_the_circular_norm_of_the_larger_grid():
    weight = random_weight(3, 2, 3, 3, 1)
    exact = torch.linalg.matrix_norm(matrix_of(weight, (6, 6), padding="zeros"), 2)
    assert exact <= circular_conv_norm(weight, 6 + 2) * (1 + 1e-12)


def test_norm_of_a_linear_layer_is_bounded():
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_norm(weight, 2) <= conv_norm_bound(weight)


def test_norms_can_be_differentiated():
    weight = random_weight(3, 2, 3, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: circular_conv_norm(w, 5), weight)
    assert torch.autograd.gradcheck(conv_norm_bound, weight)


@pytest.mark.parametrize("call", [lambda: circular_conv_norm(torch.zeros(1, 1, 5, 5), 4),
                                  lambda: circular_conv_norm(torch.zeros(3, 3), 4),
                                  lambda: conv_norm_every_size(torch.zeros(1, 1, 3, 3), grid=2),
                                  lambda: conv_norm_bound(torch.zeros(3))])  # fmt: skip
def test_a_weight_or_size_that_makes_no_sense_is_refused(call):
    with pytest.raises(ValueError, match=r"expected|fit|coarse"):
        call()
