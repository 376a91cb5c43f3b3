"""`twofold export` and `twofold import`: what cannot be meant is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from twofold.cli.app import run_command_line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["export", "x.onnx", "-m", "derain", "--format", "caffe"], "unknown format 'caffe'"),
        (["export", "x.onnx", "-m", "derain", "--precision", "int4"], "unknown precision 'int4'"),
        (["export", "", "-m", "derain"], "OUT is empty"),
        (["import", "a.pth", "b.pth"], "weights are kept as .safetensors"),
        (["import", "", "b.safetensors"], "SOURCE is empty"),
        (["import", "b.safetensors", "b.safetensors"], "would replace the checkpoint"),
    ],
)
def test_misuse_is_reported_in_one_line(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command_line(arguments) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["export", "x.bin", "-m", "derain"], "the suffix says no format"),
        (["export", "x.pt2", "-m", "derain", "--precision", "int8"], "torch.export keeps float32"),
        (["export", "hf://nobody", "-m", "derain"], "write hf://user/name"),
        (["import", "missing.pth", "out.safetensors"], "no file at missing.pth"),
    ],
)
def test_errors_say_what_to_do_and_nothing_is_written(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command_line(arguments) == 1
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_replaced_by_its_export(
    guided_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = guided_model.read_bytes()
    assert run_command_line(["export", str(guided_model), "-m", str(guided_model)]) == 2
    assert "would replace the model itself" in capsys.readouterr().err
    assert guided_model.read_bytes() == before
