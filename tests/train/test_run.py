"""A whole run, from a folder of pictures to a model file: resumed, interrupted, killed, on two ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage import data
from torch import Tensor

from twofold import zoo
from twofold.contracts import ConfigError, DataError
from twofold.files import write_text
from twofold.train import checkpoint, reading
from twofold.train import recipe as recipes
from twofold.train.run import build_restorer, keep_best, train

TREE: dict[str, Any] = {
    "name": "small",
    "task": "rain",
    "model": {
        "kind": "guided",
        "guidance": "rain_region",
        "guide": {"width": 4},
        "net": {"kind": "unet", "widths": [8, 8], "blocks": [1, 1]},
    },
    "scheme": {"kind": "guided", "steering": 0.3},
    "loss": {"l1": 1.0, "negative_ssim": 0.1},
    "data": {
        "crop": 12,
        "batch": 4,
        "train": [
            {"kind": "pairs", "guidance": "rain_region", "pairs": [{}]},
            {"kind": "synthetic", "clean": [{"path": "clean"}], "degradation": {"kind": "harvested", "pairs": [{}]}},
        ],
        "validation": {"own": {"every": 2, "keep": "picked"}},
    },
    "optimizer": {"clip": 0.5},
    "schedule": {"kind": "constant", "warmup": 3},
    "steps": 12,
    "validate_every": 1_000_000,
    "average": 0.9,
    "precision": "bf16",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs, clean/ and rain/, 33x28: photographs under bright columns."""
    root = tmp_path_factory.mktemp("pictures")
    photo = data.astronaut()
    random = np.random.default_rng(0)
    for name in ("clean", "rain"):
        (root / name).mkdir()
    for i in range(4):
        clean = photo[60 * i : 60 * i + 28, 100:133]
        rain = np.minimum(clean.astype(int) + 80 * (random.random((1, 33, 1)) < 0.2), 255).astype(np.uint8)
        Image.fromarray(clean).save(root / "clean" / f"{i}.png")
        Image.fromarray(rain).save(root / "rain" / f"{i}.png")
    return root


def recipe(**changes: Any) -> recipes.Recipe:
    return reading.parse({**TREE, **changes})


def end_of(folder: Path) -> dict[str, Any]:
    """All that a run leaves to go on from, without the time it took."""
    state = checkpoint.read_state(folder / "state.safetensors")
    del state["seconds"], state["cpu_seconds"]
    return dict(state)


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list):
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {name: leaf for key, value in parts for name, leaf in flat(value, f"{path}/{key}").items()}
    return {path: tree}


def assert_same(first: Path, second: Path) -> None:
    ends = [flat(end_of(folder)) for folder in (first, second)]
    assert list(ends[0]) == list(ends[1])
    for name, one in ends[0].items():
        other = ends[1][name]
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, name
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


