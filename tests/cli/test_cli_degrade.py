"""`twofold degrade`: the damage is real, its cause is kept, and the same seed gives the same file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twofold import images
from twofold.cli.app import run_command_line
from twofold.cli.degrade import DEGRADATIONS

Maker = Callable[..., Path]


def degrade(*arguments: object) -> int:
    return run_command_line(["degrade", *map(str, arguments)])


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_every_kind_degrades_an_image_and_saves_its_map(
    kind: str, picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = picture("clean.png", 60, 70)
    assert degrade(clean, "--kind", kind, "--guidance-out", tmp_path / "map.png", "--json") == 0
    (facts,) = json.loads(capsys.readouterr().out)["done"]
    observed, cause = images.read(tmp_path / f"clean-{kind}.png"), images.read(tmp_path / "map.png")
    assert observed.pixels.shape[-2:] == cause.pixels.shape[-2:] == (facts["height"], facts["width"])
    assert 1 < facts["psnr"] < 50
    assert cause.pixels.mean() * DEGRADATIONS[kind].white == pytest.approx(facts["guidance_mean"], abs=1e-3)


def test_the_map_of_the_noise_is_its_standard_deviation(tmp_path: Path) -> None:
    images.write(tmp_path / "grey.png", images.Picture(torch.full((1, 1, 200, 200), 0.5), bits=16))
    arguments = ["--kind", "noise", "--level", "0.02:0.1", "--layout", "halves"]
    assert (
        degrade(tmp_path / "grey.png", "-o", tmp_path / "o.png", *arguments, "--guidance-out", tmp_path / "m.png") == 0
    )
    observed = images.read(tmp_path / "o.png").pixels
    levels = images.read(tmp_path / "m.png").pixels * DEGRADATIONS["noise"].white
    for half in (slice(0, 100), slice(100, 200)):
        level = levels[..., half].unique().item()
        assert 0.02 <= level <= 0.1
        assert observed[..., half].std().item() == pytest.approx(level, rel=0.03)


def test_a_seed_and_a_name_give_the_same_file_alone_or_in_a_folder(picture: Maker, tmp_path: Path) -> None:
    photo = picture("in/b.png")
    picture("in/a.png")
    assert degrade(tmp_path / "in", "-o", tmp_path / "one", "--kind", "noise", "--seed", 3) == 0
    assert degrade(photo, "-o", tmp_path / "two.png", "--kind", "noise", "--seed", 3) == 0
    assert degrade(photo, "-o", tmp_path / "three.png", "--kind", "noise", "--seed", 4) == 0
    assert (tmp_path / "one" / "b.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "three.png").read_bytes()


def test_maps_inside_the_input_are_no_inputs_when_a_run_goes_on(picture: Maker, tmp_path: Path) -> None:
    picture("in/a.png")
    folder = tmp_path / "in"
    outs = ["-o", folder / "out", "--guidance-out", folder / "maps", "--clean-out", folder / "clean"]
    for more in ([], ["--skip-existing"]):
        assert degrade(folder, "--kind", "noise", *outs, *more) == 0
    assert [path.name for path in images.find([folder])] == ["a.png"] * 4


@pytest.mark.parametrize("coding", ["utf-8", "cp1252", "ascii"])
def test_a_name_that_is_not_unicode_and_a_terminal_that_has_no_arrow_stop_nothing(
    coding: str, picture: Maker, tmp_path: Path
) -> None:
    os.rename(picture("in/a.png"), os.fsencode(tmp_path / "in") + b"/caf\xe9.png")
    picture("in/b.png")
    command = [sys.executable, "-m", "twofold", "degrade", tmp_path / "in", "-o", tmp_path / "out", "--kind", "noise"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": coding}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"2 degraded" in done.stdout
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == [b"b.png", b"caf\xe9.png"]


def test_a_blurred_picture_keeps_its_kernel_and_the_clean_middle(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (60, 70, 4), np.uint8)
    Image.fromarray(samples).save(tmp_path / "clean.png")
    kernel = torch.zeros(1, 1, 5, 5)
    kernel[..., 2, 2] = 1
    images.write(tmp_path / "kernel.png", images.Picture(kernel))
    outs = ["--kernel-out", tmp_path / "k.png", "--clean-out", tmp_path / "c.png", "-o", tmp_path / "o.png"]
    assert (
        degrade(tmp_path / "clean.png", "--kind", "blur", "--kernel", tmp_path / "kernel.png", "--level", 0, *outs) == 0
    )
    observed, middle = (np.asarray(Image.open(tmp_path / name)) for name in ("o.png", "c.png"))
    assert np.array_equal(middle, samples[2:-2, 2:-2])
    assert np.abs(observed.astype(int) - middle).max() <= 1  # a kernel of one point moves nothing
    assert torch.equal(images.read(tmp_path / "k.png").pixels, kernel)
    given = (tmp_path / "kernel.png").read_bytes()
    over = ["--kernel", tmp_path / "kernel.png", "--kernel-out", tmp_path / "kernel.png"]
    assert degrade(tmp_path / "clean.png", "--kind", "blur", "-o", tmp_path / "n.png", *over) == 2
    assert (tmp_path / "kernel.png").read_bytes() == given


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--kind", "noise", "--kernel-out", "k.png"], "noise has no kernel"),
        (["--kind", "noise", "--level", "0.1:0.02"], "low <= high"),
        (["--kind", "noise", "--level", "much"], "--level takes a number"),
        (["--kind", "noise", "--layout", "halvs"], "did you mean 'halves'"),
        (["--kind", "blur", "--kernel", "motoin"], "did you mean 'motion'"),
        (["--kind", "blur"], "smaller than the"),
        (["--kind", "rain", "-o", "clean.png"], "would replace an input"),
        (["--kind", "rain", "-o", "o.png", "--clean-out", "o.png"], "written twice"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str],
    reason: str,
    picture: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture("clean.png")
    monkeypatch.chdir(tmp_path)
    assert degrade("clean.png", *arguments) in (1, 2)
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["clean.png"]


def test_a_kind_that_only_recipes_name_works_with_its_settings(
    picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture("clean.png", 40, 40)
    assert degrade(photo, "-o", tmp_path / "o.png", "--kind", "salt_and_pepper", "--set", "share=1.0") == 0
    assert set(images.read(tmp_path / "o.png").pixels.unique().tolist()) == {0.0, 1.0}
    capsys.readouterr()
    assert degrade(photo, "--kind", "salt_and_pepper", "--guidance-out", tmp_path / "map.png") == 1
    assert "has no guidance map" in capsys.readouterr().err
    assert degrade(photo, "--kind", "salt_and_peper") == 2
    assert "did you mean 'salt_and_pepper'" in capsys.readouterr().err


def test_a_setting_of_a_kind_is_changed_and_a_misspelt_one_named(
    picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture("clean.png", 40, 40)
    for amount in (0.1, 3.0):
        changes = [f"beta=[{amount},{amount}]", "airlight=[1.0,1.0]", "tint=0.0"]
        more = [word for change in changes for word in ("--set", change)]
        assert degrade(photo, "-o", tmp_path / f"{amount}.png", "--kind", "haze", *more) == 0
    thin, dense = (images.read(tmp_path / f"{amount}.png").pixels for amount in (0.1, 3.0))
    assert dense.mean() > thin.mean() + 0.2
    capsys.readouterr()
    assert degrade(photo, "--kind", "haze", "--set", "betta=[1,1]") == 2
    assert "did you mean 'beta'" in capsys.readouterr().err
