import math

import numpy as np
import pytest
import skimage.data
import skimage.restoration
import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.degrade.blur import CameraShake, blur
from twofold.nets.fourier import Circular, convolve, crop, psf2otf
from twofold.restorers.classical import Clahe, DarkChannel, Gamma, GreyWorld, MultiScaleRetinex, wide_blur
from twofold.restorers.deconvolution import HyperLaplacian, RichardsonLucy, Wiener, estimate_noise_level, shrink

DEBLURRERS = [Wiener(), HyperLaplacian(), RichardsonLucy(steps=5)]
ENHANCERS = [DarkChannel(), Gamma(), Clahe(), GreyWorld(), MultiScaleRetinex()]


def photograph(size: int = 160) -> Tensor:
    """`(1, 1, size, size)` from the middle of a picture that comes with scikit-image, at half its size."""
    picture = F.avg_pool2d(torch.from_numpy(skimage.data.camera()).float()[None, None] / 255, 2)
    start = (256 - size) // 2
    return picture[..., start : start + size, start : start + size]


def colour(size: int = 96) -> Tensor:
    picture = torch.from_numpy(skimage.data.astronaut()).float().permute(2, 0, 1)[None] / 255
    return F.interpolate(picture, size=(size, size), mode="area")


def shake() -> Tensor:
    return CameraShake(size=13, extent=(9.0, 9.0))(torch.Generator().manual_seed(3))


