"""The recipes of the papers start on tiny copies of their data sets in the folders and files that are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from twofold.cli.app import run_command_line as command_line
from twofold.contracts import DataError, ImageError
from twofold.data.crops import read_bytes
from twofold.data.folders import Folder, PairFolder
from twofold.data.pairs import find_pairs, with_maps
from twofold.data.sources import Crops, Paired
from twofold.degrade.blur import read_kernel, read_kernels
from twofold.files import read_matlab
from twofold.nets.judge import Judge
from twofold.nets.perceptual import alexnet, squeezenet, vgg16, vgg19
from twofold.search import judge as judges
from twofold.settings import checked
from twofold.train import reading

SIDE = 72


def scene(number: int, side: int = SIDE, channels: int = 3) -> NDArray[np.uint8]:
    noise = np.random.default_rng(number).integers(0, 256, (side, side, channels), np.uint8)
    return noise if channels == 3 else noise[..., 0]


def write(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def kernel(number: int) -> NDArray[np.float64]:
    drawn = np.zeros((5, 5))
    drawn[2, number % 5] = drawn[2, 2] = 0.5 if number % 5 != 2 else 1.0
    return drawn


def hdf5(path: Path, name: str, array: NDArray[Any]) -> None:
    """As MATLAB's version 7.3 writes it: a block of 512 bytes that names the version, then HDF5 with reversed axes."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file[name] = array.T
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def rain(root: Path) -> None:
    for number in (1, 2):
        clean = scene(number)
        observed = clean.copy()
        observed[::3] = 255
        for folder in ("RainTrainL", "RainTrainH"):
            write(root / folder / f"norain-{number}.png", clean)
            write(root / folder / f"rain-{number}.png", observed)
            write(root / folder / f"rainstreak-{number}.png", observed - clean)
        region = np.zeros((SIDE, SIDE), np.uint8)
        region[::3] = 255
        write(root / "RainTrainL" / f"rainregion-{number}.png", region)
        for folder in ("Rain100L", "Rain100H"):
            write(root / folder / "rainy" / f"rain-00{number}.png", observed)
            write(root / folder / f"norain-00{number}.png", clean)


def deconvolution(root: Path) -> None:
    for number in range(2):
        write(root / "clean" / "BSDS500" / f"{number}.jpg", scene(number))
        printed = (510 * kernel(number)).clip(0, 255).astype(np.uint8)
        write(root / "deblur" / "Sun" / f"img{number + 1}_groundtruth_img.png", scene(number))
        write(root / "deblur" / "Sun" / f"kernel{number + 1}_groundtruth_kernel.png", printed)
        (root / "deblur" / "kernels20" / "kernels").mkdir(parents=True, exist_ok=True)
        np.savetxt(root / "deblur" / "kernels20" / "kernels" / f"{number}.dlm", kernel(number))
    (root / "deblur" / "Levin09blurdata").mkdir(parents=True)
    for picture in (5, 6):
        x = scene(picture, channels=1) / 255
        for number in (1, 2):
            name = root / "deblur" / "Levin09blurdata" / f"im0{picture}_flit0{number}.mat"
            savemat(name, {"x": x, "y": x[4:-4, 4:-4], "f": kernel(number)})


