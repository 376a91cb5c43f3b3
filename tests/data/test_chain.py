"""Chains: steps follow one another, the named one gives the guidance, borders that are lost are lost by all."""

from pathlib import Path

import pytest
import torch

from twofold.contracts import ConfigError, Sample
from twofold.data.degradations import Chain, changed
from twofold.degrade.additive import GaussianNoise, RainStreaks, rain_region
from twofold.degrade.blur import Blur, Gaussian


def seeded():
    return torch.Generator().manual_seed(0)


RAIN, NOISE, BLUR = RainStreaks(), GaussianNoise((0.02, 0.02)), Blur(Gaussian(size=5), GaussianNoise((0.0, 0.0)))
CLEAN = torch.rand(2, 3, 40, 50, generator=seeded())


def test_a_chain_does_what_its_steps_do_after_one_another():
    g = seeded()
    rained = RAIN(CLEAN, g)
    noisy = NOISE(rained.observed, g)
    sample = Chain({"rain": RAIN, "noise": NOISE}, guidance="rain")(CLEAN, seeded())
    assert torch.equal(sample.observed, noisy.observed)
    assert torch.equal(sample.guidance, rained.guidance)
    assert torch.equal(sample.guidance, rain_region(rained.observed, CLEAN))
    assert torch.equal(sample.clean, CLEAN)
    assert sample.kernel is None


def test_the_named_step_gives_the_guidance():
    sample = Chain({"rain": RAIN, "noise": NOISE}, guidance="noise")(CLEAN, seeded())
    assert torch.equal(sample.guidance, torch.full((2, 1, 40, 50), 0.02))


def test_a_step_that_loses_its_border_crops_the_clean_picture_and_the_earlier_guidance():
    sample = Chain({"rain": RAIN, "blur": BLUR}, guidance="rain")(CLEAN, seeded())
    alone = RAIN(CLEAN, seeded())
    assert sample.observed.shape == (2, 3, 36, 46)
    assert torch.equal(sample.clean, CLEAN[..., 2:-2, 2:-2])
    assert torch.equal(sample.guidance, alone.guidance[..., 2:-2, 2:-2])
    assert sample.kernel.shape == (2, 1, 5, 5)


def test_one_step_is_the_step_itself():
    chained, alone = Chain({"blur": BLUR}, guidance="blur")(CLEAN, seeded()), BLUR(CLEAN, seeded())
    assert all(torch.equal(a, b) for a, b in zip(chained, alone, strict=True))


def test_a_step_without_a_cause_leaves_no_guidance():
    def as_it_is(clean, generator):
        return Sample(clean, clean)

    assert Chain({"nothing": as_it_is, "noise": NOISE}, guidance="nothing")(CLEAN, seeded()).guidance is None


def test_an_unknown_step_and_two_known_kernels_are_refused():
    with pytest.raises(ConfigError, match="'haze'; there are: rain, noise"):
        Chain({"rain": RAIN, "noise": NOISE}, guidance="haze")
    with pytest.raises(ConfigError, match="there are: none"):
        Chain({}, guidance="rain")
    with pytest.raises(ConfigError, match="step 'again'"):
        Chain({"blur": BLUR, "again": BLUR}, guidance="blur")(CLEAN, seeded())


def test_a_recipe_can_name_a_chain():
    tree = {
        "kind": "chain",
        "steps": {"rain": {"kind": "streaks"}, "blur": {"kind": "blur", "kernels": {"kind": "gaussian", "size": 5}}},
        "guidance": "rain",
    }
    chain = changed(tree, ["steps.rain.layers=1"], Path())
    assert chain.margin == 4
    assert chain(CLEAN, seeded()).observed.shape == (2, 3, 36, 46)
    with pytest.raises(ConfigError, match=r"unknown key degradation\.steps\.rain\.layer; did you mean 'layers'"):
        changed(tree, ["steps.rain.layer=1"], Path())
    with pytest.raises(ConfigError, match="no step is called 'haze'"):
        changed(tree, ["guidance=haze"], Path())
