"""`twofold audit`: faults of pairs and shared scenes, as text, as JSON and as an exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold.cli.app import run_command_line

Maker = Callable[..., Path]


@pytest.fixture
def pairs(picture: Maker, tmp_path: Path) -> Path:
    """Three sound pairs: different pictures, each its own partner."""
    for n in range(3):
        clean = picture(f"set/gt/{'x' * (n + 1)}.png", 40, 40 + n)
        (tmp_path / "set" / "input").mkdir(exist_ok=True)
        shutil.copy(clean, tmp_path / "set" / "input" / clean.name)
    return tmp_path / "set"


def test_sound_pairs_have_no_findings(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["audit", str(pairs)]) == 0
    assert capsys.readouterr().out == "0 findings\n"


def test_a_broken_file_and_a_shared_scene_are_named_with_exit_code_3(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held"
    shutil.copytree(pairs, held)
    for name in ("x.png", "xx.png"):
        (held / "gt" / name).unlink()
        (held / "input" / name).unlink()
    for folder in ("gt", "input"):
        (held / folder / "xxx.png").rename(held / folder / "other.png")
    (pairs / "input" / "x.png").write_bytes(b"")
    assert run_command_line(["audit", str(pairs), "--test", str(held), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in found] == ["unreadable", "same scene"]
    assert found[0]["detail"].startswith("the file is empty")
    assert {Path(file).name for file in found[1]["files"]} == {"xxx.png", "other.png"}
    assert run_command_line(["audit", str(pairs), "--test", str(held)]) == 3
    printed = capsys.readouterr().out
    assert printed.endswith("2 findings\n")
    assert printed.splitlines()[0].count("x.png") == 1


def test_a_folder_that_is_not_there_is_named(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nowhere"
    for arguments in ([missing], [pairs, "--test", missing]):
        assert run_command_line(["audit", *map(str, arguments)]) == 1
        assert capsys.readouterr().err == f"twofold: {missing}: no such folder; name one that holds pairs\n"


def test_single_photographs_are_compared_by_scene(
    picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = picture("train/a.png", 40, 50)
    picture("train/bb.png", 40, 50)
    (tmp_path / "test").mkdir()
    shutil.copy(shown, tmp_path / "test" / "z.png")
    asked = ["audit", str(tmp_path / "train"), "--photographs"]
    assert run_command_line([*asked, "--test", str(tmp_path / "test")]) == 3
    assert "same scene" in capsys.readouterr().out


def test_photographs_are_not_compared_with_an_empty_folder(
    picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, empty = picture("train/a.png").parent, tmp_path / "empty"
    empty.mkdir()
    (empty / "a.nef").write_bytes(b"of a format that is not read")
    for first, second in ((full, empty), (empty, full)):
        assert run_command_line(["audit", str(first), "--photographs", "--test", str(second)]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith(f"twofold: no images in {empty}; known suffixes")