def haze(root: Path) -> None:
    its, ots, sots = (root / "RESIDE" / name for name in ("ITS", "OTS", "SOTS"))
    inner = slice(3, -3)  # at most a tenth, as ITS loses
    for number in (1, 2):
        clean = scene(number)
        write(its / "clear" / f"{number}.png", clean)
        write(its / "hazy" / f"{number}_1_0.9.png", clean[inner, inner] // 2 + 100)
        write(its / "depth" / f"{number}.png", np.linspace(900, 4000, SIDE**2).reshape(SIDE, SIDE).astype(np.uint16))
        write(ots / "clear" / f"000{number}.jpg", clean)
        write(ots / "hazy" / f"part{number}" / f"000{number}_0.8_0.04.jpg", clean // 2 + 100)
        hdf5(ots / "depth" / f"000{number}.mat", "depth", np.linspace(0.1, 9, SIDE**2).reshape(SIDE, SIDE))
        write(sots / "indoor" / "gt" / f"140{number}.png", clean)
        write(sots / "indoor" / "hazy" / f"140{number}_1.png", clean[inner, inner] // 2 + 100)
        write(sots / "outdoor" / "gt" / f"000{number}.png", clean)
        write(sots / "outdoor" / "hazy" / f"000{number}_0.8_0.2.jpg", clean // 2 + 100)


def pairs_of_paper_b(root: Path) -> None:
    for number in range(6):
        clean = scene(number)
        for half in ("Train", "Test"):
            lol = root / "LOL-v2" / "Real_captured" / half
            write(lol / "Low" / f"low0000{number}.png", clean // 5)
            write(lol / "Normal" / f"normal0000{number}.png", clean)
            five = root / "FiveK" / half.lower()
            write(five / "input" / f"a000{number}.png", clean // 3)
            write(five / "expertC" / f"a000{number}.png", clean)
            sihr = root / "SIHR" / half.lower()
            write(sihr / "hazy" / f"{number}_0.9.png", clean // 2 + 100)
            write(sihr / "gt" / f"{number}.png", clean)
        write(root / "UIEB" / "raw-890" / f"{number}_img_.png", clean // 2)
        write(root / "UIEB" / "reference-890" / f"{number}_img_.png", clean)


def features(root: Path) -> None:
    """Networks of the published shapes; every weight is 0."""
    (root / "features").mkdir()
    networks = {"vgg16": vgg16(), "vgg19": vgg19(), "alexnet": alexnet(), "squeezenet1_0": squeezenet()}
    for name, network in networks.items():
        zeros = {key: torch.zeros_like(value) for key, value in network.features.state_dict().items()}
        save_file(zeros, root / "features" / f"{name}.safetensors")
    heads = {f"lin{n}.model.1.weight": torch.ones(1, c, 1, 1) for n, c in enumerate((64, 192, 384, 256, 256))}
    torch.save(heads, root / "features" / "alex.pth")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for make in (rain, deconvolution, haze, pairs_of_paper_b, features):
        make(folder)
    return folder


SMALL = {
    "paper-a-rain": ["data.crop=24", "model.net.recurrences=1"],
    "paper-a-deconvolution": ["data.crop=24", "model.net.width=4", "model.net.layers=3"],
    "paper-a-sots": ["data.crop=32", "model.net={kind: griddehaze, width: 4, columns: 2, growth: 4, dense: 1}"],
    "paper-b": ["data.crop=64"],
}
TINY_SEARCH = [
    "search={kind: hierarchical, loss: 1, architecture: 1}",
    "net={kind: supernet, width: 4, units: 1, ops_per_branch: 2}",
    "data.crop=64",
]
PAPERS = [name for name in reading.names("train") if name.startswith("paper-") and not name.endswith("-small")]
SEARCHES = [name for name in reading.names("search") if name.startswith("paper-")]


@pytest.mark.parametrize("name", PAPERS)
def test_a_training_of_the_papers_starts_on_published_files(name: str, root: Path, tmp_path: Path) -> None:
    small = next(changes for prefix, changes in SMALL.items() if name.startswith(prefix))
    changes = [*small, "steps=1", "validate_every=1", "data.batch=1", "data.limit=3", "precision=float32"]
    asked = [part for change in changes for part in ("--set", change)]
    arguments = ["train", name, "--data", str(root), "--output", str(tmp_path / "run"), "--device", "cpu", *asked]
    assert command_line(arguments) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_of_the_papers_and_its_judge_start_on_published_files(name: str, root: Path, tmp_path: Path) -> None:
    recipe = reading.tree_of(name)
    small = "judge={kind: small, width: 4}"
    arguments = ["train", recipe["judge"], "--data", str(root), "--output", str(tmp_path / "judge"), "--device", "cpu"]
    for change in (small, "steps=1", "held_out=2", "data.crop=32", "data.batch=2"):
        arguments += ["--set", change]
    assert command_line(arguments) == 0
    facts: dict[str, Any] = {"judge": {"kind": "small", "width": 4}, "task": recipe["task"], "recipe": "x", "seed": 0}
    facts |= {"accuracy": 0.95, "caught": 0.9, "held_out": 8, "crop": 64, "train": recipe["data"]["train"], "terms": ""}
    judges.save_judge(tmp_path / "judge.safetensors", Judge(width=4), checked(judges.JudgeFacts, facts))
    arguments = ["search", name, "--data", str(root), "--output", str(tmp_path / "found"), "--device", "cpu"]
    arguments += ["--judge", str(tmp_path / "judge.safetensors")]
    for change in TINY_SEARCH:
        arguments += ["--set", change]
    assert command_line(arguments) == 0
    assert (tmp_path / "found" / "loss.yaml").is_file()


@pytest.mark.parametrize(
    "place",
    ["Rain100L", "Rain100H", "RESIDE/SOTS/indoor", "RESIDE/SOTS/outdoor", "LOL-v2/Real_captured/Test", "FiveK/test",
     "SIHR/test", "UIEB"],
)  # fmt: skip
def test_an_evaluation_starts_on_published_test_sets(place: str, root: Path, plain_model: Path) -> None:
    assert command_line(["evaluate", "--model", str(plain_model), "--data", str(root / place), "--device", "cpu"]) == 0


def test_an_evaluation_measures_lpips_where_its_weights_are(
    root: Path, plain_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "--model", str(plain_model), "--data", str(root / "UIEB"), "--device", "cpu"]
    assert command_line([*asked, "--features", str(root / "features"), "-o", str(tmp_path / "table.json")]) == 0
    facts = json.loads((tmp_path / "table.json").read_text())
    assert facts["perceptual"] == facts["protocol"]["perceptual"] == "lpips_alexnet"
    assert facts["summary"]["perceptual"] == 0  # every weight is 0
    assert command_line([*asked, "--features", str(root / "UIEB")]) == 1
    assert "no LPIPS heads" in capsys.readouterr().err
    assert command_line([*asked, "--perceptual", "lpips"]) == 2
    assert command_line([*asked, "--perceptual", "lpips_vgg16"]) == 2


def test_levins_files_are_four_photographs_and_eight_kernels_each_with_each(root: Path) -> None:
    place = root / "deblur" / "Levin09blurdata"
    files = Folder("deblur/Levin09blurdata").files(root)
    assert [file.name for file in files] == ["im05_flit01.mat", "im06_flit01.mat"]
    assert torch.equal(read_bytes(files[0], channels=1)[0], torch.from_numpy(scene(5, channels=1)))
    found = read_kernels(place)
    assert len(found) == 2
    torch.testing.assert_close(found[0][0, 0], torch.from_numpy(kernel(1)).float())
    recipe = reading.read_recipe("paper-a-deconvolution")
    cases = recipe.data.degraded["levin-1%"].cases(root, channels=1)
    assert [name for name, _ in cases] == [f"im0{x}_flit01-kernel{k}" for x in (5, 6) for k in (1, 2)]
    sample = cases[1][1]
    assert sample.kernel is not None
    torch.testing.assert_close(sample.kernel[0, 0], torch.from_numpy(kernel(2)).float())
    assert [name for name, _ in cases[1:3]] == ["im05_flit01-kernel2", "im06_flit01-kernel1"]
    assert len(recipe.data.degraded["sun-3%"].cases(root, channels=1)) == 4


def test_each_with_each_needs_kernels_of_files(root: Path) -> None:
    noise = "{kind: synthetic, clean: [{path: clean}], each_kernel: true, degradation: {kind: noise}}"
    recipe = reading.read_recipe("paper-a-deconvolution", [f"data.degraded={{x: {noise}}}"])
    with pytest.raises(DataError, match="each_kernel: needs a degradation of kind blur with kernels of kind files"):
        recipe.data.degraded["x"].cases(root)


def test_matlab_files_of_both_versions_are_read_and_others_are_named(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3)
    hdf5(tmp_path / "new.mat", "depth", values)
    savemat(tmp_path / "old.mat", {"depth": values, "note": "text"})
    for name in ("old.mat", "new.mat"):
        found = read_matlab(tmp_path / name)
        assert list(found) == ["depth"]
        np.testing.assert_array_equal(found["depth"][0], values)
    (tmp_path / "no.mat").write_bytes(b"nothing of the kind, but long enough to be looked at" * 9)
    with pytest.raises(DataError, match=r"no\.mat: cannot be read as a MATLAB file"):
        read_matlab(tmp_path / "no.mat")
    with pytest.raises(ImageError, match=r"no\.mat: cannot be read as a MATLAB file"):
        read_kernel(tmp_path / "no.mat")
    savemat(tmp_path / "two.mat", {"a": values, "b": values})
    with pytest.raises(ImageError, match="holds no kernel: variables a, b"):
        read_kernels(tmp_path / "two.mat")
    with pytest.raises(DataError, match="holds no picture as a variable x"):
        read_bytes(tmp_path / "two.mat")


def test_published_rain_regions_are_the_maps_of_their_pairs(root: Path) -> None:
    (spec,) = reading.read_recipe("paper-a-rain100l").data.train
    assert isinstance(spec, Paired)
    assert [pair.map.name for pair in spec.pairs[0].pairs(root) if pair.map] == ["rainregion-1.png", "rainregion-2.png"]
    sample = spec.build(root, Crops(24))(torch.Generator().manual_seed(0))
    assert sample.guidance is not None
    wet = (sample.observed == 1).all(1, keepdim=True).all(3, keepdim=True).expand_as(sample.guidance)
    assert torch.equal(sample.guidance, wet.float())


def test_maps_of_ones_own_have_their_unit_and_follow_their_pair_into_a_half(root: Path, tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / "maps" / f"low0000{number}.png", np.full((SIDE, SIDE), 40 * number, np.uint8))
    root_of_pairs = root / "LOL-v2" / "Real_captured" / "Test"
    pairs = with_maps(find_pairs(root_of_pairs), tmp_path, "maps/*")
    assert [pair.map.stem for pair in pairs if pair.map] == [pair.name for pair in pairs]
    folder = PairFolder(str(root_of_pairs), maps=str(tmp_path / "maps" / "*.png"))
    source = Paired((folder,), white=4.0).build(Path("/"), Crops(16)).subset([3])
    guidance = source(torch.Generator().manual_seed(0)).guidance
    assert guidance is not None
    torch.testing.assert_close(guidance, torch.full((1, 1, 16, 16), 4 * 120 / 255))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("maps", "needs one star"),
        ("*/map-*.png", "needs one star"),
        ("nowhere/*.png", "6 of 6 pairs have no map there"),
    ],
)
def test_maps_that_are_not_there_are_named(pattern: str, message: str, root: Path) -> None:
    with pytest.raises(DataError, match=message):
        PairFolder("LOL-v2/Real_captured/Test", maps=pattern).pairs(root)


def test_a_map_of_another_size_is_named(root: Path, tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / "maps" / f"low0000{number}.png", np.zeros((SIDE // 2, SIDE), np.uint8))
    folder = PairFolder(str(root / "LOL-v2/Real_captured/Test"), maps=str(tmp_path / "maps" / "*.png"))
    with pytest.raises(DataError, match=r"low00000\.png: is 72x36 where its observed picture is 72x72"):
        Paired((folder,)).build(Path("/"), Crops(16))


def test_maps_and_a_rule_at_once_are_refused(root: Path) -> None:
    spec = reading.read_recipe("paper-a-rain100l", ["data.train.0.guidance=rain_region"]).data.train[0]
    with pytest.raises(DataError, match="give each folder its maps, or take one guidance rule"):
        spec.build(root, Crops(24))