def blurred(clean: Tensor, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(observed, the matching middle of clean)."""
    generator = torch.Generator().manual_seed(seed)
    observed = blur(clean, shake())
    return observed + noise * torch.randn(observed.shape, generator=generator), crop(clean, 6, 6)


def psnr(restored: Tensor, clean: Tensor) -> float:
    return -10 * math.log10((restored.clamp(0, 1) - clean).square().mean().item())


@pytest.mark.parametrize("level", [0.01, 0.05])
def test_the_noise_of_a_blurred_photograph_is_estimated_within_a_tenth(level: float) -> None:
    observed, _ = blurred(photograph(), level)
    assert estimate_noise_level(observed).item() == pytest.approx(level, rel=0.1)


def test_the_noise_of_each_picture_of_a_batch_is_its_own() -> None:
    both = torch.cat([blurred(photograph(), 0.01)[0], blurred(photograph(), 0.05)[0]])
    low, high = estimate_noise_level(both).flatten().tolist()
    assert 4 < high / low < 6


@pytest.mark.parametrize("level", [0.01, 0.03, 0.05])
def test_deblurring_gains_and_hyper_laplacian_beats_wiener(level: float) -> None:
    observed, clean = blurred(photograph(), level)
    wiener, sparse = (method(observed, kernel=shake()).image for method in (Wiener(), HyperLaplacian()))
    assert psnr(observed, clean) + 1 < psnr(wiener, clean) < psnr(sparse, clean)


def test_richardson_lucy_gains_where_there_is_little_noise() -> None:
    observed, clean = blurred(photograph(), 0.003)
    restored = RichardsonLucy(steps=15)(observed, kernel=shake())
    assert psnr(restored.image, clean) > psnr(observed, clean) + 1.5
    assert restored.guidance is None


def test_richardson_lucy_is_that_of_scikit_image_in_the_middle() -> None:
    observed, _ = blurred(photograph(96), 0.0)
    ours = RichardsonLucy(steps=5)(observed, kernel=shake()).image[0, 0].numpy()
    theirs = skimage.restoration.richardson_lucy(
        observed[0, 0].double().numpy(), shake()[0, 0].double().numpy(), num_iter=5, clip=False
    )
    assert np.abs(ours - theirs)[30:-30, 30:-30].max() < 0.01


@pytest.mark.parametrize("method", DEBLURRERS)
def test_colour_and_batches_are_restored_plane_by_plane(method) -> None:
    observed = torch.cat([blurred(colour(64), 0.02, seed=s)[0] for s in (0, 1)])
    together = method(observed, kernel=shake()).image
    assert together.shape == observed.shape
    if isinstance(method, RichardsonLucy):  # the others estimate one noise level from all channels
        assert torch.allclose(together[1:, 2:], method(observed[1:, 2:], kernel=shake()).image)
    assert torch.allclose(together[1:], method(observed[1:], kernel=shake()).image, atol=1e-4)


@pytest.mark.parametrize("method", [Wiener(), HyperLaplacian()])
def test_a_given_noise_level_is_used_and_a_false_one_harms(method) -> None:
    observed, clean = blurred(photograph(), 0.03)
    level = torch.full_like(observed, 0.03)
    right = method(observed, guidance=level, kernel=shake())
    assert right.guidance is level
    assert psnr(right.image, clean) > psnr(method(observed, guidance=level / 10, kernel=shake()).image, clean) + 1
    estimated = method(observed, kernel=shake())
    assert estimated.guidance.shape == observed[:, :1].shape
    assert abs(psnr(estimated.image, clean) - psnr(right.image, clean)) < 0.2


@pytest.mark.parametrize("method", DEBLURRERS)
def test_errors_say_what_is_wrong_with_kernel_or_level(method) -> None:
    observed, _ = blurred(photograph(64), 0.01)
    with pytest.raises(ImageError, match="needs a blur kernel"):
        method(observed)
    with pytest.raises(ImageError, match="negative weights"):
        method(observed, kernel=-shake())
    with pytest.raises(ImageError, match="not smaller than the picture"):
        method(observed, kernel=photograph(64))
    with pytest.raises(ImageError, match=r"grey levels|takes no guidance map"):
        method(observed, guidance=torch.full_like(observed, 5.0), kernel=shake())


@pytest.mark.parametrize("method", [Gamma(), Clahe(), GreyWorld(), MultiScaleRetinex()])
def test_a_map_for_a_method_without_guidance_is_refused(method) -> None:
    with pytest.raises(ImageError, match=f"{type(method).__name__} takes no guidance map"):
        method(colour(16), guidance=torch.ones(1, 1, 16, 16))


def test_wiener_keeps_the_mean_and_a_constant_picture() -> None:
    flat = torch.full((1, 1, 40, 40), 0.7)
    assert torch.allclose(Wiener()(flat, kernel=shake()).image, flat, atol=1e-4)


def test_wiener_is_the_linear_filter_of_least_error_for_its_own_model() -> None:
    # pictures drawn from the model: white noise divided by the size of the gradient's transfer function
    generator, size, error = torch.Generator().manual_seed(0), 64, {}
    otf = psf2otf(shake().double(), (size, size))
    frequency = 2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64)
    rough = (2 - 2 * torch.cos(frequency))[:, None] + (2 - 2 * torch.cos(frequency[: size // 2 + 1].abs()))
    rough[0, 0] = torch.inf
    for _ in range(8):
        white = torch.randn(1, 1, size, size, generator=generator, dtype=torch.float64)
        x = 0.5 + 0.02 * torch.fft.irfft2(torch.fft.rfft2(white) / rough.sqrt(), s=(size, size))
        y = convolve(x, otf) + 0.02 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        for factor in (0.3, 1.0, 3.0):
            level = torch.full_like(y, 0.02 * factor)
            restored = Wiener(border=Circular())(y, guidance=level, kernel=shake()).image
            error[factor] = error.get(factor, 0.0) + (restored - x).square().mean().item()
    assert error[1.0] < min(error[0.3], error[3.0])


def test_shrinking_finds_the_minimum() -> None:
    grid = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    for exponent, penalty in ((2 / 3, 1.0), (0.5, 8.0), (0.8, 100.0)):
        for v in (-3.0, -0.4, 0.0, 0.05, 0.9, 2.5):
            energy = grid.abs() ** exponent + penalty / 2 * (grid - v) ** 2
            found = shrink(torch.tensor([v], dtype=torch.float64), exponent, penalty)
            value = found.abs() ** exponent + penalty / 2 * (found - v) ** 2
            assert value.item() <= energy.min().item() + 1e-4


def hazy(clean: Tensor) -> tuple[Tensor, Tensor]:
    depth = torch.linspace(1.2, 0.3, clean.shape[-2])[:, None].expand(1, 1, *clean.shape[-2:])
    return clean * torch.exp(-depth) + 0.9 * (1 - torch.exp(-depth)), depth


def test_the_dark_channel_removes_haze_and_draws_more_depth_where_there_is_more() -> None:
    clean = colour(192)
    observed, depth = hazy(clean)
    restored = DarkChannel()(observed)
    assert psnr(restored.image, clean) > psnr(observed, clean) + 4
    assert restored.guidance[..., :48, :].mean() > restored.guidance[..., -48:, :].mean()
    assert restored.guidance.min() >= 0
    true = DarkChannel()(observed, guidance=depth)
    assert true.guidance is depth
    assert psnr(true.image, clean) > psnr(restored.image, clean)


def test_a_fixed_gamma_is_a_power_and_a_free_one_reaches_its_target() -> None:
    dark = colour() ** 3
    assert torch.allclose(Gamma(0.5)(dark).image, dark.sqrt())
    assert Gamma(target=0.4)(dark).image.mean().item() == pytest.approx(0.4, abs=1e-3)


def test_grey_world_makes_the_channels_equal_on_average() -> None:
    cast = colour() * torch.tensor([0.4, 0.8, 1.0])[:, None, None]
    means = GreyWorld()(cast).image.mean((2, 3))
    assert torch.allclose(means, means.mean().expand_as(means), atol=1e-5)


def test_retinex_and_clahe_raise_contrast_of_a_dark_picture_and_retinex_keeps_colours() -> None:
    dark = 0.1 * colour()
    for method in (MultiScaleRetinex(scales=(4.0, 15.0)), Clahe()):
        restored = method(dark).image
        assert restored.std() > 3 * dark.std()
        assert restored.min() >= 0
        assert restored.max() <= 1 + 1e-5
    restored = MultiScaleRetinex(scales=(4.0, 15.0))(dark).image
    bright = restored.sum(1) > 0.3
    share = lambda x: (x / x.sum(1, keepdim=True)).movedim(1, 0)[:, bright]  # noqa: E731
    assert torch.allclose(share(restored), share(dark), atol=1e-3)


def test_a_wide_blur_on_a_coarse_picture_agrees_with_the_exact_one() -> None:
    import scipy.ndimage

    picture = photograph(240)
    exact = scipy.ndimage.gaussian_filter(picture[0, 0].double().numpy(), 24, mode="reflect", truncate=3)
    assert np.abs(wide_blur(picture, 24.0)[0, 0].numpy() - exact)[8:-8, 8:-8].max() < 0.05


@pytest.mark.parametrize("method", ENHANCERS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 40)])
def test_any_size_works_and_stays_finite(method, size: tuple[int, int]) -> None:
    observed = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    restored = method(observed).image
    assert restored.shape == observed.shape
    assert torch.isfinite(restored).all()
    assert torch.isfinite(method(torch.zeros(1, 3, *size)).image).all()
