from itertools import pairwise

import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.degrade.hadamard import (
    OUTDOOR_HAZE,
    WATER_TYPES,
    Haze,
    LowLight,
    OutdoorDepth,
    Underwater,
    exposure,
    smooth_noise,
)

DEGRADATIONS = [Haze(), OUTDOOR_HAZE, Underwater(), LowLight()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(height: int = 48, width: int = 64) -> Tensor:
    picture = torch.from_numpy(skimage.data.astronaut()).float().permute(2, 0, 1)[None] / 255
    return F.interpolate(picture, size=(height, width), mode="area")


def ramp(batch: int = 1, height: int = 48, width: int = 64) -> Tensor:
    return torch.linspace(3.0, 0.2, height)[:, None].expand(batch, 1, height, width)


@pytest.mark.parametrize("degradation", DEGRADATIONS)
@pytest.mark.parametrize("size", [(1, 1), (48, 64), (7, 33)])
def test_damage_keeps_size_and_range_and_comes_with_a_map(degradation, size: tuple[int, int]) -> None:
    clean = photograph(*size).repeat(2, 1, 1, 1)
    sample = degradation(clean, seeded())
    assert torch.equal(sample.clean, clean)
    assert sample.observed.shape == clean.shape
    assert sample.guidance.shape == (2, 1, *size)
    assert sample.observed.min() >= 0
    assert sample.observed.max() <= 1
    assert sample.guidance.min() > 0


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_the_seed_decides_and_pictures_of_a_batch_differ(degradation) -> None:
    clean = photograph().repeat(2, 1, 1, 1)
    one, two, other = degradation(clean, seeded(1)), degradation(clean, seeded(1)), degradation(clean, seeded(2))
    assert torch.equal(one.observed, two.observed)
    assert not torch.equal(one.observed, other.observed)
    assert not torch.equal(one.observed[0], one.observed[1])


def test_haze_can_be_undone_with_the_depth_that_is_its_guidance() -> None:
    haze = Haze(beta=(0.7, 0.7), airlight=(0.9, 0.9), tint=0.0)
    sample = haze(photograph(), seeded(), depth=ramp())
    transmission = torch.exp(-0.7 * sample.guidance)
    assert torch.allclose((sample.observed - 0.9) / transmission + 0.9, sample.clean, atol=1e-5)


def test_depth_is_divided_by_far() -> None:
    sample = Haze(far=10.0)(photograph(), seeded(), depth=ramp())
    assert torch.allclose(sample.guidance, ramp() / 10)


def test_the_airlight_is_grey_without_tint_and_slightly_coloured_with_it() -> None:
    black, far = torch.zeros(1, 3, 8, 8), torch.full((1, 1, 8, 8), 50.0)
    grey = Haze(tint=0.0)(black, seeded(), depth=far).observed[0, :, 0, 0]
    tinted = Haze(tint=0.05)(black, seeded(), depth=far).observed[0, :, 0, 0]
    assert grey.max() - grey.min() < 1e-6
    assert 0.7 <= grey[0] <= 1
    assert 0.005 < tinted.max() - tinted.min() <= 0.1


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (torch.ones(1, 1, 5, 5), r"expected \(1, 1, 48, 64\)"),
        (torch.zeros(1, 1, 48, 64), "must be positive and finite"),
        (torch.full((1, 1, 48, 64), float("nan")), "must be positive and finite"),
    ],
)
def test_depth_that_is_none_is_refused(depth: Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Haze()(photograph(), seeded(), depth=depth)


def test_made_up_depth_lies_between_zero_and_the_sky_and_grows_upwards() -> None:
    depths = torch.cat([OutdoorDepth(things=0)(60, 80, seeded(s)) for s in range(20)])
    assert depths.min() > 0
    assert depths.max() <= 1
    assert (depths[:, :, :15].mean((1, 2, 3)) > depths[:, :, -15:].mean((1, 2, 3))).all()
    with_things = torch.cat([OutdoorDepth()(60, 80, seeded(s)) for s in range(20)])
    jumps = (with_things[..., 1:] - with_things[..., :-1]).abs().amax((1, 2, 3))
    assert (jumps > 0.05).float().mean() > 0.5  # things have sides


def test_red_is_lost_first_in_the_ocean_and_blue_at_a_turbid_coast() -> None:
    white = torch.ones(1, 3, 8, 8)
    metres = torch.full((1, 1, 8, 8), 5.0)
    ocean = Underwater(types=("I",))(white, seeded(), depth=metres).observed.mean((2, 3))[0]
    coast = Underwater(types=("9",))(white, seeded(), depth=metres).observed.mean((2, 3))[0]
    assert ocean[0] < ocean[1] < ocean[2]
    assert coast[2] < coast[1] < coast[0]


def test_water_attenuates_more_along_the_table() -> None:
    order = list(WATER_TYPES.values())
    assert all(near[1] < far[1] for near, far in pairwise(order))


def test_underwater_guidance_is_the_distance_in_tens_of_metres() -> None:
    sample = Underwater()(photograph(), seeded(), depth=ramp())
    assert torch.allclose(sample.guidance, ramp() / 10)


def test_kept_water_leaves_what_is_near_as_it_is_and_what_is_far_blue() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    near, far = (torch.full((1, 1, 8, 8), metres) for metres in (1e-6, 500.0))
    kept = Underwater(types=("3",), kept=1.0)
    assert torch.allclose(kept(grey, seeded(), depth=near).clean, grey, atol=1e-5)
    red, green, blue = kept(grey, seeded(), depth=far).clean.mean((0, 2, 3)).tolist()
    assert red < 0.1 < green < blue
    assert (red + green + blue) / 3 == pytest.approx(0.5, abs=1e-3), "as bright as before"
    whole, part = kept(grey, seeded(), depth=far), Underwater(types=("3",))(grey, seeded(), depth=far)
    assert torch.equal(whole.observed, part.observed)


def test_an_unknown_water_type_is_named() -> None:
    with pytest.raises(ImageError, match="'swamp' is unknown; choose from I, IA"):
        Underwater(types=("swamp",))


def test_low_light_is_the_clean_picture_darkened_by_its_guidance_in_stops() -> None:
    ideal = LowLight(cast=0.0, shot=(0.0, 0.0), read=(0.0, 0.0))(photograph(), seeded())
    assert torch.allclose(ideal.observed, ideal.clean / ideal.guidance.exp2(), atol=1e-5)
    assert ideal.observed.mean() < 0.5 * ideal.clean.mean()


def test_the_exposure_of_a_pair_is_what_the_darker_one_lacks() -> None:
    clean = photograph()
    assert torch.allclose(exposure(clean / 4, clean, least=0), torch.full_like(clean[:, :1], 2.0), atol=1e-4)
    assert exposure(clean, clean / 4).max() == 0  # brighter than clean: nothing is lacking


def test_low_light_noise_has_the_variance_of_photons_and_sensor() -> None:
    clean = torch.full((1, 3, 100, 100), 0.8)
    still = {"exposure": (0.1, 0.1), "unevenness": 0.0, "cast": 0.0}
    noisy = LowLight(**still, shot=(2e-4, 2e-4), read=(1e-3, 1e-3))(clean, seeded()).observed ** 2.2
    light = 0.8**2.2 * 0.1
    assert noisy.mean().item() == pytest.approx(light, rel=0.02)
    assert noisy.var().item() == pytest.approx(2e-4 * light + 1e-6, rel=0.05)


def test_smooth_noise_is_smooth_and_mostly_within_one() -> None:
    noise = torch.cat([smooth_noise(64, 64, seeded(s)) for s in range(20)])
    assert (noise.abs() < 1.5).float().mean() > 0.97
    assert noise.std() > 0.3
    assert (noise[..., 1:] - noise[..., :-1]).abs().max() < 0.4
