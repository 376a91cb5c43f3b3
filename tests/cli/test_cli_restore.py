"""`twofold restore`: where outputs go, what is never touched, and what happens to the other files when one is bad."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from twofold import images
from twofold.cli.app import run_command_line
from twofold.sheets import LONGEST, contact_sheet, small

Maker = Callable[..., Path]


def tree(folder: Path) -> list[str]:
    """Every file, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def restore(guided_model: Path) -> Callable[..., int]:
    return lambda *arguments: run_command_line(["restore", *map(str, arguments), "--model", str(guided_model)])


def test_one_image_is_written_where_output_says(restore: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    photo = picture("photo.png")
    assert restore(photo, "-o", tmp_path / "new" / "dry.tiff") == 0
    with Image.open(tmp_path / "new" / "dry.tiff") as dry:
        assert (dry.format, dry.size) == ("TIFF", (17, 12))
    (tmp_path / "there").mkdir()
    assert restore(photo, "-o", tmp_path / "there") == 0
    assert restore(photo, "-o", tmp_path / "fresh", "--format", "webp") == 0
    assert restore(photo) == 0
    assert tree(tmp_path) == ["fresh/photo.webp", "new/dry.tiff", "photo-restored.png", "photo.png", "there/photo.png"]


def test_the_file_holds_what_the_library_returns(
    restore: Callable[..., int], guided_model: Path, picture: Maker, tmp_path: Path
) -> None:
    photo = picture("photo.png")
    assert restore(photo, "-o", tmp_path / "dry.png", "--guidance-out", tmp_path / "map.png", "--strength", 0.5) == 0
    expected = twofold.restore(images.read(photo).pixels, guided_model, strength=0.5)
    assert expected.guidance is not None
    assert torch.allclose(images.read(tmp_path / "dry.png").pixels, expected.image.clamp(0, 1), atol=0.51 / 255)
    assert torch.allclose(images.read(tmp_path / "map.png").pixels, expected.guidance, atol=1e-5)


def test_a_kept_map_steers_the_next_run(restore: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    photo = picture("photo.png")
    assert restore(photo, "-o", tmp_path / "dry.png", "--guidance-out", tmp_path / "map.png") == 0
    assert restore(photo, "-o", tmp_path / "again.png", "--guidance", tmp_path / "map.png") == 0
    first, again = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("dry.png", "again.png"))
    assert np.abs(first - again).max() <= 1
    assert restore(photo, "-o", tmp_path / "none.png", "--guidance", "0") == 0
    assert restore(photo, "-o", tmp_path / "zero.png", "--strength", "0") == 0
    unchanged = np.asarray(Image.open(photo).convert("RGB")).astype(int)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "zero.png").convert("RGB")), unchanged)
    assert (tmp_path / "none.png").read_bytes() != (tmp_path / "dry.png").read_bytes()


def test_a_folder_of_maps_goes_by_name_whatever_their_suffix(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.png", "in/deep/b.png", "in/c.png"):
        picture(name)
    picture("maps/a.tif", channels=1), picture("maps/deep/b.webp", channels=1)
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--guidance", tmp_path / "maps"]
    assert restore(*arguments) == 1  # c has none, and costs only itself
    assert "has no file called c" in capsys.readouterr().err
    assert tree(tmp_path / "out") == ["a.png", "deep/b.png"]
    assert (
        restore(tmp_path / "in" / "a.png", "-o", tmp_path / "one.png", "--guidance", tmp_path / "maps" / "a.tif") == 0
    )
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "out" / "a.png").read_bytes()


