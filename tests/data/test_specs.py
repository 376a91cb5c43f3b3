"""The degradations and sources that a recipe can name, and runs on synthetic data for each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from scipy.io import savemat
from skimage import data

from twofold.contracts import ConfigError, DataError
from twofold.data.depth import WithDepth
from twofold.data.sources import Crops
from twofold.data.specs import SourceSpec
from twofold.train import data as material
from twofold.train import reading
from twofold.train import recipe as recipes
from twofold.train.run import train

SMALL = {"steps": 2, "validate_every": 2, "precision": "float32", "data": {"crop": 24, "batch": 2}}
SHAKEN = {"kind": "blur", "kernels": {"kind": "shake", "size": 9, "extent": [2.0, 6.0]}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    photo = data.astronaut()
    for n in range(3):
        for folder, pixels in (
            ("clean", photo[40 * n :][:60, 100:180]),
            ("depth", np.linspace(1000, 4000, 60 * 80).reshape(60, 80).astype(np.uint16)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{n}.png")
    return tmp_path


def recipe(model: dict[str, Any], *train: dict[str, Any], **more: Any) -> recipes.Recipe:
    shape = {**SMALL["data"], "train": list(train), **more.pop("data", {})}  # type: ignore[dict-item]
    tree = {**SMALL, "name": "small", "task": "any", "model": model, "data": shape, **more}
    return reading.parse(tree)


DEBLUR = {
    "kind": "guided",
    "guidance": "noise_level",
    "channels": 1,
    "guide": {"width": 4},
    "net": {"kind": "deconvolution", "stages": 2, "layers": 3, "width": 4},
}


def read(settings: dict[str, Any]) -> SourceSpec:
    source: SourceSpec = TypeAdapter(SourceSpec).validate_json(json.dumps(settings))
    return source


def synthetic(degradation: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "synthetic", "clean": [{"path": "clean"}], "degradation": degradation}


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "noise", "quantise": True},
        {"kind": "streaks"},
        SHAKEN,
        {"kind": "blur", "kernels": {"kind": "gaussian", "size": 9, "deviation": [0.5, 1.5]}},
        {"kind": "blur", "kernels": {"kind": "disc", "size": 9, "radius": [1.0, 3.0]}},
        {
            "kind": "blur",
            "kernels": {"kind": "line", "size": 9, "length": [2.0, 7.0]},
            "noise": {"layout": "quadrants"},
        },
        {"kind": "haze"},
        {"kind": "lowlight"},
        {"kind": "underwater"},
    ],
    ids=lambda s: "-".join([s["kind"], *([s["kernels"]["kind"]] if "kernels" in s else [])]),
)
def test_every_degradation_gives_crops_of_the_size_asked_for(settings: dict[str, Any], root: Path) -> None:
    source = read(synthetic(settings))
    sample = source.build(root, Crops(24))(torch.Generator().manual_seed(0))
    assert sample.clean.shape == sample.observed.shape == (1, 3, 24, 24)
    assert not torch.equal(sample.clean, sample.observed)
    assert sample.guidance is not None
    assert (sample.kernel is not None) == (settings["kind"] == "blur")


def test_kernels_come_from_a_folder_or_a_matlab_file(root: Path) -> None:
    kernels = [np.eye(n) for n in (5, 7)]
    (root / "kernels").mkdir()
    for n, kernel in enumerate(kernels):
        np.savetxt(root / "kernels" / f"{n}.txt", kernel)
    cells = np.empty((1, 2), object)
    cells[0, :] = kernels
    savemat(root / "two.mat", {"kernels": cells})
    for path in ("kernels", "two.mat"):
        settings = {"kind": "blur", "kernels": {"kind": "files", "path": path}}
        source = read(synthetic(settings))
        made = source.build(root, Crops(24, channels=1))
        sample = made(torch.Generator().manual_seed(0))
        assert sample.kernel is not None
        assert sample.kernel.shape == (1, 1, 7, 7)
        assert sample.observed.shape == (1, 1, 24, 24)


def test_haze_over_measured_depth_has_that_depth_as_guidance(root: Path) -> None:
    source = WithDepth(clean="clean", depth="depth")
    made = source.build(root, Crops(24))
    sample = made(torch.Generator().manual_seed(0))
    assert sample.guidance is not None
    rows = sample.guidance[0, 0].mean(1)
    assert (rows.diff() > 0).all()  # the made-up depth grows downwards, and crops are never turned upside down


def test_depth_can_be_made_up_and_bent(root: Path) -> None:
    source = WithDepth(clean="clean", bend=(1.0, 2.0))
    made = source.build(root, Crops(24))
    one, two = (made(torch.Generator().manual_seed(seed)).guidance for seed in (0, 1))
    assert one is not None
    assert two is not None
    assert 0 < float(torch.cat([one, two]).min()) <= float(torch.cat([one, two]).max()) <= 1


def test_a_veil_lies_on_the_nearest_things_too(root: Path) -> None:
    source = WithDepth(clean="clean", veil=(0.5, 0.5))
    made = source.build(root, Crops(24))
    guidance = made(torch.Generator().manual_seed(0)).guidance
    assert guidance is not None
    assert float(guidance.min()) >= 0.5


def test_a_photograph_without_its_depth_is_an_error(root: Path) -> None:
    (root / "depth" / "1.png").unlink()
    source = WithDepth(clean="clean", depth="depth")
    with pytest.raises(DataError, match="no depth called 1"):
        source.build(root, Crops(24))


def test_a_deconvolution_trains_and_is_validated_on_images_degraded_the_same_way(root: Path) -> None:
    chosen = recipe(
        DEBLUR,
        synthetic(SHAKEN),
        scheme={"kind": "guided"},
        data={"degraded": {"own": synthetic(SHAKEN)}},
        protocol="grey",
    )
    first = train(chosen, root, root / "run", device="cpu")["validation"]
    again = material.validation(chosen, root)["own"]
    assert first["own/input_psnr"] < first["own/psnr"] + 20
    assert all(
        torch.equal(one[1].observed, two[1].observed)  # type: ignore[union-attr,index]
        for one, two in zip(again, material.validation(chosen, root)["own"], strict=True)
    )


def test_a_published_dehazing_network_trains_on_depth_and_on_pairs(root: Path) -> None:
    net = {"kind": "griddehaze", "width": 4, "columns": 2, "growth": 4, "dense": 1}
    model = {"kind": "guided", "guidance": "depth", "guide": {"width": 4}, "net": net}
    deep = {"kind": "depth", "clean": "clean", "depth": "depth"}
    result = train(recipe(model, deep, synthetic({"kind": "haze"}), scheme={"kind": "guided"}), root, root / "run")
    assert result["steps"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "haze", "beta": [2.0, 1.0]}, "haze.beta: expected low <= high"),
        ({"kind": "blur", "kernels": {"kind": "shak"}}, "kernels.kind: unknown 'shak'; did you mean 'shake'"),
        ({"kind": "noise", "level": [5.0, 10.0]}, "degradation: level is on the [0, 1] scale"),
        ({"kind": "noise", "level": [0.5, 0.1]}, "degradation.level: expected low <= high"),
        ({"kind": "noise", "layout": "halve"}, "degradation.layout: unknown 'halve'; did you mean 'halves'"),
        (
            {"kind": "haze", "source": {"neer": [0, 1]}},
            "unknown key data.train.0.degradation.source.neer; did you mean 'near'",
        ),
        ({"kind": "haze", "betta": [0, 1]}, "unknown key data.train.0.degradation.betta; did you mean 'beta'"),
        ({"kind": "harvested", "pairs": []}, "degradation.pairs: "),
        ({"kind": "salt_and_pepper", "share": "0.5"}, "degradation.share: input should be a valid number, got '0.5'"),
        ({"kind": "lowlight", "exposure": 3}, "degradation.exposure: "),
    ],
)
def test_a_mistake_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(DEBLUR, synthetic(settings), scheme={"kind": "guided"})
    assert message.removeprefix("haze.") in str(caught.value)
