"""PSNR and SSIM against scikit-image and slow twins, protocols against closed forms and published scores."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage import color, data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from twofold import metrics
from twofold.contracts import ImageError
from twofold.metrics import PROTOCOLS, SSIM, Protocol

DATA = Path(os.environ.get("TWOFOLD_DATA", Path(__file__).parents[2] / "shared" / "data"))
RAIN = DATA / "rain" / "Rain100"


def photo(height: int = 90, width: int = 120) -> tuple[Tensor, Tensor]:
    """A noisy and a clean crop of a photograph, `(1, 3, H, W)` float64 on the grid of 8 bits."""
    clean = torch.from_numpy(data.astronaut()[:height, :width].copy()).permute(2, 0, 1)[None].double()
    noise = 12 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (clean + noise).round().clamp(0, 255) / 255, clean / 255


def hwc(images: Tensor) -> np.ndarray:
    return images[0].permute(1, 2, 0).numpy()


def test_psnr_agrees_with_scikit_image() -> None:
    noisy, clean = photo()
    expected = peak_signal_noise_ratio(hwc(clean), hwc(noisy), data_range=1)
    assert metrics.psnr(noisy, clean).item() == pytest.approx(expected, abs=1e-9)


def test_psnr_of_a_batch_is_one_value_a_picture() -> None:
    noisy, clean = photo()
    both = metrics.psnr(torch.cat([noisy, clean]), torch.cat([clean, clean]))
    assert both[0] == metrics.psnr(noisy, clean)[0]
    assert both[1] == math.inf


def test_luma_is_that_of_scikit_image() -> None:
    noisy, _ = photo()
    np.testing.assert_allclose(
        metrics.matlab_y(noisy)[0, 0].numpy() * 255, color.rgb2ycbcr(hwc(noisy))[..., 0], atol=1e-9
    )


def test_luma_of_grey_is_luma_of_equal_red_green_and_blue() -> None:
    grey = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(metrics.matlab_y(grey), metrics.matlab_y(grey.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(metrics.grey(grey.repeat(1, 3, 1, 1)), grey)


def test_uniform_ssim_agrees_with_scikit_image() -> None:
    noisy, clean = photo()
    expected = structural_similarity(hwc(clean), hwc(noisy), data_range=1, channel_axis=2)
    assert metrics.ssim_skimage_uniform7(noisy, clean).item() == pytest.approx(expected, abs=1e-9)


def skimage_gaussian(x: np.ndarray, y: np.ndarray) -> float:
    """scikit-image with Wang's window: standard deviation 1.5, cut at 5 pixels; borders are left out of its mean."""
    return float(
        structural_similarity(
            x, y, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def test_gaussian_ssim_agrees_with_scikit_image() -> None:
    noisy, clean = photo()
    expected = skimage_gaussian(hwc(clean), hwc(noisy))
    assert metrics.ssim_gaussian_valid(noisy, clean).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("shorter", "factor"), [(383, 1), (384, 2), (512, 2), (640, 3), (896, 4)])
def test_wang_ssim_downsamples_as_its_authors_do(shorter: int, factor: int) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 1, shorter, shorter + 1, generator=generator, dtype=torch.float64)
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    shift = -1 if factor % 2 == 0 else 0  # an even window lies one pixel further down and right than scipy's
    small = [
        torch.from_numpy(ndimage.uniform_filter(image[0, 0].numpy(), factor, mode="reflect", origin=shift))[
            None, None, ::factor, ::factor
        ]
        for image in (noisy, clean)
    ]
    expected = metrics.ssim_gaussian_valid(*small)
    torch.testing.assert_close(metrics.ssim_wang(noisy, clean), expected, atol=1e-9, rtol=0)


def test_zero_padded_ssim_is_the_valid_one_of_pictures_with_a_black_frame() -> None:
    framed = [torch.nn.functional.pad(image, (5, 5, 5, 5)) for image in photo()]
    padded = metrics.ssim_gaussian_zero_padded(*photo())
    torch.testing.assert_close(padded, metrics.ssim_gaussian_valid(*framed))
    assert padded > metrics.ssim_gaussian_valid(*photo())


