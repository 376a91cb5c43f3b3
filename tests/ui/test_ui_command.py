"""`twofold ui` before any page is served."""

from __future__ import annotations

import importlib.util
import inspect
from importlib import import_module

import pytest

from twofold.cli.app import run_command_line


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest)
    )
    assert run_command_line(["ui"]) == 1
    said = capsys.readouterr().err
    assert said == "twofold: the web page needs gradio, which is not installed; pip install 'twofold[ui]'\n"


@pytest.mark.parametrize("options", [["--port", "70000"], ["--max-photographs", "0"], ["--share"]])
def test_settings_that_make_no_sense_are_misuse(options: list[str]) -> None:
    assert run_command_line(["ui", *options]) == 2


def test_the_page_is_private_unless_asked_for() -> None:
    parameters = inspect.signature(import_module("twofold.cli.ui").command).parameters
    assert parameters["host"].default == "127.0.0.1"
    assert "share" not in parameters