def test_a_result_never_replaces_the_model(
    guided_model: Path,
    picture: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photo = picture("a.png")
    (tmp_path / "m.png").write_bytes(guided_model.read_bytes())
    monkeypatch.chdir(tmp_path)
    for output in (["-o", "m.png"], ["-o", "b.png", "--guidance-out", "m.png"], ["-o", "b.png", "--sheet", "m.png"]):
        assert run_command_line(["restore", str(photo), *output, "--model", "./m.png"]) == 2
        assert "m.png would replace an input" in capsys.readouterr().err
    assert (tmp_path / "m.png").read_bytes() == guided_model.read_bytes()


def test_a_folder_becomes_a_folder_with_its_sub_folders(
    restore: Callable[..., int], picture: Maker, tmp_path: Path
) -> None:
    for name in ("in/a.png", "in/deep/b.jpg", "in/deep/c.d.bmp"):
        picture(name)
    assert restore(tmp_path / "in", "--guidance-out", tmp_path / "maps") == 0
    assert tree(tmp_path / "in-restored") == ["a.png", "deep/b.jpg", "deep/c.d.bmp"]
    assert tree(tmp_path / "maps") == ["a.png", "deep/b.png", "deep/c.d.png"]
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--format", "png", "--guidance", tmp_path / "maps") == 0
    assert tree(tmp_path / "out") == ["a.png", "deep/b.png", "deep/c.d.png"]


def test_the_present_folder_can_be_restored(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("in/a.png")
    monkeypatch.chdir(tmp_path / "in")
    assert restore(".") == 0
    assert tree(tmp_path) == ["in-restored/a.png", "in/a.png"]


def test_a_picture_that_is_named_twice_is_restored_once(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture("in/a.png")
    for inputs, output in (([photo, photo], "b.png"), ([tmp_path / "in", photo, tmp_path / "in"], "out")):
        assert restore(*inputs, "-o", tmp_path / output, "--json") == 0
        assert len(json.loads(capsys.readouterr().out)["done"]) == 1
    assert tree(tmp_path) == ["b.png", "in/a.png", "out/a.png"]


def test_files_and_folders_mix(restore: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    picture("in/a.png")
    assert restore(tmp_path / "in", picture("b.jpg"), "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["a.png", "b.jpg"]


def test_an_output_folder_inside_the_input_is_no_input_next_time(
    restore: Callable[..., int], picture: Maker, tmp_path: Path
) -> None:
    picture("in/a.png")
    for _ in range(2):
        assert restore(tmp_path / "in", "-o", tmp_path / "in" / "out") == 0
    assert tree(tmp_path / "in") == ["a.png", "out/a.png"]


def test_maps_inside_the_input_are_no_inputs_next_time_and_a_sheet_replaces_no_photograph(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png")
    outs = ["-o", "out", "--guidance-out", "maps"]
    outs = [name if name.startswith("-") else str(tmp_path / "in" / name) for name in outs]
    for more in ([], ["--skip-existing"], []):
        assert restore(tmp_path / "in", *outs, *more) == 0
    assert tree(tmp_path / "in") == ["a.png", "maps/a.png", "out/a.png"]
    assert restore(tmp_path / "in", *outs, "--sheet", tmp_path / "in" / "a.png") == 2
    assert "would replace an input" in capsys.readouterr().err


def test_maps_that_would_replace_the_inputs_are_refused(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/deep/a.png")
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--guidance-out", tmp_path / "in") == 2
    assert "would replace an input" in capsys.readouterr().err
    assert tree(tmp_path) == ["in/deep/a.png"]


def test_the_root_of_a_disk_has_no_name_for_its_outputs(
    restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore("/") == 2
    assert capsys.readouterr().err == "twofold: / has no name to call a folder of outputs by; name one with -o\n"


def test_a_file_without_a_suffix_is_restored_into_a_png(
    restore: Callable[..., int], picture: Maker, tmp_path: Path
) -> None:
    picture("photo.png").rename(tmp_path / "photo")
    assert restore(tmp_path / "photo") == 0
    assert tree(tmp_path) == ["photo", "photo-restored.png"]


def test_existing_outputs_are_skipped_when_asked(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png"), picture("in/b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("kept")
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--skip-existing", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["skipped"] == [str(tmp_path / "in" / "a.png")]
    assert [facts["output"] for facts in told["done"]] == [str(tmp_path / "out" / "b.png")]
    assert (tmp_path / "out" / "a.png").read_text() == "kept"
    assert restore(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_json_tells_what_was_done(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(picture("a.png"), "-o", tmp_path / "b.png", "--guidance-out", tmp_path / "m.png", "--json") == 0
    (facts,) = json.loads(capsys.readouterr().out)["done"]
    assert (facts["width"], facts["height"], facts["guidance"]) == (17, 12, "rain_region")
    assert facts["guidance_out"] == str(tmp_path / "m.png")
    assert facts["seconds"] > 0


@pytest.mark.parametrize("tile", ["1", "16", "auto"])
def test_tiles_change_nothing(restore: Callable[..., int], picture: Maker, tmp_path: Path, tile: str) -> None:
    photo = picture("photo.png", 9, 40)
    assert restore(photo, "-o", tmp_path / "whole.png", "--tile", "1000") == 0
    assert restore(photo, "-o", tmp_path / "tiles.png", "--tile", tile) == 0
    whole, tiles = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("whole.png", "tiles.png"))
    assert np.abs(whole - tiles).max() <= 1


def test_a_real_rainy_photograph_goes_through(restore: Callable[..., int], shared_data: Path, tmp_path: Path) -> None:
    photo = images.find([shared_data / "rain" / "real"])[0]
    assert restore(photo, "-o", tmp_path / "dry.jpg", "--guidance-out", tmp_path / "map.png") == 0
    size = images.read(photo).pixels.shape[-2:]
    assert all(images.read(tmp_path / name).pixels.shape[-2:] == size for name in ("dry.jpg", "map.png"))


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def damage(path: Path, how: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("A holiday in the rain.\n")
    elif how == "bomb":
        path.write_bytes(png_header(10_000, 10_000) + b"IDAT")
    elif how == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:650])  # no row is left


@pytest.mark.parametrize("how", ["missing", "empty", "text", "bomb", "truncated"])
def test_a_bad_picture_is_one_line_and_exit_code_one(
    restore: Callable[..., int], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(tmp_path / "in" / "bad.png", how)
    assert restore(tmp_path / "in" / "bad.png", "-o", tmp_path / "out" / "a.png") == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[0].startswith(f"twofold: {tmp_path / 'in' / 'bad.png'}: ")
    assert "Traceback" not in told.err
    assert not (tmp_path / "out").exists()


def test_three_bad_files_of_fifty_cost_only_themselves(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(47):
        picture(f"in/{number:02d}.png", 8, 8)
    bad = {"03.jpg": "empty", "20.jpg": "truncated", "99.png": "text"}
    for name, how in bad.items():
        damage(tmp_path / "in" / name, how)
    code = restore(tmp_path / "in", "-o", tmp_path / "out", "--format", "webp", "--json", "--tile", "64")
    assert code == 2  # 03.jpg and 03.png would meet in one output
    assert "written twice" in capsys.readouterr().err
    (tmp_path / "in" / "03.jpg").rename(tmp_path / "in" / "x.jpg")
    (tmp_path / "in" / "20.jpg").rename(tmp_path / "in" / "y.jpg")
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--format", "webp", "--json") == 1
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert len(report["done"]) == len(tree(tmp_path / "out")) == 47
    assert [Path(failure["input"]).name for failure in report["failed"]] == ["99.png", "x.jpg", "y.jpg"]
    assert "3 of 50 failed" in told.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a.png", "-o", "a.png"], "would replace an input"),
        (["a.png", "-o", "b.png", "--guidance-out", "a.png"], "would replace an input"),
        (["a.png", "-o", "b.png", "--guidance-out", "b.png"], "written twice"),
        (["in", "-o", "in"], "would replace an input"),
        (["in", "-o", "out", "--guidance-out", "out"], "written twice"),
        (["a.png", "-o", "b.png", "--sheet", "b.png"], "written twice"),
        (["a.png", "-o", "b.png", "--guidance-out", "m.png", "--sheet", "m.png"], "written twice"),
        (["a.png", "-o", "b.png", "--sheet", "a.png"], "would replace an input"),
        (["a.png", "-o", "in/a.png", "--guidance", "in/a.png"], "in/a.png would replace an input"),
        (["a.png", "--guidance", "in/a.png", "--guidance-out", "./in/a.png"], "in/a.png would replace an input"),
        (["a.png", "--guidance", "in", "--guidance-out", "in"], "in/a.png would replace an input"),
        (["a.png", "--guidance", "in/a.png", "--sheet", "in/a.png"], "in/a.png would replace an input"),
        (["a.png", "--guidance", ""], "--guidance is empty; name a file or a folder"),
        (["a.png", "--kernel", " "], "--kernel is empty; name a file or a folder"),
        (["a.png", "-o", "b.png", "--sheet", "all.gif"], "cannot write all.gif; known suffixes"),
        (["a.png", "in/a.png", "-o", "out"], "written twice, for a.png and for in/a.png; rename one of them"),
        (["in", "-o", "out.png"], "a folder is needed"),
        (["a.png", "in", "-o", "out.png"], "a folder is needed"),
        (["in", "-o", "notes"], "a folder is needed"),
        (["a.png", "-o", "b.gif"], "known suffixes"),
        (["a.png", "-o", "b.png", "--format", "webp"], "disagree"),
        (["in", "--guidance-out", "m.png"], "name a folder"),
        (["a.png", "--guidance-out", "m.jpg"], "16 bits"),
        (["a.png", "--guidance-out", "maps.xyz"], "cannot write maps.xyz; known suffixes"),
        (["a.png", "--guidance-out", "notes"], "notes is a file, but no picture"),
        (["a.png", "--tile", "0"], "--tile"),
        (["a.png", "--strength", "2"], "0 to 1.5"),
        (["a.png", "--guidance", "1.5"], "from 0 to 1"),
        (["a.png", "--guidance", "in/a.png"], "resize"),
        (["a.png", "--guidance", "nowhere.png"], "nowhere.png: no such file"),
        (["a.png", "--device", "kuda"], "cannot be used here"),
        (["empty"], "no images in empty"),
        (["a.png", "nowhere"], "nowhere: no such file or folder"),
        (["a.png", "-o", "notes/b.png"], "notes: cannot be made"),
        (["in", "-o", "notes/out"], "the others could not be written either"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    restore: Callable[..., int],
    picture: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    picture("a.png"), picture("in/a.png", 5, 5), picture("in/b.png", 5, 5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").write_text("a file")
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
    monkeypatch.chdir(tmp_path)
    assert restore(*arguments) in (1, 2)
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error
    assert {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)} == before


def test_a_model_without_a_map_takes_and_gives_none(
    plain_model: Path, picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture("a.png")
    for extra in (["--guidance-out", str(tmp_path / "m.png")], ["--guidance", "0.5"]):
        assert run_command_line(["restore", str(photo), "--model", str(plain_model), *extra]) == 2
        assert "no guidance map" in capsys.readouterr().err
    assert run_command_line(["restore", str(photo), "--model", str(plain_model)]) == 0


def test_an_unknown_model_is_one_line(picture: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["restore", str(picture("a.png")), "--model", "derian"]) == 1
    assert capsys.readouterr().err.startswith("twofold: unknown model 'derian'")


def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(
    restore: Callable[..., int],
    picture: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in "abcd":
        picture(f"in/{name}.png")
    really = os.replace

    def full_after_one(source: Any, target: Any) -> None:
        if (tmp_path / "out" / "a.png").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        really(source, target)

    monkeypatch.setattr(os, "replace", full_after_one)
    assert restore(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert tree(tmp_path / "out") == ["a.png"]
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "the others could not be written either" in error
    assert "c.png" not in error  # there was no use in trying
    monkeypatch.setattr(os, "replace", really)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--skip-existing") == 0
    assert tree(tmp_path / "out") == ["a.png", "b.png", "c.png", "d.png"]


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_folder_is_whole_files_and_goes_on(
    restore: Callable[..., int], guided_model: Path, picture: Maker, tmp_path: Path, blow: signal.Signals
) -> None:
    names = [f"{number:02d}.png" for number in range(24)]
    for name in names:
        picture(f"in/{name}", 200, 200)
    slow = (  # a second an image: the run cannot end before the signal comes
        "import sys, time; from twofold import tiling; from twofold.__main__ import main\n"
        "tiled = tiling.tiled; tiling.tiled = lambda *a, **k: time.sleep(1) or tiled(*a, **k); sys.exit(main())"
    )
    command = [sys.executable, "-c", slow, "restore", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    with subprocess.Popen([*command, "-m", str(guided_model)], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "out" / names[0]).exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(blow)
        error = process.communicate()[1]
    done = images.find([tmp_path / "out"])
    assert 0 < len(done) < len(names)
    assert all(images.read(path).pixels.shape == (1, 3, 200, 200) for path in done)
    if blow == signal.SIGINT:
        assert process.returncode == 130
        assert "--skip-existing goes on" in error
        assert tree(tmp_path / "out") == names[: len(done)]
    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--skip-existing") == 0
    assert [path.name for path in images.find([tmp_path / "out"])] == names
    assert {path: path.stat().st_mtime_ns for path in done} == stamps


def test_a_sheet_shows_every_image(restore: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    picture("in/a.png", 40, 50), picture("in/b.png", 300, 20)
    assert restore(tmp_path / "in", "--sheet", tmp_path / "sheet.png") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 2 * 240
        assert sheet.width > 3 * 240 * 50 / 40
    (tmp_path / "in" / "a.png").write_bytes(b"")
    assert restore(tmp_path / "in", "--sheet", tmp_path / "rest.png") == 1  # the other one is shown all the same
    assert (tmp_path / "rest.png").exists()


def test_a_sheet_of_a_resumed_run_is_that_of_one_run(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "deep/bb.png", "c.png"):
        picture(f"in/{name}", 40, 50)
    whole, again = tmp_path / "whole.png", tmp_path / "again.png"
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--guidance-out", tmp_path / "maps", "--skip-existing"]
    assert restore(*arguments, "--sheet", whole) == 0
    for gone in (["c.png"], ["deep/bb.png", "a.png"], []):
        for name in gone:
            (tmp_path / "out" / name).unlink()
        assert restore(*arguments, "--sheet", again) == 0
        first, second = (images.read(path).pixels for path in (whole, again))
        assert torch.allclose(first, second, atol=1.01 / 255)
    (tmp_path / "maps" / "c.png").unlink()
    assert restore(*arguments, "--sheet", again) == 0  # its place stays blank
    assert images.read(again).pixels.shape == first.shape
    (tmp_path / "out" / "c.png").write_text("damaged")
    assert restore(*arguments, "--sheet", again) == 1
    assert f"{tmp_path / 'out' / 'c.png'}: " in capsys.readouterr().err
    assert restore(*arguments) == 0  # without a sheet nobody looks


def test_a_sheet_of_many_pictures_fits_into_every_format(
    restore: Callable[..., int], picture: Maker, tmp_path: Path
) -> None:
    for number in range(67):  # in one stack they would be higher than a WebP can be
        picture(f"in/{number:02}.png", 4, 4)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.webp") == 0
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert max(sheet.size) <= LONGEST
        assert sheet.width > 3 * (3 * 240)  # three stacks of before, map, after


def test_what_waits_for_its_sheet_is_kept_in_bytes() -> None:
    photo = torch.rand(1, 3, 400, 600, generator=torch.Generator().manual_seed(0))
    kept = small(photo)
    assert (kept.dtype, kept.shape) == (torch.uint8, (1, 3, 240, 360))
    assert torch.allclose(contact_sheet(["a"], [[kept]]), contact_sheet(["a"], [[photo]]), atol=0.51 / 255)


@pytest.mark.parametrize(
    ("longest", "size", "centres"),  # of rows that are 30 high, 36 with their gap
    [
        (500, (208, 42), [(43, 21), (79, 21), (115, 21), (151, 21), (187, 21)]),
        (140, (136, 84), [(43, 21), (79, 21), (115, 21), (43, 63), (79, 63)]),
        (110, (88, 108), [(40, 18), (70, 18), (40, 54), (70, 54), (40, 90)]),  # 24 high, or they were too wide
    ],
)
def test_the_rows_of_a_sheet_go_on_beside_the_first_ones(
    longest: int, size: tuple[int, int], centres: list[tuple[int, int]]
) -> None:
    shades = [0.1, 0.3, 0.5, 0.7, 0.9]
    sheet = contact_sheet(["a"], [[torch.full((1, 1, 30, 30), shade)] for shade in shades], height=30, longest=longest)
    assert sheet.shape[2:] == size
    assert [float(sheet[0, 0, y, x]) for y, x in centres] == pytest.approx(shades)


def test_a_picture_that_may_not_be_read_stops_no_run(
    restore: Callable[..., int],
    picture: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture("in/a.png"), picture("in/b.png")

    def guarded(path: Any, *arguments: Any) -> Any:
        if str(path).endswith("a.png"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open(path, *arguments)

    monkeypatch.setattr("twofold.images.reading.open", guarded, raising=False)
    assert restore(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "a.png: may not be read; change its permissions" in capsys.readouterr().err
    assert tree(tmp_path / "out") == ["b.png"]


def test_a_sheet_that_cannot_be_written_costs_no_report(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("a file")
    sheet = tmp_path / "notes" / "sheet.png"
    assert restore(picture("a.png"), "-o", tmp_path / "b.png", "--sheet", sheet, "--json") == 1
    told = capsys.readouterr()
    assert [facts["output"] for facts in json.loads(told.out)["done"]] == [str(tmp_path / "b.png")]
    assert told.err.startswith(f"twofold: {tmp_path / 'notes'}: cannot be made")


def test_a_warning_names_the_other_frames_of_an_animation(
    restore: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (12, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    picture("still.png")
    told = f"twofold: {tmp_path / 'moving.webp'}: only the first of 3 frames\n"
    asked = [str(tmp_path / "moving.webp"), str(tmp_path / "still.png"), "--json", "-o", str(tmp_path / "out")]
    for verb in (restore, lambda *more: run_command_line(["degrade", "--kind", "noise", *more])):
        assert verb(*asked) == 0
        report = capsys.readouterr()
        assert [facts.get("frames") for facts in json.loads(report.out)["done"]] == [3, None]
        assert report.err == told