class Stop:
    """Ctrl-C at a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        if done == self.at:
            signal.raise_signal(signal.SIGINT)

    def validated(self, done: int, scores: dict[str, float]) -> None: ...


def test_a_run_leaves_a_model_its_scores_its_log_and_pictures(pictures: Path, tmp_path: Path) -> None:
    facts = train(recipe(validate_every=8), pictures, tmp_path, device="cpu")
    assert facts == json.loads((tmp_path / "result.json").read_text())
    assert set(facts["validation"]) == {"own/psnr", "own/ssim", "own/input_psnr", "own/input_ssim"}
    spec, state = zoo.read_weights(tmp_path / "model.safetensors")
    average = end_of(tmp_path)["average"]
    assert spec == recipe().model
    assert list(state) == sorted(average)
    assert all(torch.equal(state[name], average[name]) for name in state)
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], "validation" in line) for line in steps] == [(8, True), (10, False), (12, False), (12, True)]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["0000008.png", "0000012.png"]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert json.loads((tmp_path / "best.json").read_text())["steps"] in (8, 12)
    assert reading.read_recipe(tmp_path / "recipe.yaml") == recipe(validate_every=8)


def test_the_model_that_validated_best_is_kept(tmp_path: Path) -> None:
    def validated(steps: int, light: float, heavy: float) -> None:
        (tmp_path / "model.safetensors").write_text(str(steps))
        scores = {"light/psnr": light, "heavy/psnr": heavy, "light/input_psnr": 99.0, "heavy/ssim": 1.0}
        keep_best(tmp_path, steps, scores)

    def best() -> tuple[str, int, float]:
        facts = json.loads((tmp_path / "best.json").read_text())
        return (tmp_path / "best.safetensors").read_text(), facts["steps"], facts["psnr"]

    validated(100, 20.0, 30.0)
    validated(200, 31.0, 18.0)  # better on one set, worse in the mean
    assert best() == ("100", 100, 25.0)
    validated(300, 26.0, 26.0)
    assert best() == ("300", 300, 26.0)
    keep_best(tmp_path, 400, {})  # a recipe without validation
    assert best() == ("300", 300, 26.0)


def test_a_run_that_was_stopped_and_resumed_equals_an_uninterrupted_one(pictures: Path, tmp_path: Path) -> None:
    train(recipe(), pictures, tmp_path / "whole", device="cpu")
    for step in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), pictures, tmp_path / "part", device="cpu", reports=[Stop(step)])
    train(recipe(), pictures, tmp_path / "part", device="cpu")
    assert_same(tmp_path / "whole", tmp_path / "part")


def test_a_finished_run_is_only_validated_again(pictures: Path, tmp_path: Path) -> None:
    first = train(recipe(), pictures, tmp_path, device="cpu")
    (tmp_path / "result.json").unlink()
    state = (tmp_path / "state.safetensors").read_bytes()
    assert train(recipe(), pictures, tmp_path, device="cpu") == first
    assert (tmp_path / "result.json").exists()
    assert (tmp_path / "state.safetensors").read_bytes() == state


def test_a_recipe_starts_from_the_weights_of_another_model(tmp_path: Path) -> None:
    first = build_restorer(recipe())
    zoo.save_restorer(tmp_path / "first.safetensors", first, recipe().model)
    started = build_restorer(recipe(init=str(tmp_path / "first.safetensors")))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), started.parameters(), strict=True))
    with pytest.raises(ConfigError, match="init: the weights of derain are of another network than `model`"):
        build_restorer(recipe(init="derain"))


@pytest.mark.parametrize("scheme", ["supervised", "naive", "frozen"])
def test_the_other_schemes_run_from_a_recipe_too(pictures: Path, tmp_path: Path, scheme: str) -> None:
    facts = train(
        recipe(scheme={"kind": scheme}, steps=4, average=0.0, precision="float32"), pictures, tmp_path, device="cpu"
    )
    assert facts["steps"] == 4
    assert (tmp_path / "samples" / "0000004.png").exists()


def test_the_frozen_control_sees_what_guided_training_sees(pictures: Path, tmp_path: Path) -> None:
    """So its θ is the same bit for bit: fed by the observation, the guide learns nothing from ω."""
    train(recipe(steps=4, scheme={"kind": "guided"}), pictures, tmp_path / "guided", device="cpu")
    train(recipe(steps=8, scheme={"kind": "frozen"}), pictures, tmp_path / "frozen", device="cpu")
    guided, frozen = (end_of(tmp_path / name)["scheme"]["restorer"] for name in ("guided", "frozen"))
    assert all(torch.equal(guided[name], frozen[name]) for name in guided if name.startswith("guide."))
    assert not all(torch.equal(guided[name], frozen[name]) for name in guided)


# From here on the command line runs in processes of its own.


def command(tree: dict[str, Any], pictures: Path, folder: Path, *options: str) -> list[str]:
    path = folder.parent / f"{folder.name}.yaml"
    write_text(path, yaml.safe_dump(tree))
    said = ["--data", str(pictures), "--output", str(folder), "--device", "cpu", *options]
    return [sys.executable, "-m", "twofold", "train", str(path), *said]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_kill_leave_a_whole_state_from_which_the_same_command_goes_on(
    pictures: Path, tmp_path: Path, by: signal.Signals
) -> None:
    """The schedule is constant, so a run of many steps begins as a run of fewer."""
    folder = tmp_path / "run"
    log, state = folder / "log.jsonl", folder / "state.safetensors"
    minutes = "0" if by == signal.SIGKILL else "60"  # secured at every step, or by Ctrl-C alone
    many = {**TREE, "steps": 1_000_000}
    process = subprocess.Popen(
        command(many, pictures, folder, "--minutes", minutes), env=environment(), text=True, stderr=subprocess.PIPE
    )
    wait_for(state if by == signal.SIGKILL else log, process)
    process.send_signal(by)
    _, said = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in said
    done = int(checkpoint.read_state(state)["done"])
    assert done >= 1

    rest = recipe(steps=done + 2)
    train(rest, pictures, folder, device="cpu")
    assert {path.name for path in folder.glob(".*")} <= {".lock"}  # which a killed process leaves, unlocked
    train(rest, pictures, tmp_path / "whole", device="cpu")
    assert_same(tmp_path / "whole", folder)
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in logged if "validation" not in line]
    assert steps == sorted(set(steps))


def two_ranks(command: list[str]) -> str:
    """Runs a command as two ranks; what was printed where one failed. Another program may take the port in between."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in ("0", "1"):
        facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        ranks.append(subprocess.Popen(command, env=environment(**facts), text=True, stderr=subprocess.PIPE))
    said = ""
    for process in ranks:
        _, errors = process.communicate()
        if process.returncode:
            said += errors or "failed"
            for other in ranks:
                other.kill()
    return said


