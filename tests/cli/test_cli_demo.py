"""The demonstration, with an untrained model in place of the shipped ones and seconds in place of a minute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import twofold
from twofold import demo, images
from twofold.cli.app import run_command_line
from twofold.degrade.additive import RainStreaks


@pytest.fixture(autouse=True)
def small_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = demo.photograph
    monkeypatch.setattr(demo, "photograph", lambda name: whole(name)[..., 100:180, 100:196])


def test_a_scene_is_degraded_restored_and_shown(guided_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    scenes = [demo.Scene(*facts, RainStreaks()) for facts in (("coffee", str(guided_model)), ("chelsea", "nope"))]
    (shown,) = demo.run_demo(tmp_path / "demo", said.append, scenes=scenes)
    names = ["coffee-guided-restored.png", "coffee-guided.png", "index.html", "sheet.png"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == names
    assert "chelsea-nope is left out: unknown model 'nope'" in said[0]
    assert f"{shown.before:.2f}" in said[1]
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert torch.allclose(images.read(tmp_path / "demo" / "coffee-guided.png").pixels, shown.sample.observed, atol=1e-6)


def test_seconds_of_training_on_the_photographs_lower_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SCENES", ())
    monkeypatch.setattr(demo, "_seconds_a_step", lambda scheme, batches: 0.05)
    assert run_command_line(["demo", "--output", str(tmp_path), "--seconds", "1.25"]) == 0
    told = capsys.readouterr().out
    assert "25 steps" in told
    found = re.search(r"restoration loss +([0-9.]+) → ([0-9.]+)", told)
    assert found is not None
    assert float(found[2]) < float(found[1])
    restored = twofold.restore(demo.photograph("coffee"), tmp_path / "trained.safetensors")
    assert restored.image.shape == (1, 3, 80, 96)


def test_a_demonstration_without_its_models_says_so_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SCENES", (demo.Scene("coffee", "nope", RainStreaks()),))
    assert run_command_line(["demo", "--output", str(tmp_path / "demo"), "--seconds", "0"]) == 1
    assert "coffee-nope is left out" in capsys.readouterr().out
    assert not (tmp_path / "demo").exists()
