"""Losses: closed forms, a slow twin for SSIM, layouts, precision, derivatives."""

import math
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twofold import losses
from twofold.contracts import ImageError
from twofold.nets.perceptual import FeatureDistance, squeezenet

ALL = [loss for loss in losses.LOSSES.values() if not isinstance(loss, losses.DistanceLoss | losses.LayerLoss)]


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype), torch.rand(shape, generator=generator, dtype=dtype)


def slow_ssim(x: Tensor, y: Tensor) -> Tensor:
    """The definition, pixel window by pixel window in two dimensions, float64."""
    x, y = x.double(), y.double()
    t = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(t[:, None] ** 2 + t[None, :] ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).view(1, 121, 1)

    def mean(image: Tensor) -> Tensor:
        b, c, h, w = image.shape
        return (F.unfold(image.reshape(b * c, 1, h, w), 11, padding=5) * window).sum(1).view(b, c, h, w)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


@settings(deadline=None, max_examples=25)
@given(height=st.integers(1, 24), width=st.integers(1, 24), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_negative_ssim_is_the_definition_at_every_size(height: int, width: int, channels: int, seed: int) -> None:
    x, y = pictures(2, channels, height, width, seed=seed)
    assert losses.negative_ssim(x, y).item() == pytest.approx(-slow_ssim(x, y).item(), abs=2e-5)


def test_gradient_of_negative_ssim_is_that_of_the_definition() -> None:
    x, y = pictures(2, 3, 20, 17)
    fast, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
    losses.negative_ssim(fast, y).backward()
    (-slow_ssim(slow, y)).backward()
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-7, rtol=1e-3)


def test_ms_ssim_of_flat_and_of_rescaled_pictures_has_its_closed_form() -> None:
    flat = torch.full((1, 3, 20, 17), 0.3, dtype=torch.float64)
    luminance = (2 * 0.3 * 0.7 + 1e-4) / (0.3**2 + 0.7**2 + 1e-4)
    assert losses.ms_ssim(flat, flat + 0.4).item() == pytest.approx(1 - luminance, abs=1e-9)
    x, _ = pictures(1, 3, 30, 40, dtype=torch.float64)
    assert losses.ms_ssim(x, x).item() == pytest.approx(0, abs=1e-9)
    # A checkerboard k times as strong, about the same mean: cs = (2 k v + c2) / ((1 + k²) v + c2) at every scale, where
    # v = a² (1 − m²) and m is the window's mean of the board ±1, nearly 0 in the middle from a deviation of 1 on.
    board = torch.ones(121, 121, dtype=torch.float64)
    board[::2, ::2], board[1::2, 1::2] = -1, -1
    a, k, expected = 0.1, 0.5, 1.0
    for deviation in (0.5, 1, 2, 4, 8):
        radius = int(3 * deviation + 0.5)
        t = torch.arange(-radius, radius + 1, dtype=torch.float64)
        taps = torch.exp(-t.square() / (2 * deviation**2))
        m = ((taps / taps.sum()) * (-1.0) ** t).sum().item() ** 2
        v = a**2 * (1 - m**2)
        expected *= (2 * k * v + 9e-4) / ((1 + k**2) * v + 9e-4)
    board = board.expand(1, 1, 121, 121)
    found = (0.5 + a * board).requires_grad_()
    value = losses.ms_ssim(found, 0.5 + k * a * board)
    assert value.item() == pytest.approx(1 - expected, abs=2e-3), "borders differ a little"
    value.backward()
    assert found.grad is not None
    assert torch.isfinite(found.grad).all()


@pytest.mark.parametrize("loss", ALL)
def test_first_and_second_derivatives_are_right(loss: losses.Loss) -> None:
    x, y = pictures(2, 3, 6, 5, dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda image: loss(image, y), (x,))
    assert torch.autograd.gradgradcheck(lambda image: loss(image, y), (x,), atol=1e-4)


@pytest.mark.parametrize("loss", ALL)
def test_memory_layout_does_not_change_a_loss(loss: losses.Loss) -> None:
    x, y = pictures(2, 3, 16, 15)
    turned = loss(x.to(memory_format=torch.channels_last), y.to(memory_format=torch.channels_last))
    torch.testing.assert_close(turned, loss(x, y))


@pytest.mark.parametrize("loss", ALL)
def test_inside_autocast_a_loss_is_computed_in_float32(loss: losses.Loss) -> None:
    x, y = pictures(1, 3, 32, 32)
    x = x.bfloat16()
    outside = loss(x.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(x, y)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, outside)


@pytest.mark.parametrize("loss", ALL)
def test_a_loss_of_pictures_of_different_size_is_refused(loss: losses.Loss) -> None:
    with pytest.raises(ImageError, match=r"\(1, 3, 8, 8\).*\(1, 1, 8, 8\)"):
        loss(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("loss", ALL)
def test_a_single_pixel_has_a_finite_loss_and_gradient(loss: losses.Loss) -> None:
    x, y = pictures(1, 3, 1, 1)
    x.requires_grad_()
    value = loss(x, y)
    value.backward()
    assert math.isfinite(value.item())
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("loss", ALL)
def test_a_black_picture_has_a_finite_gradient(loss: losses.Loss) -> None:
    x, y = torch.zeros(1, 3, 12, 12, requires_grad=True), pictures(1, 3, 12, 12)[1]
    loss(x, y).backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e3


@pytest.mark.parametrize("loss", ALL)
def test_a_batch_counts_as_the_mean_of_its_pictures(loss: losses.Loss) -> None:
    x, y = pictures(3, 3, 16, 16)
    single = torch.stack([loss(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(x, y), single.mean())


def test_a_perceptual_loss_is_the_mean_distance_and_pulls_on_the_restored_picture_alone() -> None:
    distance = FeatureDistance(squeezenet(), (1, 4))
    loss = losses.DistanceLoss(lambda folder: distance).build(Path())
    x, y = pictures(2, 3, 32, 32)
    x.requires_grad_()
    value = loss(x, y)
    torch.testing.assert_close(value, distance(x, y).mean())
    value.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_colour_angle_ignores_brightness_and_sees_hue() -> None:
    x, _ = pictures(2, 3, 8, 8)
    assert losses.colour(0.5 * x, x) < 0.01
    grey, blue = torch.full((1, 3, 4, 4), 0.5), torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    degrees = math.degrees(math.acos(1 / math.sqrt(3)))  # between the grey diagonal and an axis of the cube
    assert losses.colour(grey, blue).item() == pytest.approx(0.1 * degrees, rel=1e-5)


def test_laplacian_of_a_single_bright_pixel_is_counted_at_it_and_its_neighbours() -> None:
    x = torch.zeros(1, 1, 7, 7)
    x[..., 3, 3] = 1
    assert losses.laplacian(x, x).item() == pytest.approx((16 + 4) / 25)


@pytest.mark.slow
def test_negative_ssim_costs_less_than_a_small_network() -> None:
    x, y = pictures(8, 3, 112, 112)
    x.requires_grad_()
    network = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 32), (32, 32), (32, 3))))
    seconds: dict[str, list[float]] = {"loss": [], "network": []}
    for _ in range(10):  # in turn, so that other work disturbs both
        for name, work in (("loss", lambda: losses.negative_ssim(x, y)), ("network", lambda: network(x).mean())):
            start = time.process_time()
            work().backward()
            seconds[name].append(time.process_time() - start)
    assert min(seconds["loss"]) < min(seconds["network"])
