from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.degrade.additive import GaussianNoise, quadrants
from twofold.degrade.blur import (
    Blur,
    CameraShake,
    Disc,
    Gaussian,
    Given,
    Line,
    blur,
    centred,
    check_kernel,
    check_noise_level,
    read_kernel,
    spread,
)
from twofold.nets.fourier import crop

SOURCES = [CameraShake(), Gaussian(), Disc(), Line(), Given((torch.ones(1, 1, 3, 5), torch.ones(1, 1, 9, 1)))]
QUIET = GaussianNoise(level=(0.0, 0.0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(height: int = 60, width: int = 70) -> Tensor:
    picture = torch.from_numpy(skimage.data.astronaut()).float().permute(2, 0, 1)[None] / 255
    return F.interpolate(picture, size=(height, width), mode="area")


@given(st.integers(0, 3), st.integers(0, 3), st.integers(7, 12), st.integers(7, 12))
@settings(max_examples=30, deadline=None)
def test_blur_is_the_valid_part_of_a_true_convolution(rows: int, columns: int, height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width, generator=seeded(1), dtype=torch.float64)
    k = torch.rand(2, 1, 2 * rows + 1, 2 * columns + 1, generator=seeded(2), dtype=torch.float64)
    slow = torch.cat([F.conv2d(x[i : i + 1], k[i : i + 1].flip(2, 3).repeat(3, 1, 1, 1), groups=3) for i in (0, 1)])
    assert torch.allclose(blur(x, k), slow, atol=1e-12)


def test_what_lies_outside_of_the_clean_picture_has_no_influence() -> None:
    sample = Blur(kernels=Disc(size=9), noise=QUIET)(photograph(), seeded())
    assert torch.allclose(blur(photograph(), sample.kernel), sample.observed, atol=1e-6)
    assert sample.observed.shape[-2:] == (60 - 8, 70 - 8)


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_are_checked_squares_of_one_size_and_differ_between_draws(source) -> None:
    generator = seeded()
    kernels = [source(generator) for _ in range(12)]
    for kernel in kernels:
        assert kernel.shape == (1, 1, source.size, source.size)
        assert torch.allclose(check_kernel(kernel), kernel, atol=1e-6)
        assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
    assert any(not torch.equal(kernels[0], kernel) for kernel in kernels)
    assert torch.equal(source(seeded(5)), source(seeded(5)))


def test_a_shaken_kernel_has_its_mass_in_the_middle_and_the_extent_that_was_asked_for() -> None:
    axis = torch.arange(37.0) - 18
    for seed in range(10):
        kernel = CameraShake(extent=(20.0, 20.0), thickness=(0.3, 0.3))(seeded(seed))[0, 0]
        middle = torch.stack([(kernel.sum(1) * axis).sum(), (kernel.sum(0) * axis).sum()])
        assert middle.abs().max() < 1
        filled = [(kernel.sum(d) > 1e-5).nonzero().flatten() for d in (0, 1)]
        sides = [int(line[-1] - line[0]) for line in filled]
        assert 18 <= max(sides) <= 24


def test_a_gaussian_kernel_has_its_deviation_and_a_disc_its_area() -> None:
    axis = torch.arange(25.0) - 12
    gaussian = Gaussian(deviation=(2.0, 2.0))(seeded())[0, 0]
    assert (gaussian.sum(0) * axis**2).sum().sqrt().item() == pytest.approx(2, rel=0.01)
    disc = Disc(radius=(6.0, 6.0))(seeded())[0, 0]
    assert 1 / disc.max().item() == pytest.approx(np.pi * 36, rel=0.15)


def test_thin_points_weigh_the_same_on_and_between_pixels_and_nothing_outside() -> None:
    path = torch.tensor([[0.0, 0.5], [-4.0, 4.5]])
    kernel = spread(path, torch.ones(2), 15, 0.3)[0, 0]
    assert kernel[:, :7].sum().item() == pytest.approx(0.5, abs=0.01)
    outside = spread(torch.tensor([[0.0, 0.0], [0.0, 30.0]]), torch.ones(2), 15, 0.3)[0, 0]
    assert outside[:, -1].sum() < 1e-6


def test_the_guidance_is_the_standard_deviation_of_the_noise() -> None:
    clean = photograph(200, 200)
    degradation = Blur(kernels=Gaussian(size=9), noise=GaussianNoise(level=(0.01, 0.05), layout=quadrants))
    sample = degradation(clean, seeded())
    noise = sample.observed - blur(clean, sample.kernel)
    for rows in (slice(0, 96), slice(96, None)):
        for columns in (slice(0, 96), slice(96, None)):
            measured = noise[..., rows, columns].std().item()
            assert measured == pytest.approx(sample.guidance[..., rows, columns].mean().item(), rel=0.05)


def test_clean_is_the_middle_that_matches_the_observed_picture() -> None:
    point = torch.ones(1, 1, 1, 1)
    sample = Blur(kernels=Given((point, torch.zeros(1, 1, 7, 7).index_fill(2, torch.tensor([3]), 1.0))), noise=QUIET)(
        photograph(), seeded(1)
    )
    assert torch.equal(sample.clean, crop(photograph(), 3, 3))
    still = Blur(kernels=Given((centred(point, 7),)), noise=QUIET)(photograph(), seeded())
    assert torch.allclose(still.observed, still.clean, atol=1e-6)


def test_every_picture_of_a_batch_has_its_own_kernel_and_noise_and_the_seed_decides() -> None:
    clean = photograph().repeat(2, 1, 1, 1)
    sample, again = (Blur()(clean, seeded(3)) for _ in range(2))
    assert sample.kernel.shape == (2, 1, 37, 37)
    assert not torch.equal(sample.kernel[0], sample.kernel[1])
    assert sample.guidance[0].mean() != sample.guidance[1].mean()
    assert torch.equal(sample.observed, again.observed)


def test_noise_that_quantises_gives_what_a_file_holds() -> None:
    blur_to_file = Blur(kernels=Line(size=9, length=(3.0, 7.0)), noise=GaussianNoise(quantise=True))
    observed = blur_to_file(photograph(), seeded()).observed
    assert torch.allclose((observed * 255).round(), observed * 255, atol=1e-4)
    assert observed.min() >= 0
    assert observed.max() <= 1


def test_a_crop_smaller_than_the_kernel_is_refused() -> None:
    with pytest.raises(ImageError, match="20x20 is smaller than the 37x37 kernel"):
        Blur()(photograph(20, 20), seeded())


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (2, 7)])
def test_an_even_kernel_is_made_odd_without_moving_its_middle(size: tuple[int, int]) -> None:
    kernel = torch.rand(*size, generator=seeded())
    checked = check_kernel(kernel)
    assert all(side % 2 == 1 for side in checked.shape[-2:])
    assert all(n // 2 == m // 2 for n, m in zip(size, checked.shape[-2:], strict=True))
    assert torch.allclose(checked[0, 0, : size[0], : size[1]], kernel / kernel.sum())


def test_a_kernel_in_grey_levels_is_scaled_and_equal_channels_are_one() -> None:
    assert torch.allclose(check_kernel(torch.tensor([[0.0, 100.0, 255.0]])).sum(), torch.tensor(1.0))
    grey = torch.rand(1, 1, 5, 5, generator=seeded())
    assert torch.allclose(check_kernel(grey.repeat(1, 3, 1, 1)), check_kernel(grey))


def broken(kind: str) -> Tensor:
    kernel = torch.ones(5, 5)
    kernel[2, 2] = {"negative": -1.0, "not finite": float("nan")}.get(kind, 1.0)
    return kernel


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (broken("negative"), "negative weights"),
        (broken("not finite"), "NaN or infinite"),
        (torch.zeros(5, 5), "all its weights are zero"),
        (torch.rand(3, 5, 5, generator=seeded()), "three channels differ"),
        (torch.ones(4, 5, 5), "expected one channel, got 4"),
        (torch.ones(5), "expected \\(h, w\\)"),
        (torch.ones(61, 3), "61x3 is not smaller than the picture, 60x70"),
        (photograph(60, 60).mean(1), "were kernel and picture swapped"),
        (photograph(50, 50).mean(1), "looks like a photograph"),
        (1 - CameraShake()(seeded()) * 10, "drawn black on white"),
    ],
)
def test_what_is_no_kernel_is_refused_with_the_reason(kernel: Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_kernel(kernel, (60, 70))


@pytest.mark.parametrize("kernel", [torch.ones(21, 21), torch.ones(1, 31), torch.rand(9, 9, generator=seeded())])
def test_kernels_full_to_their_rim_are_taken(kernel: Tensor) -> None:
    assert check_kernel(kernel, (60, 70)).shape[-2:] == kernel.shape


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (-0.1, "-0.1 is negative"),
        (15.0, "15/255 = 0.0588"),
        (float("nan"), "not a finite number"),
        (torch.tensor([[[[0.1, 25.0]]]]), "25 is above 1, so it looks like grey levels"),
    ],
)
def test_an_impossible_noise_level_is_refused_with_the_reason(level, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_noise_level(level)


def test_kernels_are_read_from_text_arrays_and_pictures(tmp_path: Path) -> None:
    kernel = torch.zeros(5, 5)
    kernel[1, 2], kernel[2, 3] = 102.0, 153.0
    (tmp_path / "k.dlm").write_text("\n".join("\t".join(str(int(v)) for v in row) for row in kernel))
    (tmp_path / "k.csv").write_text("\n".join(",".join(str(float(v)) for v in row) for row in kernel))
    np.save(tmp_path / "k.npy", kernel.numpy())
    from PIL import Image

    Image.fromarray(kernel.byte().numpy()).save(tmp_path / "k.png")
    Image.fromarray(kernel.byte()[..., None].expand(-1, -1, 3).numpy()).save(tmp_path / "rgb.png")
    for name in ("k.dlm", "k.csv", "k.npy", "k.png", "rgb.png"):
        assert torch.allclose(read_kernel(tmp_path / name)[0, 0], kernel / 255, atol=1e-6), name


def test_a_file_that_is_no_kernel_is_named(tmp_path: Path) -> None:
    (tmp_path / "k.txt").write_text("0 1\n2 word\n")
    for name in ("k.txt", "missing.npy", "missing.png"):
        with pytest.raises(ImageError, match=name):
            read_kernel(tmp_path / name)