@pytest.mark.parametrize("name", SSIM)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999))
def test_ssim_is_one_for_equal_pictures_symmetric_and_at_most_one(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(1, 3, 14, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    assert SSIM[name](x, x).item() == pytest.approx(1, abs=1e-9)
    assert SSIM[name](x, y).item() == pytest.approx(SSIM[name](y, x).item(), abs=1e-9)
    assert SSIM[name](x, y).item() < 1


@pytest.mark.parametrize(("name", "smallest"), [("wang", 11), ("gaussian-valid", 11), ("skimage-uniform7", 7)])
def test_a_picture_smaller_than_the_window_is_refused(name: str, smallest: int) -> None:
    assert SSIM[name](torch.ones(1, 1, smallest, 20), torch.ones(1, 1, smallest, 20)).item() == pytest.approx(1)
    with pytest.raises(ImageError, match=f"at least {smallest}x{smallest}"):
        SSIM[name](torch.ones(1, 1, smallest - 1, 20), torch.ones(1, 1, smallest - 1, 20))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_picture_read_from_an_8_bit_file_is_compared_as_it_is(name: str) -> None:
    levels = torch.arange(256).float().div(255).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    score = PROTOCOLS[name].score(levels, levels)
    assert score.psnr.item() > 140  # exactly equal but for GT-mean's factor of 1
    assert score.ssim.item() == pytest.approx(1)


def test_truncation_costs_half_a_grey_level() -> None:
    # Errors spread evenly over a level: mean square 1/12 about the rounded value, 1/3 about the truncated one.
    clean = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    down, near = (
        Protocol("p", "rgb", rounding, "gaussian-valid").score(clean, clean).psnr.item()
        for rounding in ("truncate", "round")
    )
    assert near == pytest.approx(20 * math.log10(255) + 10 * math.log10(12), abs=0.1)
    assert down == pytest.approx(20 * math.log10(255) + 10 * math.log10(3), abs=0.1)


def test_only_the_float_protocol_sees_values_outside_of_the_range() -> None:
    clean = torch.ones(1, 3, 16, 16)
    assert PROTOCOLS["rgb"].score(clean + 0.1, clean).psnr.item() == math.inf
    assert PROTOCOLS["rgb-float"].score(clean + 0.1, clean).psnr.item() == pytest.approx(20, abs=1e-4)


def test_gt_mean_forgives_exposure_and_nothing_else() -> None:
    noisy, clean = photo()
    dark = 0.25 * clean
    assert PROTOCOLS["lol-rgb"].score(dark, clean).psnr.item() < 15
    assert PROTOCOLS["lol-rgb-gtmean"].score(dark, clean).psnr.item() > 45
    plain, scaled = (PROTOCOLS[name].score(noisy, clean).psnr.item() for name in ("lol-rgb", "lol-rgb-gtmean"))
    assert scaled == pytest.approx(plain, abs=0.2)


def test_gt_mean_scales_every_picture_of_a_batch_by_itself() -> None:
    _, clean = photo()
    batch, truth = torch.cat([0.25 * clean, 0.5 * clean]), torch.cat([clean, clean])
    assert (PROTOCOLS["lol-rgb-gtmean"].score(batch, truth).psnr > 45).all()
    black = PROTOCOLS["lol-rgb-gtmean"].score(torch.zeros_like(clean), clean)
    assert math.isfinite(black.psnr.item())


def test_a_border_is_cut_off_before_comparing() -> None:
    noisy, clean = photo()
    protocol = Protocol("p", "rgb", "none", "gaussian-valid", border=7)
    inner = protocol.score(noisy, clean)
    torch.testing.assert_close(inner.psnr, metrics.psnr(noisy[..., 7:-7, 7:-7], clean[..., 7:-7, 7:-7]))
    with pytest.raises(ImageError, match="border of 7"):
        protocol.score(noisy[..., :14, :], clean[..., :14, :])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pictures_of_different_size_are_never_broadcast(name: str) -> None:
    with pytest.raises(ImageError, match="one shape"):
        PROTOCOLS[name].score(torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16))


@pytest.mark.skipif(not RAIN.is_dir(), reason="Rain100 is not in the data folder")
@pytest.mark.parametrize(("rain", "psnr"), [("light", 25.98), ("heavy", 14.31)])
def test_inputs_of_the_validation_scenes_score_as_published(rain: str, psnr: float) -> None:
    names = sorted(path.name for path in (RAIN / "clean").iterdir())[::5]
    values = []
    for name in names:
        pair = [
            torch.from_numpy(np.array(Image.open(RAIN / kind / name).convert("RGB"))).permute(2, 0, 1)[None].float()
            / 255
            for kind in (rain, "clean")
        ]
        values.append(PROTOCOLS["y-matlab"].score(pair[0], pair[1]).psnr)
    assert len(values) == 12
    assert torch.cat(values).mean().item() == pytest.approx(psnr, abs=0.005)


def test_the_page_on_protocols_lists_every_protocol_and_variant_as_it_is() -> None:
    page = (Path(__file__).parents[1] / "docs" / "protocols.md").read_text(encoding="utf-8").splitlines()
    for name, protocol in PROTOCOLS.items():
        _, _, _, written, ssim, border, scaled, _, _ = next(row for row in page if row.startswith(f"| `{name}`")).split(
            "|"
        )
        assert ssim.strip() == f"`{protocol.ssim}`"
        assert int(border) == protocol.border
        assert ("yes" in scaled) == protocol.gt_mean
        assert ("clamped," in written) == protocol.clamp
        assert {"truncate": ", truncated", "round": ", rounded", "none": "nor rounded"}[protocol.rounding] in written
    assert all(any(row.startswith(f"| `{name}`") for row in page) for name in SSIM)