def test_two_ranks_make_the_update_of_one_process_with_the_doubled_batch(pictures: Path, tmp_path: Path) -> None:
    """Each rank makes half of the recipe's batch; their averaged gradient is the whole batch's, up to rounding."""
    tree = {**TREE, "steps": 3, "precision": "float32", "average": 0.0, "scheme": {"kind": "guided"}}
    tree["data"] = {**TREE["data"], "validation": {}}
    train(reading.parse(tree), pictures, tmp_path / "one", device="cpu")
    for attempt in range(5):
        errors = two_ranks(command(tree, pictures, tmp_path / f"two{attempt}"))
        if "EADDRINUSE" not in errors:
            break
    assert not errors
    (tmp_path / f"two{attempt}").rename(tmp_path / "two")
    one, two = (flat(end_of(tmp_path / name)) for name in ("one", "two"))
    started = reading.parse(tree)
    torch.manual_seed(started.seed)
    start = started.model.build().state_dict()
    for name, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-6, msg=name)
    weights = {name: one[f"/scheme/restorer/{name}"] for name in start}
    assert sum((weights[name] - start[name]).abs().sum() for name in start) > 0.1  # far more than the tolerance


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    from twofold.data.batches import Batches, Shard

    with pytest.raises(DataError, match="a batch of 5 cannot be shared by 2 processes"):
        Batches(lambda generator: pytest.fail("not drawn"), 5, share=Shard(0, 2))


# What can be wrong with the folders a recipe names.


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*no such folder.*--data"):
        train(recipe(), tmp_path / "nowhere", tmp_path / "run", device="cpu")


def test_an_empty_folder_is_an_error(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(pictures, root)
    for path in (root / "clean").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"4 of 4 pictures of rain have no partner in clean: 0\.png, 1\.png, 2\.png …"):
        train(recipe(), root, tmp_path / "run", device="cpu")
    for path in (root / "rain").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no pictures in rain"):
        train(recipe(), root, tmp_path / "run", device="cpu")
    tree = dict(TREE["data"], train=[dict(TREE["data"]["train"][1], degradation={"kind": "streaks"})], validation={})
    with pytest.raises(DataError, match="clean: no pictures to train on"):
        train(recipe(data=tree), root, tmp_path / "other", device="cpu")


def test_leaving_every_pair_out_is_an_error(pictures: Path, tmp_path: Path) -> None:
    tree = dict(TREE["data"], train=[{"kind": "pairs", "pairs": [{"every": 1}]}])
    with pytest.raises(DataError, match="every pair was left out"):
        train(recipe(data=tree), pictures, tmp_path / "run", device="cpu")


def test_pairs_that_differ_in_size_and_broken_pictures_are_named(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(pictures, root)
    tree = dict(TREE["data"], train=TREE["data"]["train"][:1])
    Image.open(root / "rain" / "2.png").crop((0, 0, 20, 20)).save(root / "rain" / "2.png")
    with pytest.raises(DataError, match=r"clean/2.png: is 33x28 where its observed picture is 20x20"):
        train(recipe(data=tree), root, tmp_path / "run", device="cpu")
    (root / "rain" / "1.png").write_bytes(b"")
    (root / "rain" / "2.png").write_text("no picture")
    with pytest.raises(DataError, match=r"2 of 4 pictures cannot be read: .*1\.png.*2\.png"):
        train(recipe(data=tree), root, tmp_path / "run", device="cpu")


def test_an_unknown_protocol_or_device_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protocol: did you mean 'y-matlab'"):
        train(recipe(protocol="y-matlap"), tmp_path, tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        train(recipe(), tmp_path, tmp_path / "run", device="gpu")


def test_a_damaged_state_is_an_error_and_not_a_new_start(pictures: Path, tmp_path: Path) -> None:
    train(recipe(steps=1), pictures, tmp_path, device="cpu")
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(Exception, match="remove it to start again"):
        train(recipe(steps=2), pictures, tmp_path, device="cpu")
