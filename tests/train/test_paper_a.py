"""The recipes of paper A's deconvolution and haze, their perceptual loss, and the benchmark that is made of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from twofold.contracts import WeightsError
from twofold.data.sources import Synthetic
from twofold.losses import LossSpec
from twofold.nets.perceptual import vgg16
from twofold.restorers.guided import Guided
from twofold.settings import to_yaml
from twofold.train import data as material
from twofold.train import reading
from twofold.train.learner import machine_of
from twofold.train.run import build_restorer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("paper_a")


def test_the_papers_deconvolution_has_its_denoiser_data_and_schedule() -> None:
    recipe = reading.read_recipe("paper-a-deconvolution")
    restorer = build_restorer(recipe)
    assert isinstance(restorer, Guided)
    assert sum(p.numel() for p in restorer.net.denoisers.parameters()) == 260_289  # type: ignore[union-attr]
    assert sum(p.numel() for p in restorer.guide.parameters()) == 19_105
    (source,) = recipe.data.train
    assert isinstance(source, Synthetic)
    assert source.degradation.noise.level == (0.01, 0.05)  # type: ignore[union-attr]
    assert (recipe.data.crop, recipe.data.batch, recipe.steps) == (160, 5, 200_000)
    assert recipe.optimizer.learning_rate == 1e-4
    factor = recipe.schedule.build(recipe.steps)
    assert factor(0) == factor(recipe.steps - 1) == 1


@pytest.mark.parametrize(("place", "epochs"), [("indoor", 100), ("outdoor", 10)])
def test_the_papers_dehazing_trains_the_published_network_and_halves_its_rate_four_times(
    place: str, epochs: int
) -> None:
    recipe = reading.read_recipe(f"paper-a-sots-{place}")
    restorer = build_restorer(recipe)
    assert isinstance(restorer, Guided)
    assert sum(p.numel() for p in restorer.net.parameters()) == 958_195
    assert recipe.steps == epochs * recipe.validate_every
    factor = recipe.schedule.build(recipe.steps)
    assert [factor(round(recipe.steps * share)) for share in (0.19, 0.21, 0.41, 0.61, 0.81)] == [
        1,
        1 / 2,
        1 / 4,
        1 / 8,
        1 / 16,
    ]


def test_a_perceptual_loss_asks_for_its_weights_when_it_is_first_called(tmp_path: Path) -> None:
    loss = reading.read_recipe("paper-a-sots-indoor").loss.build(tmp_path / "features")
    with pytest.raises(WeightsError, match=r"no weights of vgg16 at .*features; put the file there"):
        loss(*torch.rand(2, 1, 3, 32, 32))


def test_the_vgg16_term_is_the_mean_squared_difference_of_three_layers_of_pictures_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = vgg16()
    (tmp_path / "features").mkdir()
    save_file(network.features.state_dict(), tmp_path / "features" / "vgg16.safetensors")
    restored, clean = torch.rand(2, 2, 3, 32, 48)
    terms = []
    for layer in (4, 9, 16):  # one past relu1_2, relu2_2, relu3_3
        x, y = network.features[:layer](restored), network.features[:layer](clean)
        terms.append((x - y).square().mean())
    found = LossSpec({"perceptual_vgg16": 2.0}).build(tmp_path / "features")(restored, clean)
    torch.testing.assert_close(found, 2 * sum(terms) / 3)


def test_ways_of_training_start_from_the_same_weights_and_see_the_same_batches(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "clean").mkdir()
    (tmp_path / "kernels").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(tmp_path / "clean" / "a.png")
    np.savetxt(tmp_path / "kernels" / "k.dlm", np.pad([[0.0, 0.5, 0.5]], ((1, 1), (0, 0))))
    small = reading.read_recipe(
        "paper-a-deconvolution-small",
        [
            "data.crop=16",
            "data.train=[{kind: synthetic, clean: [{path: clean}], degradation: {kind: blur, kernels: {kind: files, "
            "path: kernels}}}]",
        ],
    )
    (tmp_path / "small.yaml").write_text(to_yaml(small))
    machine = machine_of("float32", "cpu")
    nets, batches = [], []
    for way in ("none", "guided", "naive", "frozen"):
        recipe = benchmark.recipe_of(tmp_path / "small.yaml", way, 6, 1, steps=4)
        torch.manual_seed(recipe.seed)
        nets.append(torch.cat([p.flatten() for p in recipe.model.build().net.parameters()]))
        draw = material.batches(recipe, tmp_path, machine)
        batches.append(draw(2 + (4 if way == "frozen" else 0))[-1][0])
    for net, batch in zip(nets[1:], batches[1:], strict=True):
        assert torch.equal(net, nets[0])
        assert torch.equal(batch.observed, batches[0].observed)
        assert torch.equal(batch.kernel, batches[0].kernel)


def test_without_guidance_every_picture_has_the_same_map_and_the_guided_network_its_size(benchmark: ModuleType) -> None:
    recipe = benchmark.recipe_of("paper-a-deconvolution-small", "none", 6, 0)
    restorer = recipe.model.build()
    unguided = benchmark.Unguided(restorer.net, 0.03)
    observed, kernel = torch.rand(1, 1, 16, 16), torch.zeros(1, 1, 3, 3)
    kernel[..., 1, 1] = 1
    told = restorer(observed, guidance=torch.full_like(observed, 0.03), kernel=kernel).image
    assert torch.equal(unguided(observed, kernel=kernel).image, told)


def test_a_gain_is_paired_by_seed_and_ignores_seeds_that_one_side_lacks(benchmark: ModuleType) -> None:
    found = benchmark.paper_a_claims.gain({0: 30.0, 1: 31.2, 2: 9.0}, {0: 29.0, 1: 30.0})
    assert found["n"] == 2
    assert found["mean"] == pytest.approx(1.1)
    low, high = found["interval"]
    assert low < 0 < 1.1 < high  # two seeds that differ by 0.2 dB show little


def test_uneven_noise_has_the_levels_of_the_papers_quadrants(benchmark: ModuleType) -> None:
    drawn = benchmark.uneven(torch.Generator(), (0.0, 1.0), (4, 6))[0, 0]
    assert drawn[:2, :3].unique().tolist() == pytest.approx([0.01])
    assert drawn[:2, 3:].unique().tolist() == pytest.approx([0.02])
    assert drawn[2:, :3].unique().tolist() == pytest.approx([0.03])
    assert drawn[2:, 3:].unique().tolist() == pytest.approx([0.04])
