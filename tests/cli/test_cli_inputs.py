"""`twofold restore` and `degrade`: streams, patterns, several models, quality, dry runs, work in parallel."""

from __future__ import annotations

import io
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
from skimage import data

from twofold import api, images
from twofold.cli.app import run_command_line
from twofold.cli.pipeline import Outcome
from twofold.degrade.hadamard import Underwater

Maker = Callable[..., Path]


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def degrade() -> Callable[..., int]:
    return lambda *arguments: run_command_line(["degrade", "--kind", "noise", *map(str, arguments)])


@pytest.fixture
def restore(guided_model: Path) -> Callable[..., int]:
    return lambda *arguments: run_command_line(["restore", *map(str, arguments), "--model", str(guided_model)])


def test_an_image_goes_through_a_pipe(picture: Maker, tmp_path: Path) -> None:
    photo = picture("a.png")
    command = [sys.executable, "-m", "twofold", "degrade", "-k", "noise", "--format", "webp", "-"]
    done = subprocess.run(command, input=photo.read_bytes(), capture_output=True, check=True)
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("WEBP", (17, 12))
    assert tree(tmp_path) == ["a.png"]


class _Stream(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False


def test_standard_input_can_go_to_a_file_and_a_file_to_standard_output(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = picture("a.png")
    monkeypatch.setattr(sys, "stdin", _Stream(io.BytesIO(photo.read_bytes())))
    assert degrade("-", "-o", tmp_path / "b.jpg") == 0
    assert images.read(tmp_path / "b.jpg").pixels.shape == (1, 3, 12, 17)
    monkeypatch.setattr(sys, "stdin", _Stream(io.BytesIO(b"no image")))
    assert degrade("-", "-o", tmp_path / "c.jpg") == 1
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", _Stream(out))
    assert degrade(photo, "-o", "-") == 0
    assert out.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-", "a.png"], "is for one image"),
        (["in", "-o", "-"], "is for one image"),
        (["-", "-o", "-", "--json"], "would both be printed"),
        ([""], "an INPUT is empty"),
        (["a.png", ""], "an INPUT is empty"),
        (["a.png", "-o", ""], "--output is empty"),
        (["a.png", "--guidance-out", ""], "is empty"),
        (["a.png", "--format", "png", "--quality", "50"], "--quality is for JPEG and WebP"),
        (["a.png", "--format", "jpg", "--quality", "0"], "--quality"),
        (["a.png", "--jobs", "0"], "--jobs"),
        (["a.png", "-o", "b.png", "--format", "gif"], "unknown format 'gif'"),
    ],
)
def test_misuse_writes_nothing_and_exits_with_two(
    degrade: Callable[..., int],
    picture: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    picture("a.png"), picture("in/b.png")
    monkeypatch.chdir(tmp_path)
    assert degrade(*arguments) == 2
    assert reason in capsys.readouterr().err
    assert tree(tmp_path) == ["a.png", "in/b.png"]


def test_patterns_stand_for_the_files_they_match(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png"), picture("in/b.jpg"), picture("in/deep/c.png"), picture("in/x[1].png")
    assert degrade(tmp_path / "in" / "**" / "?.png", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["a.png", "c.png"]
    assert degrade(tmp_path / "in" / "x[1].png", "-o", tmp_path / "two") == 0  # a file is never taken for a pattern
    assert tree(tmp_path / "two") == ["x[1].png"]
    assert degrade(tmp_path / "in" / "*.bmp") == 1
    assert "no file matches this pattern" in capsys.readouterr().err


def test_sub_folders_can_be_left_out(degrade: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    picture("in/a.png"), picture("in/deep/b.png")
    assert degrade(tmp_path / "in", "-o", tmp_path / "out", "--no-recursive") == 0
    assert tree(tmp_path / "out") == ["a.png"]


def test_a_name_that_ends_in_a_slash_is_a_folder(degrade: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    assert degrade(picture("a.png"), "-o", f"{tmp_path}/new.folder/") == 0
    assert degrade(picture("a.png"), "-o", f"{tmp_path}/other.png/") == 0
    assert tree(tmp_path) == ["a.png", "new.folder/a.png", "other.png/a.png"]


@pytest.mark.parametrize(("name", "suffix"), [("PNG", "png"), ("jpeg", "jpg"), ("tif", "tiff"), (".webp", "webp")])
def test_formats_go_by_all_their_names(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path, name: str, suffix: str
) -> None:
    assert degrade(picture("a.bmp"), "-o", tmp_path / "out", "--format", name) == 0
    assert tree(tmp_path / "out") == [f"a.{suffix}"]


def test_quality_reaches_the_file(degrade: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    photo = picture("a.png", 64, 64)
    for quality in (20, 90):
        assert degrade(photo, "-o", tmp_path / f"{quality}.jpg", "--quality", quality) == 0
    assert (tmp_path / "20.jpg").stat().st_size < (tmp_path / "90.jpg").stat().st_size


def test_a_dry_run_writes_nothing_and_says_what_would_be(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png"), picture("in/b.png"), picture("out/a.png")
    asked = [tmp_path / "in", "-o", tmp_path / "out", "--skip-existing", "--dry-run"]
    assert restore(*asked) == 0
    assert capsys.readouterr().out.endswith("1 planned, 1 skipped; nothing was written\n")
    assert restore(*asked, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["planned"] == [{"input": str(tmp_path / "in/b.png"), "output": str(tmp_path / "out/b.png")}]
    assert report["skipped"] == [str(tmp_path / "in/a.png")]
    assert tree(tmp_path / "out") == ["a.png"]


def test_quiet_leaves_warnings_and_errors(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png"), (tmp_path / "in" / "b.png").write_bytes(b"")
    assert degrade(tmp_path / "in", "-o", tmp_path / "out", "--quiet") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "b.png: the file is empty" in said.err


@pytest.mark.parametrize("parallel", [2, 5])
def test_parallel_work_gives_the_same_files_and_the_same_report(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str], parallel: int
) -> None:
    for number in range(9):
        picture(f"in/{number}.png", 20 + number, 30)
    (tmp_path / "in" / "3.png").write_bytes(b"damaged")
    reports = []
    for jobs, out in ((1, "one"), (parallel, "two")):
        picture(f"{out}/5.png")
        code = degrade(tmp_path / "in", "-o", tmp_path / out, "--jobs", jobs, "--skip-existing", "--json")
        assert code == 1
        report = json.loads(capsys.readouterr().out.replace(f"/{out}/", "/out/"))
        reports.append([[{**facts, "seconds": 0} for facts in report["done"]], report["skipped"], report["failed"]])
    assert reports[0] == reports[1]
    assert len(reports[0][0]) == 7
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    for name in tree(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_interrupted_parallel_run_leaves_whole_files_and_a_report(
    degrade: Callable[..., int],
    picture: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from twofold import metrics

    for number in range(9):
        picture(f"in/{number}.png", 30, 30)
    really, calls = metrics.psnr, []

    def interrupted(*arguments: object) -> object:
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return really(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(metrics, "psnr", interrupted)
    assert degrade(tmp_path / "in", "-o", tmp_path / "out", "--jobs", 3, "--json") == 130
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["stopped"] == "interrupted"
    assert (
        [Path(facts["output"]).name for facts in report["done"]]
        == tree(tmp_path / "out")
        == [f"{n}.png" for n in range(4)]
    )
    assert "--skip-existing goes on later" in said.err


def test_an_empty_output_is_made_again(degrade: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    picture("in/a.png"), (tmp_path / "out").mkdir(), (tmp_path / "out" / "a.png").touch()
    assert degrade(tmp_path / "in", "-o", tmp_path / "out", "--skip-existing") == 0
    assert (tmp_path / "out" / "a.png").stat().st_size > 0


def test_temporary_files_of_a_killed_run_are_removed_by_the_next(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path
) -> None:
    picture("in/a.png"), (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".a.png.abcd1234.part").write_bytes(b"half")
    assert degrade(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["a.png"]


def test_formats_that_are_not_read_are_named(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png"), (tmp_path / "in" / "b.NEF").touch(), (tmp_path / "in" / "deep").mkdir()
    (tmp_path / "in" / "deep" / "c.cr2").touch(), (tmp_path / "in" / "notes.txt").touch()
    assert degrade(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert "left out, as these formats are not read: 1 .cr2, 1 .nef" in capsys.readouterr().err


def test_what_a_format_cannot_hold_is_reported_once_for_all_files(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.png", "in/b.png"):
        picture(name, channels=4)
    assert degrade(tmp_path / "in", "-o", tmp_path / "out", "--format", "jpg", "--json") == 0
    said = capsys.readouterr()
    assert said.err == "twofold: 2 outputs: transparency of the input is not kept in JPG files; --format png keeps it\n"
    assert [facts["not_kept"] for facts in json.loads(said.out)["done"]] == [["transparency"]] * 2


def test_a_damaged_jpeg_is_restored_as_far_as_it_goes(
    degrade: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture("a.jpg", 200, 100)
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size * 2 // 3])
    assert degrade(photo, "-o", tmp_path / "b.png", "--json") == 0
    said = capsys.readouterr()
    (facts,) = json.loads(said.out)["done"]
    assert facts["damage"].startswith("the file ends early, ")
    assert said.err == f"twofold: {photo}: {facts['damage']}; the rest is restored\n"


def test_several_models_run_one_after_the_other(
    guided_model: Path, plain_model: Path, picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture("a.png")

    def restored(source: Path, output: str, *models: Path, more: tuple[str, ...] = ()) -> Path:
        chosen = [word for model in models for word in ("-m", str(model))]
        assert run_command_line(["restore", str(source), "-o", str(tmp_path / output), *chosen, *more]) == 0
        return tmp_path / output

    first = restored(photo, "1.tiff", guided_model)
    both = restored(photo, "12.png", guided_model, plain_model, more=("--guidance-out", str(tmp_path / "map.png")))
    apart = restored(first, "2.png", plain_model)
    one, two = (np.asarray(Image.open(path)).astype(int) for path in (both, apart))
    assert np.abs(one - two).max() <= 2  # the file between them is rounded to 8 bits
    assert (tmp_path / "map.png").exists()
    capsys.readouterr()
    twice = ["restore", str(photo), "-m", str(guided_model), "-m", str(guided_model), "--guidance", "0.5"]
    assert run_command_line(twice) == 2
    assert "have a guidance map" in capsys.readouterr().err


def test_control_characters_in_names_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(2, [{"input": "a\x1b[2J.png", "output": "b\n.png", "seconds": 1.0}], [], {"c": "c\u202e: bad"})
    assert outcome.close(as_json=False, verb="restored") == 1
    said = capsys.readouterr()
    assert "a\\x1b[2J.png → b\\n.png" in said.out
    assert "c\\u202e: bad" in said.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_or_closed_standard_output_costs_no_file(picture: Maker, tmp_path: Path) -> None:
    photo = picture("a.png")
    command = f"{sys.executable} -m twofold degrade -k noise {photo} -o {tmp_path}"
    full = subprocess.run(f"{command}/b.png >/dev/full", shell=True, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert full.stderr == "twofold: cannot write to standard output: No space left on device; the files are complete\n"
    closed = subprocess.run(f"{command}/c.png >&- 2>&-", shell=True, check=False)
    assert closed.returncode == 0
    ended = f"{sys.executable} -m twofold --help | true"
    assert subprocess.run(ended, shell=True, capture_output=True, text=True, check=False).stderr == ""
    shapes = {images.read(tmp_path / name).pixels.shape for name in ("b.png", "c.png")}
    assert shapes == {(1, 3, 12, 17)}


def test_auto_takes_the_model_for_the_damage_of_each_image(
    picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = images.from_any(data.coffee()).pixels[..., :240, :320]
    (tmp_path / "in").mkdir()
    images.write(tmp_path / "in" / "dark.png", images.Picture(clean * 0.04))
    drawn = Underwater()(clean, torch.Generator().manual_seed(0)).observed
    images.write(tmp_path / "in" / "water.png", images.Picture(drawn))
    images.write(tmp_path / "in" / "good.png", images.Picture(clean))
    arguments = ["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", "auto"]
    assert run_command_line([*arguments, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [facts["models"] for facts in report["done"]] == [["lowlight"], ["underwater"]]
    assert "it is dark" in report["done"][0]["guess"]
    assert "good.png: auto finds no clear sign of damage; name a model" in report["failed"][0]["error"]
    wanted = api.load("lowlight").restore(images.read(tmp_path / "in" / "dark.png"))[0].pixels.clamp(0, 1)
    assert (images.read(tmp_path / "out" / "dark.png").pixels - wanted).abs().max() < 0.51 / 255
    run_command_line(arguments)
    assert " by lowlight: it is dark" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--model", "derain"], "--model auto is alone"),
        (["--guidance", "0.5"], "--model auto and --guidance do not go together; name a model"),
        (["--kernel", "estimate", "--engine", "ray"], "--model auto and --kernel, --engine ray do not go together"),
    ],
)
def test_auto_takes_nothing_that_is_for_one_model(
    more: list[str], reason: str, picture: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["restore", str(picture("a.png")), "--model", "auto", *more]) == 2
    assert reason in capsys.readouterr().err
