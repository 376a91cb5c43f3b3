"""The shipped recipes of Bilevel Meta Optimization, shortened, on made-up pictures: from a folder to a model file."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from twofold import api, zoo
from twofold.contracts import ConfigError
from twofold.restorers.fixed_point import Deconvolution, FixedPointRestorer, RainLayers, SplitDeconvolution
from twofold.restorers.sparse_coding import PatchCoding
from twofold.train import checkpoint, reading
from twofold.train import recipe as recipes
from twofold.train.convergence import LABELS, residuals
from twofold.train.run import train

SHORT = ["steps=4", "validate_every=4", "data.batch=1", "data.limit=1", "scheme.iterations=5"]
SMALL = {
    "gkm-deconvolution": ["data.crop=24", "model.denoiser={kind: ridge, filters: 4, size: 3}"],
    "gkm-deconvolution-admm": ["data.crop=24", "model.denoiser={kind: ridge, filters: 4, size: 3}"],
    "gkm-rain": ["data.crop=12", "model.picture={kind: ridge, filters: 4, size: 3}"],
    "gkm-sparse-coding": ["data.crop=16", "model.side=8", "model.frequencies=9"],
}
KINDS = {
    "gkm-deconvolution": Deconvolution,
    "gkm-deconvolution-admm": SplitDeconvolution,
    "gkm-rain": RainLayers,
    "gkm-sparse-coding": PatchCoding,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the recipes name them, with six photographs of 40x36 each; rain is bright columns."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for i in range(6):
        clean = data.astronaut()[40 * i : 40 * i + 36, 100:140]
        rain = np.minimum(clean.astype(int) + 80 * (random.random((1, 40, 1)) < 0.2), 255).astype(np.uint8)
        for place in ("clean/BSDS500", "deblur/Set12", "rain/Rain100/clean", "rain/Rain100/light"):
            (root / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rain if place.endswith("light") else clean).save(root / place / f"{i}.png")
    return root


def recipe(name: str, *changes: str) -> recipes.Recipe:
    return reading.read_recipe(name, [*SHORT, *SMALL[name], *changes])


class Stop:
    """Ctrl-C at a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        if done == self.at:
            signal.raise_signal(signal.SIGINT)

    def validated(self, done: int, scores: dict[str, float]) -> None: ...


@pytest.mark.parametrize("name", SMALL)
def test_a_shipped_recipe_leaves_a_model_and_shows_how_it_converged(pictures: Path, tmp_path: Path, name: str) -> None:
    facts = train(recipe(name, "model.iterations=5"), pictures, tmp_path, device="cpu")
    assert all(np.isfinite(value) for value in facts["validation"].values())
    assert isinstance(zoo.load_restorer(tmp_path / "model.safetensors"), KINDS[name])
    series = json.loads((tmp_path / "convergence.json").read_text())
    assert series["step"] == [4.0]  # the log has each tenth step and the last
    assert set(LABELS) <= set(series)
    assert len(residuals(series)[0]) == 5
    with Image.open(tmp_path / "convergence.png") as picture:
        assert picture.format == "PNG"
    assert len(list((tmp_path / "samples").iterdir())) == 1


@pytest.mark.parametrize("name", SMALL)
def test_a_run_that_was_stopped_and_resumed_equals_an_uninterrupted_one(
    pictures: Path, tmp_path: Path, name: str
) -> None:
    train(recipe(name), pictures, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(recipe(name), pictures, tmp_path / "part", device="cpu", reports=[Stop(2)])
    assert not (tmp_path / "part" / "convergence.png").exists()
    train(recipe(name), pictures, tmp_path / "part", device="cpu")
    first, second = ((tmp_path / half / "model.safetensors").read_bytes() for half in ("whole", "part"))
    assert first == second
    weights = [
        checkpoint.read_state(tmp_path / half / "state.safetensors")["scheme"]["restorer"] for half in ("whole", "part")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    curves = [json.loads((tmp_path / half / "convergence.json").read_text()) for half in ("whole", "part")]
    assert residuals(curves[0]) == residuals(curves[1])


def test_the_file_alone_restores_with_a_kernel(pictures: Path, tmp_path: Path) -> None:
    train(recipe("gkm-deconvolution", "steps=1"), pictures, tmp_path, device="cpu")
    model = api.load(tmp_path / "model.safetensors", device="cpu", precision="exact")
    assert model.takes_kernel
    observed = torch.rand(1, 3, 20, 22, generator=torch.Generator().manual_seed(0))
    restored: Tensor = model(observed, kernel=torch.full((3, 3), 1 / 9)).image
    assert restored.shape == observed.shape


def test_restoring_stops_at_the_number_of_steps_that_the_recipe_names(pictures: Path, tmp_path: Path) -> None:
    train(recipe("gkm-rain", "steps=1", "model.iterations=7"), pictures, tmp_path, device="cpu")
    restorer = zoo.load_restorer(tmp_path / "model.safetensors")
    assert isinstance(restorer, FixedPointRestorer)
    restored = restorer(torch.rand(1, 3, 12, 12))
    assert restored.report.steps <= 7 + 1  # the last one judges the state that is returned
    assert restorer.solver.steps == 7


def test_the_scheme_asks_for_a_fixed_point(pictures: Path, tmp_path: Path) -> None:
    plain = "model={kind: plain, net: {kind: unet, widths: [8], blocks: [1]}}"
    wrong = reading.read_recipe("gkm-rain", [*SHORT, "data.crop=12", plain])
    with pytest.raises(ConfigError, match="fixed point"):
        train(wrong, pictures, tmp_path, device="cpu")


def test_a_stack_of_certified_layers_can_take_the_place_of_the_convex_prior(pictures: Path, tmp_path: Path) -> None:
    deep = "model.denoiser={kind: non_expansive, width: 4, layers: 2}"
    facts = train(recipe("gkm-deconvolution", deep, "steps=1"), pictures, tmp_path, device="cpu")
    assert np.isfinite(facts["validation"]["set12/psnr"])
