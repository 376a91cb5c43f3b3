import math

import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.degrade.additive import GaussianNoise
from twofold.degrade.blur import Blur, CameraShake, Given
from twofold.restorers.blind import KernelSearch, centre, fit_kernel, reliability, similarity, tidy
from twofold.restorers.deconvolution import HyperLaplacian

SEARCH = KernelSearch(size=15)


def photograph() -> Tensor:
    return F.avg_pool2d(torch.from_numpy(skimage.data.camera()).float()[None, None] / 255, 2)[..., 20:220, 20:220]


def shake(seed: int = 3, size: int = 15) -> Tensor:
    return CameraShake(size=size, extent=(9.0, 9.0), thickness=(0.6, 0.6))(torch.Generator().manual_seed(seed))


def blurred(level: float = 0.005):
    degradation = Blur(kernels=Given((shake(),)), noise=GaussianNoise(level=(level, level)))
    return degradation(photograph(), torch.Generator().manual_seed(0))


def psnr(restored: Tensor, clean: Tensor) -> float:
    return -10 * math.log10((restored.clamp(0, 1) - clean).square().mean().item())


def test_a_shaken_photograph_gains_by_a_kernel_found_in_it() -> None:
    sample = blurred()
    found = SEARCH(sample.observed).kernel
    restored, best = (HyperLaplacian()(sample.observed, kernel=kernel) for kernel in (found, sample.kernel))
    assert similarity(found, sample.kernel) > 0.85
    assert psnr(sample.observed, sample.clean) + 2 < psnr(restored.image, sample.clean) < psnr(best.image, sample.clean)


def test_clipped_lights_do_not_mislead_the_search() -> None:
    sample = blurred()
    generator = torch.Generator().manual_seed(1)
    lights = (torch.rand(sample.observed.shape, generator=generator) < 0.002).float()
    degraded = torch.maximum(sample.observed, F.max_pool2d(lights, 3, stride=1, padding=1))
    assert similarity(SEARCH(degraded).kernel, sample.kernel) > 0.7


def test_with_the_sharp_image_the_kernel_is_found() -> None:
    sample = blurred(level=0.002)
    kernel = fit_kernel(sample.clean, sample.observed, 15, 1e-4)
    assert (kernel >= 0).all()
    assert similarity(kernel, sample.kernel) > 0.98
    assert (
        similarity(tidy(fit_kernel(sample.clean[..., :-1], sample.observed[..., :-1], 15, 1e-4)), sample.kernel) > 0.97
    )


def test_the_projected_gradient_solves_the_constrained_least_squares() -> None:
    import numpy as np
    from scipy.optimize import nnls

    generator = torch.Generator().manual_seed(0)
    sharp = torch.zeros(1, 1, 40, 40)
    sharp[..., 12:28, 12:28] = torch.rand(16, 16, generator=generator)  # far from the border: no window, no wrapping
    other = sharp.roll(1, -1) * 0.7 + 0.05 * torch.zeros_like(sharp).index_fill(2, torch.arange(15, 20), 1.0)
    differences = lambda x: torch.cat([x - x.roll(1, -2), x - x.roll(1, -1)])  # noqa: E731
    columns = [differences(sharp.roll((i, j), (-2, -1))).flatten() for i in (-1, 0, 1) for j in (-1, 0, 1)]
    matrix, target = torch.stack(columns, 1).double().numpy(), differences(other).flatten().double().numpy()
    ridge = np.sqrt(0.05 * (matrix[:, 4] ** 2).sum()) * np.eye(9)
    exact, _ = nnls(np.vstack([matrix, ridge]), np.concatenate([target, np.zeros(9)]))
    assert np.abs(fit_kernel(sharp, other, 3, 0.05)[0, 0].flatten().numpy() - exact).max() < 0.02


def test_the_estimate_is_a_proper_kernel_and_confident_only_about_what_both_halves_say() -> None:
    estimate = SEARCH(blurred().observed)
    assert estimate.kernel.shape == (1, 1, 15, 15)
    assert estimate.kernel.min() >= 0
    assert estimate.kernel.sum().item() == pytest.approx(1, abs=1e-5)
    noise = SEARCH(0.5 + 0.1 * torch.randn(1, 1, 120, 120, generator=torch.Generator().manual_seed(0)))
    assert noise.confidence < estimate.confidence <= 1


def test_a_picture_without_edges_gives_some_kernel_and_no_crash() -> None:
    for value in (0.5, 1.0):
        estimate = SEARCH(torch.full((1, 3, 80, 80), value))
        assert torch.isfinite(estimate.kernel).all()


def test_what_cannot_be_searched_is_an_error() -> None:
    with pytest.raises(ImageError, match="expected an odd number from 3, got 16"):
        KernelSearch(size=16)
    with pytest.raises(ImageError, match="too small to find a kernel of 15 pixels"):
        SEARCH(torch.rand(1, 1, 50, 100))
    with pytest.raises(ImageError, match="one picture at a time, got 2"):
        SEARCH(torch.rand(2, 1, 100, 100))


def test_similarity_knows_no_shift_and_no_scale() -> None:
    kernel = shake()
    assert similarity(kernel, 5 * F.pad(kernel, (4, 0, 0, 2))) == pytest.approx(1, abs=1e-5)
    assert similarity(kernel, shake(seed=8)) < 0.9


def test_centring_puts_the_mass_in_the_middle_and_tidying_drops_crumbs() -> None:
    kernel = torch.zeros(1, 1, 9, 9)
    kernel[..., 1:3, 1:4] = 1.0
    moved = centre(kernel / kernel.sum())
    assert moved[0, 0, 4, 4] > 0
    assert (moved > 0).sum() == 6
    kernel[..., 8, 8] = 0.3  # alone and light
    kernel[..., 1, 4] = 0.01  # under a twentieth
    kernel[..., 5, 5] = -1.0
    assert (tidy(kernel) > 0).sum() == 6
    assert tidy(torch.zeros(1, 1, 5, 5))[..., 2, 2] == 1


def test_an_outlier_loses_its_weight_and_the_usual_does_not() -> None:
    residual = 0.01 * torch.randn(1, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    residual[..., 3, 3] = 0.8
    trust = reliability(residual, torch.ones_like(residual))
    assert trust[..., 3, 3] < 0.01
    assert trust.median() > 0.95


def test_the_search_says_how_far_it_is_and_ends_where_it_is_told_to() -> None:
    observed = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    search, seen = KernelSearch(size=7, rounds=2), list[tuple[int, int]]()
    found = search(observed, lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert torch.equal(found.kernel, search(observed).kernel)

    def stop(done: int, total: int) -> None:
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        search(observed, stop)
