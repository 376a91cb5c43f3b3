"""A manifest keeps a split, and cannot lead out of its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold.contracts import DataError
from twofold.data.manifest import read_manifest, write_manifest
from twofold.data.pairs import Pair

Maker = Callable[..., Path]


def test_a_manifest_brings_the_same_pairs_back(picture: Maker, tmp_path: Path) -> None:
    pair = Pair(picture("in/a.png"), picture("gt/a.png"), "a", {"beta": 0.1})
    write_manifest(tmp_path / "m.json", [pair], root=tmp_path)
    assert read_manifest(tmp_path / "m.json", root=tmp_path) == [pair]
    picture("gt/a.png", 5, 5)
    with pytest.raises(DataError, match="1 of 2 pictures are missing or differ"):
        read_manifest(tmp_path / "m.json", root=tmp_path)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "a/../../b.png", "C:\\b.png"])
def test_a_manifest_names_no_file_outside_its_folder(name: str, picture: Maker, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.json", [Pair(picture("a.png"), picture("b.png"), "a")], root=tmp_path)
    content = json.loads((tmp_path / "m.json").read_text())
    content["pairs"][0]["clean"][0] = name
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="names files outside its folder"):
        read_manifest(tmp_path / "m.json", root=tmp_path)
