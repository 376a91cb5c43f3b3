"""Files appear whole or not at all."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from twofold.contracts import TwofoldError
from twofold.files import locked, remove_orphans, replacing, write_text


@pytest.mark.parametrize("name", ["a" * 255, "\N{CJK UNIFIED IDEOGRAPH-96E8}" * 83 + ".png"])  # 255 and 253 bytes
def test_a_name_as_long_as_may_be_can_be_written(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "whole")
    assert (tmp_path / name).read_text() == "whole"


def test_an_error_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "former")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        interrupted()
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from twofold.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=False)
    (orphan,) = tmp_path.iterdir()
    assert orphan.name.startswith(".a.png.")
    (tmp_path / ".hidden").touch()
    with replacing(tmp_path / "b.png") as temporary:
        temporary.write_text("whole")
        assert remove_orphans(tmp_path) == [orphan]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "b.png"]


def test_a_temporary_file_that_is_lost_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, calls = tempfile.mkstemp, []

    def removed_at_once(**options: Any) -> tuple[int, str]:
        handle, name = really(**options)
        if not calls:
            Path(name).unlink()
        calls.append(name)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", removed_at_once)
    write_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert len(calls) == 2


def test_a_folder_is_for_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from twofold.files import locked\nwith locked(Path(sys.argv[1])): pass"
    )

    def second() -> str:
        command = [sys.executable, "-c", code, str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    with locked(folder):
        assert f"{folder}: process {os.getpid()} works in this folder" in second()
        (folder / "kept").touch()
    assert second() == ""
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_folder_that_stayed_empty_is_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(TwofoldError, match="cannot write"), locked(tmp_path / "file"):
        pass
