"""The command line itself: cheap where it only talks, one line where it was misused."""

from __future__ import annotations

import subprocess
import sys

import pytest

import twofold
from twofold.cli.app import VERBS, module_of, run_command_line


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_the_standard_library_alone(option: str) -> None:
    """What they cost is what they import; a module of another package can cost a second."""
    code = (
        "import atexit, sys; before = set(sys.modules)\n"
        "atexit.register(lambda: print(*{name.partition('.')[0] for name in set(sys.modules) - before}))\n"
        f"from twofold.__main__ import main; sys.argv[1:] = ['{option}']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "twofold" in loaded
    assert loaded <= {"twofold", *sys.stdlib_module_names}


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--version"]) == 0
    assert capsys.readouterr().out == f"twofold {twofold.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_listed_and_its_help_teaches_by_an_example(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert run_command_line(["--help"]) == 0
    assert f"  {verb} " in capsys.readouterr().out
    assert run_command_line([verb, "--help"]) == 0
    assert any(line.strip().startswith(f"twofold {verb}") for line in capsys.readouterr().out.splitlines())
    assert callable(module_of(verb).command)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["resotre", "a.png"], "did you mean 'restore'"),
        (["42"], "unknown verb '42'"),
        (["restore", "a.png", "--modle", "x"], "--model"),
        (["restore"], "INPUT"),
        (["restore", "a.png"], "--model"),
        (["evaluate", "--data", ".", "--model", "m", "--every", "0"], "--every"),
        (["evaluate", "--data", ".", "--model", "m", "--protocol", "y-matlap"], "did you mean 'y-matlab'"),
        (["restore", "a.png", "-m", "m", "--tile", "x"], "--tile takes auto or a number"),
        (["restore", "a.png", "-m", "m", "--format", "gif"], "unknown format 'gif'"),
        (["restore", "a.png", "-m", "m", "-o", "b.gif"], "cannot write b.gif; known suffixes"),
        (["restore", "a.png", "-m", "m", "--kernel-size", "7"], "--kernel-size is for --kernel estimate"),
        (["restore", "a.png", "-m", "m", "--noise-level", "0.1", "--guidance", "0.1"], "leave one of them out"),
        (["degrade", "a.png", "-k", "rian"], "did you mean 'rain'"),
        (["degrade", "a.png", "-k", "rain", "--level", "0.1"], "rain has no level"),
        (["degrade", "a.png", "-k", "noise", "--level", "15"], "15 grey levels are 0.0588"),
        (["audit", "a", "--test-clean", "gt"], "name that folder too"),
        (["audit", "a", "--photographs"], "name the second with --test"),
        (["audit", "a", "--photographs", "--test", "b", "--clean", "gt"], "leave the options of sub-folders out"),
    ],
)
def test_misuse_is_explained_and_exits_with_two(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(arguments) == 2
    assert reason in capsys.readouterr().err


def test_no_arguments_show_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([]) == 2
    assert "twofold restore rainy.jpg" in capsys.readouterr().out


def test_the_cards_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from twofold import zoo

    assert run_command_line(["models", "--json"]) == 0
    assert [card["name"] for card in json.loads(capsys.readouterr().out)] == list(zoo.cards())
    assert run_command_line(["models"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in zoo.cards())
