import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.nets.fourier import (
    BoundaryAdjustment,
    Circular,
    DataProx,
    EdgeTaper,
    center_crop,
    convolve,
    crop,
    edge_taper,
    inverse_reach,
    inverse_step,
    inverse_step_tiled,
    margin,
    psf2otf,
)
from twofold.solve import (
    Adjoint,
    Implicit,
    KrasnoselskiiMann,
    NeumannSeries,
    SolveError,
    UnrolledAdjoint,
    fixed_point,
)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_kernel(seed: int, h: int, w: int, batch: int = 1) -> torch.Tensor:
    kernel = random(seed, batch, 1, h, w)
    return kernel / kernel.sum((2, 3), keepdim=True)


def slow_circular_convolution(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The definition, term by term, with the middle of the kernel at n // 2."""
    out = np.zeros_like(x)
    for i in range(k.shape[0]):
        for j in range(k.shape[1]):
            out += k[i, j] * np.roll(x, (i - k.shape[0] // 2, j - k.shape[1] // 2), (0, 1))
    return out


@given(st.integers(1, 6), st.integers(1, 6), st.integers(6, 11), st.integers(6, 11))
@settings(max_examples=40, deadline=None)
def test_convolution_agrees_with_its_definition_for_odd_and_even_sizes(h: int, w: int, height: int, width: int) -> None:
    x, k = random(0, 1, 1, height, width), random(1, 1, 1, h, w)
    slow = slow_circular_convolution(x[0, 0].numpy(), k[0, 0].numpy())
    assert np.allclose(convolve(x, psf2otf(k, (height, width)))[0, 0].numpy(), slow, atol=1e-12)


@pytest.mark.parametrize("size", [(3, 3), (4, 4), (5, 2)])
def test_a_point_in_the_middle_of_the_kernel_leaves_the_picture_where_it_is(size: tuple[int, int]) -> None:
    x, k = random(0, 2, 3, 9, 10), torch.zeros(1, 1, *size, dtype=torch.float64)
    k[..., size[0] // 2, size[1] // 2] = 1
    assert torch.allclose(convolve(x, psf2otf(k, (9, 10))), x)


def test_turning_the_kernel_by_half_a_turn_conjugates_the_transfer_function() -> None:
    k = a_kernel(0, 5, 7)
    assert torch.allclose(psf2otf(k.flip(2, 3), (16, 17)), psf2otf(k, (16, 17)).conj())


def test_the_library_convolves_where_torch_correlates() -> None:
    x, k = random(0, 1, 1, 12, 12), a_kernel(1, 3, 5)
    correlated = F.conv2d(F.pad(x, (2, 2, 1, 1), mode="circular"), k.flip(2, 3))
    assert torch.allclose(convolve(x, psf2otf(k, (12, 12))), correlated)
    assert not torch.allclose(convolve(x, psf2otf(k, (12, 12))), F.conv2d(F.pad(x, (2, 2, 1, 1), mode="circular"), k))


@given(st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_the_conjugate_transfer_function_is_the_adjoint(seed: int) -> None:
    x, y, k = random(seed, 1, 1, 10, 11), random(seed + 1, 1, 1, 10, 11), a_kernel(seed, 4, 3)
    otf = psf2otf(k, (10, 11))
    assert torch.isclose((convolve(x, otf) * y).sum(), (x * convolve(y, otf.conj())).sum())


def test_every_kernel_of_a_batch_meets_its_own_picture() -> None:
    x, k = random(0, 3, 3, 16, 16), a_kernel(1, 5, 5, batch=3)
    together = convolve(x, psf2otf(k, (16, 16)))
    for i in range(3):
        assert torch.allclose(together[i : i + 1], convolve(x[i : i + 1], psf2otf(k[i : i + 1], (16, 16))))


def test_the_inverse_step_is_the_minimiser() -> None:
    y, z, otf = random(0, 1, 1, 12, 13), random(1, 1, 1, 12, 13), psf2otf(a_kernel(2, 5, 5), (12, 13))
    x = inverse_step(y, otf, 0.05, z).requires_grad_()
    energy = (convolve(x, otf) - y).square().sum() + 0.05 * (x - z).square().sum()
    (gradient,) = torch.autograd.grad(energy, x)
    assert gradient.abs().max() < 1e-12


def test_the_inverse_step_is_differentiable_where_the_transfer_function_vanishes() -> None:
    k = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64, requires_grad=True)  # zero at the Nyquist frequency
    x = inverse_step(random(0, 1, 1, 8, 8), psf2otf(k, (8, 8)), 1e-3)
    (gradient,) = torch.autograd.grad(x.square().sum(), k)
    assert torch.isfinite(gradient).all()


def test_half_precision_pictures_are_deconvolved_in_float32() -> None:
    y = random(0, 1, 1, 16, 16).bfloat16()
    assert inverse_step(y, psf2otf(a_kernel(0, 3, 3).bfloat16(), (16, 16)), 0.1).dtype == torch.float32


def test_a_kernel_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(ImageError, match=r"kernel: 9x3 is larger than the picture, 8x8"):
        psf2otf(torch.ones(1, 1, 9, 3), (8, 8))


def test_tapering_touches_nothing_beyond_one_kernel_from_the_border_and_makes_the_ends_meet() -> None:
    x, k = torch.linspace(0, 1, 40, dtype=torch.float64).expand(1, 1, 40, 40), a_kernel(0, 7, 5)
    tapered = edge_taper(x, k)
    assert torch.allclose(crop(tapered, 7, 5), crop(x, 7, 5))
    assert (tapered[..., 0] - tapered[..., -1]).abs().mean() < 0.35  # it was 1


@pytest.mark.parametrize("border", [Circular(), EdgeTaper(), BoundaryAdjustment()])
@pytest.mark.parametrize("size", [(5, 7), (1, 4), (1, 1)])
def test_a_border_adds_the_same_on_opposite_sides(border, size: tuple[int, int]) -> None:
    x, k = random(0, 2, 3, 20, 23), a_kernel(1, *size)
    extended = border.extend(x, k)
    rows, columns = margin(extended, x)
    assert crop(extended, rows, columns).shape == x.shape
    renewed = border.renew(extended, x, psf2otf(k, tuple(extended.shape[-2:])), extended)
    assert renewed.shape == extended.shape


def test_the_adjusted_border_is_the_blurred_estimate_outside_and_the_picture_inside() -> None:
    sharp, k = random(0, 1, 1, 30, 30), a_kernel(1, 7, 7)
    otf = psf2otf(k, (30, 30))
    blurred = convolve(sharp, otf)
    observed = crop(blurred, 3, 3)
    adjustment = BoundaryAdjustment()
    extended = adjustment.renew(adjustment.extend(observed, k), observed, otf, sharp)
    assert torch.allclose(extended, blurred)  # from the true picture comes the true border


def test_tapering_restores_better_than_repeating() -> None:
    sharp = F.interpolate(random(3, 1, 1, 12, 12), size=(80, 80), mode="bicubic").clamp(0, 1)
    k = a_kernel(4, 9, 9)
    observed, truth = crop(convolve(sharp, psf2otf(k, (80, 80))), 8, 8), crop(sharp, 8, 8)

    def error(border) -> float:
        extended = border.extend(observed, k)
        image = inverse_step(extended, psf2otf(k, tuple(extended.shape[-2:])), 3e-3, extended)
        return float((crop(image, *margin(image, truth)) - truth).square().mean())

    assert error(EdgeTaper()) < 0.5 * error(Circular())


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize(("size", "rho"), [(7, 1e-2), (3, 1e-4), (3, 0.3)])
def test_tiles_agree_with_the_whole_picture_to_a_grey_level(with_prior: bool, size: int, rho: float) -> None:
    y, k = random(0, 1, 2, 150, 201).float(), a_kernel(1, size, size).float()
    prior = random(2, 1, 2, 150, 201).float() if with_prior else None
    whole = inverse_step(y, psf2otf(k, (150, 201)), rho, prior)
    tiled = inverse_step_tiled(y, k, rho, prior)
    assert tiled.shape == y.shape
    assert (tiled - whole).abs().max() < 1 / 255


def test_tiles_are_really_used_and_a_looser_tolerance_shows() -> None:
    y, k = random(0, 1, 1, 300, 300).float(), torch.tensor([[[[0.05, 0.1, 0.05], [0.1, 0.4, 0.1], [0.05, 0.1, 0.05]]]])
    whole = inverse_step(y, psf2otf(k, (300, 300)), 1e-2)
    strict, loose = (inverse_step_tiled(y, k, 1e-2, tolerance=t) for t in (1e-3, 0.5))
    assert 0 < (strict - whole).abs().max() < 1e-3
    assert (strict - whole).abs().max() < (loose - whole).abs().max() < 0.5


def test_the_reach_bounds_what_far_pixels_can_do() -> None:
    k = a_kernel(1, 5, 5)
    reach = inverse_reach(k, 1e-2, size=256)
    y, otf = random(0, 1, 1, 256, 256), psf2otf(k, (256, 256))
    near = slice(128 - reach, 128 + reach + 1)
    other = 1 - y
    other[..., near, near] = y[..., near, near]
    change = inverse_step(y, otf, 1e-2) - inverse_step(other, otf, 1e-2)
    assert change[..., 128, 128].abs() < 1 / 255
    assert 2 < reach < 120


def test_data_prox_zeroes_the_gradient_of_what_it_minimises_and_knows_its_lipschitz_constant() -> None:
    kernel, observed, z = a_kernel(0, 3, 3, batch=2), random(1, 2, 3, 8, 9), random(2, 2, 3, 8, 9)
    otf, prox = psf2otf(kernel, (8, 9)), DataProx(observed, kernel, 0.3)
    x = prox(z)
    gradient = convolve(convolve(x, otf) - observed, otf.conj()) + 0.3 * (x - z)
    torch.testing.assert_close(gradient, torch.zeros_like(x))
    v = z - observed
    for _ in range(300):  # power iteration on the linear part
        w = prox(v) - prox(torch.zeros_like(v))
        v = w / w.norm()
    torch.testing.assert_close((prox(v) - prox(torch.zeros_like(v))).norm(), prox.lipschitz, rtol=1e-3, atol=0)


def test_data_prox_is_the_inverse_step_and_returns_the_type_it_got() -> None:
    kernel, observed, z = a_kernel(0, 5, 3), random(1, 1, 3, 8, 9).float(), random(2, 1, 3, 8, 9).float()
    expected = inverse_step(observed, psf2otf(kernel, (8, 9)).to(torch.complex64), 0.3, z)
    torch.testing.assert_close(DataProx(observed, kernel.float(), 0.3)(z), expected)
    assert DataProx(observed.bfloat16(), kernel.bfloat16(), 0.3)(z.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(SolveError, match="penalty must lie in"):
        DataProx(observed, kernel, 0.0)


def test_the_implicit_adjoint_of_deconvolution_differentiates_observation_and_penalty() -> None:
    kernel = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)

    def solve(observed: torch.Tensor, penalty: torch.Tensor, adjoint: Adjoint) -> torch.Tensor:
        prox = DataProx(observed, kernel, penalty)
        exact = KrasnoselskiiMann(relaxation=1.0, steps=500, tolerance=1e-12)
        found: torch.Tensor = fixed_point(
            lambda z: 0.9 * prox(z), torch.zeros_like(observed), solver=exact, adjoint=adjoint
        ).value
        return found

    y, rho = random(0, 1, 1, 6, 6).requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    implicit = Implicit(NeumannSeries(1000, 1e-10))
    one = torch.autograd.grad((solve(y, rho, implicit) ** 2).sum(), (y, rho))
    other = torch.autograd.grad((solve(y, rho, UnrolledAdjoint()) ** 2).sum(), (y, rho))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [(4, 5), (3, 3), (1, 2)])
def test_a_center_crop_loses_as_much_on_both_sides_or_one_more_at_the_end(size: tuple[int, int]) -> None:
    image = torch.arange(20.0).reshape(1, 4, 5)
    cut = center_crop(image, size)
    assert cut.shape == (1, *size)
    top, left = (4 - size[0]) // 2, (5 - size[1]) // 2
    torch.testing.assert_close(cut[0, 0, 0], image[0, top, left])
