"""Noise and rain: the guidance is the true cause, each sample has its own, and the layers are what was added."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.contracts import DataError, ImageError
from twofold.degrade.additive import (
    GaussianNoise,
    HarvestedRain,
    RainStreaks,
    halves,
    quadrants,
    quantised,
    rain_region,
    smooth,
    streak_layers,
    uniform,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bytes_like(*shape, seed=0, high=256):
    return torch.randint(high, shape, generator=seeded(seed)) / 255


def grey_streaks(height=60, width=80, light=90):
    """Columns of added light, the same in the three channels."""
    streaks = torch.zeros(1, 3, height, width)
    streaks[..., ::7] = light / 255
    return streaks


LAYERS = tuple(streak_layers([(grey_streaks(), torch.zeros(1, 3, 60, 80))]))
DEGRADATIONS = [GaussianNoise(quantise=True), RainStreaks(), HarvestedRain(LAYERS)]


@pytest.mark.parametrize("layout", [uniform, halves, quadrants, smooth])
def test_guidance_is_the_standard_deviation_of_the_noise(layout):
    clean = torch.full((400, 1, 12, 12), 0.5)
    noise = GaussianNoise((0.02, 0.2), layout)
    level = noise(clean[:1], seeded(3)).guidance
    repeated = type(noise)(level=(0.02, 0.2), layout=lambda *_: level)
    sample = repeated(clean, seeded(4))
    measured = (sample.observed - clean).std(0)
    assert level.shape == (1, 1, 12, 12)
    torch.testing.assert_close(measured, level[0], rtol=0.25, atol=0)
    torch.testing.assert_close(((sample.observed - clean) / level).std(), torch.tensor(1.0), rtol=0.01, atol=0)


@pytest.mark.parametrize(("layout", "levels"), [(uniform, 1), (halves, 2), (quadrants, 4)])
def test_a_layout_has_as_many_levels_as_its_name_says(layout, levels):
    drawn = layout(seeded(), (0.01, 0.05), (17, 23))
    assert drawn.shape == (1, 1, 17, 23)
    assert len(drawn.unique()) == levels


@given(seed=st.integers(0, 10_000), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_smooth_levels_stay_in_their_range(seed, height, width):
    drawn = smooth(seeded(seed), (0.01, 0.05), (height, width))
    assert drawn.min() >= 0.01 - 1e-6
    assert drawn.max() <= 0.05 + 1e-6


def test_a_level_in_grey_levels_is_refused_with_its_value_on_the_right_scale():
    with pytest.raises(ValueError, match=r"15 grey levels are 0\.0588"):
        GaussianNoise((0, 15))


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: type(d).__name__)
def test_every_sample_of_a_batch_is_degraded_independently_and_the_same_seed_repeats_it(degradation):
    clean = bytes_like(1, 3, 48, 48).expand(3, -1, -1, -1)
    first, again, other = (degradation(clean, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.observed, again.observed)
    assert torch.equal(first.guidance, again.guidance)
    assert not torch.equal(first.observed, other.observed)
    assert not torch.equal(first.observed[0], first.observed[1])


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: type(d).__name__)
def test_what_is_quantised_survives_a_file_of_8_bits(degradation):
    clean = bytes_like(2, 3, 40, 56)
    observed = degradation(clean, seeded()).observed
    as_bytes = (observed * 255).round().to(torch.uint8)
    assert torch.equal(as_bytes.float() / 255, observed)


@pytest.mark.parametrize("degradation", DEGRADATIONS[1:], ids=lambda d: type(d).__name__)
def test_rain_only_adds_light_and_the_region_is_where_it_did(degradation):
    clean = bytes_like(4, 3, 64, 64)
    sample = degradation(clean, seeded())
    added = sample.observed - sample.clean
    assert added.min() >= 0
    assert torch.equal(sample.guidance, rain_region(sample.observed, clean))
    assert 0 < sample.guidance.mean() < 1
    assert torch.equal(sample.clean, clean)


def test_the_region_does_not_depend_on_how_bright_the_picture_is():
    levels = torch.arange(245.0).view(1, 1, 1, -1)
    assert rain_region((levels + 10) / 255, levels / 255).sum() == 0
    assert rain_region((levels + 11) / 255, levels / 255).sum() == 245


def test_the_region_is_that_of_the_brightest_channel_after_clamping():
    clean = torch.tensor([0.99, 0.99, 0.99, 0.2, 0.99, 0.99]).view(1, 3, 1, 2)
    observed = (clean + 0.3).clamp(0, 1)
    assert rain_region(observed, clean).flatten().tolist() == [0.0, 1.0]


def test_a_pixel_that_is_already_white_is_not_called_rain():
    assert HarvestedRain(LAYERS)(torch.ones(1, 3, 30, 30), seeded()).guidance.sum() == 0


@given(angle=st.integers(-89, 89))
@settings(max_examples=25, deadline=None)
def test_streaks_lie_along_their_angle(angle):
    # wide streaks: on narrow ones finite differences favour the axes of the grid
    rain = RainStreaks((angle, angle), spread=0, length=(120, 120), width=(6, 6), density=(0.15, 0.15), layers=1)
    light = rain._streaks((240, 240), seeded(angle))[0, 0]
    down, across = light[2:, 1:-1] - light[:-2, 1:-1], light[1:-1, 2:] - light[1:-1, :-2]
    # the gradient of a streak is at right angles to it: the structure tensor's weak direction is the streak's
    tensor = torch.tensor([[(across**2).sum(), (across * down).sum()], [(across * down).sum(), (down**2).sum()]])
    x, y = torch.linalg.eigh(tensor).eigenvectors[:, 0].tolist()
    found = torch.rad2deg(torch.atan2(torch.tensor(x), torch.tensor(y))).item()
    assert abs((found - angle + 90) % 180 - 90) < 4


def test_a_denser_longer_or_stronger_rain_is_more_rain():
    def light(**change):
        settings = {"density": (0.1, 0.1), "strength": (0.3, 0.3), "angle": (5, 5)} | change
        return RainStreaks(**settings)._streaks((150, 150), seeded(1)).mean()

    assert light(density=(0.4, 0.4)) > 2.5 * light()
    torch.testing.assert_close(light(strength=(0.6, 0.6)), 2 * light())
    assert light(density=(0, 0)) == 0


def test_a_streak_has_the_width_that_was_asked_for():
    light = RainStreaks(angle=(0, 0), spread=0, length=(60, 60), width=(4, 4), density=(0.01, 0.01), layers=1)
    drawn = light._streaks((80, 400), seeded(2))[0, 0]
    row = drawn[int(drawn.amax(1).argmax())]
    top = int(row.argmax())
    wide = (row[max(0, top - 6) : top + 7] > row.max() / 2).sum().item()
    assert 2 <= wide <= 6  # 0.6 to 1.4 of the mean width


def test_large_pictures_are_drawn_in_parts_and_to_their_last_pixel():
    light = RainStreaks(density=(0.5, 0.5))._streaks((700, 900), seeded())[0, 0]
    for quarter in (light[:100, :100], light[:100, -100:], light[-100:, :100], light[-100:, -100:]):
        assert (quarter > 0.01).float().mean() > 0.1


def test_layers_are_what_was_added():
    clean = bytes_like(1, 3, 20, 30, high=100)
    observed = quantised(clean + grey_streaks(20, 30))
    (layer,) = streak_layers([(observed, clean)])
    assert layer.dtype == torch.int16
    assert torch.equal(layer, (grey_streaks(20, 30)[0] * 255).round().to(torch.int16))


def test_a_channel_that_went_white_does_not_print_the_old_picture_into_the_layer():
    clean = bytes_like(1, 3, 20, 30)
    clean[:, 0] = 0.2  # one channel always has room
    (layer,) = streak_layers([(quantised(clean + grey_streaks(20, 30)), clean)])
    assert torch.equal(layer, (grey_streaks(20, 30)[0] * 255).round().to(torch.int16))


def test_a_harvested_layer_at_its_own_size_and_strength_gives_the_pair_back():
    clean = bytes_like(1, 3, 60, 80, high=160)
    observed = quantised(clean + grey_streaks())
    rain = HarvestedRain(streak_layers([(observed, clean)]), strength=(1, 1), scale=(1, 1), double=0)
    found = [rain(clean, seeded(seed)).observed for seed in range(12)]
    turned = [grey_streaks().flip(axes) for axes in ([], [2], [3], [2, 3])]
    allowed = [quantised(clean + streaks) for streaks in turned]
    assert all(any(torch.allclose(f, a, atol=1e-6) for a in allowed) for f in found)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (61, 79), (200, 300)])
def test_a_layer_covers_pictures_smaller_and_larger_than_itself(size):
    everywhere = HarvestedRain([torch.full((3, 20, 30), 80, dtype=torch.int16)], strength=(1, 1))
    observed = everywhere(torch.zeros(2, 3, *size), seeded()).observed
    assert observed.shape == (2, 3, *size)
    assert (observed >= 79 / 255).all()


def test_a_second_layer_adds_to_the_first():
    layer = [torch.full((3, 40, 40), 30, dtype=torch.int16)]
    clean = torch.zeros(1, 3, 20, 20)
    one, two = (HarvestedRain(layer, strength=(1, 1), double=d)(clean, seeded()).observed.mean() for d in (0, 1))
    torch.testing.assert_close(two, 2 * one)


def test_nothing_to_harvest_and_pairs_of_two_sizes_are_refused():
    with pytest.raises(DataError, match="harvest them from pairs"):
        HarvestedRain([])
    with pytest.raises(DataError, match=r"\(1, 3, 4, 5\).*\(1, 3, 4, 6\)"):
        streak_layers([(torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 6))])


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: type(d).__name__)
def test_bytes_are_refused_as_clean_pictures(degradation):
    with pytest.raises(ImageError, match="clean"):
        degradation(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), seeded())


def test_precision_follows_the_picture():
    for degradation in DEGRADATIONS:
        sample = degradation(torch.zeros(1, 3, 9, 9, dtype=torch.float64), seeded())
        assert sample.observed.dtype == sample.guidance.dtype == torch.float64


def test_mist_lightens_the_whole_picture_and_is_no_part_of_the_rain_region():
    clean = torch.full((2, 3, 40, 40), 0.2)
    rain = RainStreaks(density=(0.05, 0.05), mist=(0.3, 0.3), quantise=False)
    sample = rain(clean, torch.Generator().manual_seed(0))
    dry = sample.guidance == 0
    assert dry.float().mean() > 0.5
    assert (sample.observed[dry.expand_as(clean)] - (0.2 * 0.7 + 0.75 * 0.3)).abs().max() < 11 / 255
