"""Visits: one folder each, gone at the end, and not to be reached by guessing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ui_stubs import picture

from twofold.contracts import TwofoldError
from twofold.ui import visits as module
from twofold.ui import work
from twofold.ui.visits import Limits, Visits


@pytest.fixture
def visits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Visits:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Visits(Limits(megabytes=1, photographs=3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    picture().save(path)
    return path


def test_a_visit_is_found_again_and_ends_with_its_files(visits: Visits, file: Path) -> None:
    visit = visits.of("one")
    assert visits.of("one") is visit
    photo = work.receive(visit, file, "a.png", visits.limits)
    (visits.uploads / "left").mkdir()
    (visits.uploads / "left" / "over.png").write_bytes(b"x")
    assert photo.upload.read_bytes() == file.read_bytes()
    other = visits.of("two")
    visits.end("one")
    assert not visit.folder.exists()
    assert visit.stop.is_set(), "what still runs for it must stop"
    assert other.folder.exists()
    assert list(visits.uploads.iterdir()), "somebody may still need an upload"
    visits.end("two")
    assert not list(visits.uploads.iterdir())
    visits.end("never begun")


def test_nothing_is_left_when_the_server_closes(visits: Visits, file: Path) -> None:
    work.receive(visits.of("one"), file, "a.png", visits.limits)
    visits.close()
    assert not visits.root.exists()
    visits.close()


def test_nobody_else_may_enter_the_folder(visits: Visits) -> None:
    assert visits.root.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", ".", "1/../../other", "a\\..\\b"])
def test_only_files_of_the_visit_are_handed_out(visits: Visits, file: Path, name: str) -> None:
    visit = visits.of("one")
    work.receive(visit, file, "a.png", visits.limits)
    assert visits.file(visit.token, "1/thumb.jpg") is not None
    assert visits.file(visit.token, name) is None
    assert visits.file("guessed", "1/thumb.jpg") is None
    assert visits.file("", "1/thumb.jpg") is None


def test_a_link_out_of_the_visit_is_not_followed(visits: Visits) -> None:
    visit = visits.of("one")
    (visit.folder / "link").symlink_to("/etc/hostname")
    assert visits.file(visit.token, "link") is None


def test_visits_without_a_word_end_when_the_next_begins(visits: Visits) -> None:
    visit = visits.of("silent")
    visit.seen -= module.IDLE + 1
    visits.of("next")
    assert not visit.folder.exists()
    assert len(visits) == 1


def test_a_full_share_of_the_disk_is_refused(visits: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    visits.check_room()
    monkeypatch.setattr(visits, "limits", Limits(gigabytes=0))
    (visits.uploads / "a").write_bytes(b"x")
    with pytest.raises(TwofoldError, match="its limit"):
        visits.check_room()


@pytest.mark.skipif(os.name != "posix", reason="processes are asked for by number on POSIX alone")
def test_what_a_killed_server_left_goes_with_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    abandoned = tmp_path / f"twofold-ui-{int(dead.stdout)}-abc"
    running = tmp_path / f"twofold-ui-{os.getpid()}-abc"
    strange = tmp_path / "twofold-ui-mine-abc"
    for folder in (abandoned, running, strange):
        folder.mkdir()
    Visits(Limits())
    assert not abandoned.exists()
    assert running.exists()
    assert strange.exists()
