"""What the documentation promises of every shipped model, tried on degraded photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data as photographs

import twofold
from twofold import api, images, zoo
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.degrade.hadamard import Haze, LowLight, Underwater

DEGRADATIONS = {  # by the task on the card
    "rain": RainStreaks(),
    "haze": Haze(beta=(1.0, 1.0), airlight=(0.85, 0.85)),
    "lowlight": LowLight(exposure=(0.04, 0.04)),
    "underwater": Underwater(),
    "deconvolution": Blur(CameraShake(size=25, extent=(10.0, 16.0)), GaussianNoise((0.01, 0.01))),
}
MODELS = sorted(zoo.cards())


def degraded(model: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A photograph `(1, 3, 160, 160)` with the damage that the model removes, and the kernel of a blur."""
    picture = images.from_any(np.asarray(photographs.chelsea())).pixels[..., 60:220, 120:280]
    sample = DEGRADATIONS[zoo.cards()[model].task](picture, torch.Generator().manual_seed(0))
    return sample.observed, sample.kernel


@pytest.mark.parametrize("name", MODELS)
def test_the_fast_way_stays_within_half_a_grey_level_of_float32(name: str) -> None:
    observed, kernel = degraded(name)
    exact = twofold.load(name, precision="exact")(observed, kernel=kernel).image
    usual = twofold.load(name)(observed, kernel=kernel).image
    assert (255 * (usual.clamp(0, 1) - exact.clamp(0, 1))).square().mean().sqrt() < 0.5


@pytest.mark.parametrize("name", MODELS)
def test_the_same_call_gives_the_same_image(name: str) -> None:
    observed, kernel = degraded(name)
    first, again = (twofold.load(name)(observed, kernel=kernel).image for _ in range(2))
    assert torch.equal(first, again)
    assert api.load(name).plan == api.load(name).plan


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("grey", [False, True])
def test_strength_zero_leaves_the_image_as_it_is(name: str, grey: bool) -> None:
    observed, kernel = degraded(name)
    observed = observed.mean(1, keepdim=True) if grey else observed
    observed = (255 * observed.clamp(0, 1)).round() / 255
    restored = twofold.load(name)(observed, kernel=kernel, strength=0.0).image
    # Of a grey image, the mean of three equal channels may round in its last digit.
    assert torch.allclose(restored, observed, rtol=0, atol=1e-6 if grey else 0)


@pytest.mark.parametrize("name", MODELS)
def test_a_default_dtype_of_float64_changes_nothing(name: str) -> None:
    observed, kernel = degraded(name)
    wanted = twofold.load(name, precision="exact")(observed, kernel=kernel).image
    torch.set_default_dtype(torch.float64)
    try:
        restored = twofold.load(name, precision="exact")(observed, kernel=kernel).image
    finally:
        torch.set_default_dtype(torch.float32)
    assert restored.dtype == torch.float32
    assert (restored - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["derain", "lowlight"])
@pytest.mark.parametrize("precision", ["exact", "float32"])
def test_a_model_in_training_restores_as_any_other_and_stays_in_training(name: str, precision: api.Precision) -> None:
    observed, kernel = degraded(name)
    model = twofold.load(name, precision=precision)
    wanted = model(observed, kernel=kernel).image
    network = model.restorer
    assert isinstance(network, torch.nn.Module)
    network.train()
    assert torch.equal(model(observed, kernel=kernel).image, wanted)
    assert all(part.training for part in network.modules())
