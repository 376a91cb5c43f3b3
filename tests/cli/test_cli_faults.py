"""The command line where something goes wrong: exit codes, errors as JSON, signals, two processes, damaged files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold import evaluate as evaluation
from twofold.cli.app import VERBS, run_command_line
from twofold.cli.completion import bash_script, fish_script, verb_options
from twofold.cli.options import model_names
from twofold.files import locked

Maker = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["degrade", "nowhere.png", "-k", "noise"], 1, "ImageError"),
        (["degrade", "nowhere.png", "-k", "noisy"], 2, "Misuse"),
        (["degrade", "nowhere.png", "-k", "noise", "--wrong"], 2, "Misuse"),
        (["degrade"], 2, "Misuse"),
        (["models", "derian"], 2, "Misuse"),
        (["restore", "nowhere.png", "-m", "derain"], 1, "ImageError"),
        (["audit", "nowhere"], 1, "ConfigError"),
        (["evaluate", "--data", "nowhere", "-m", "derain"], 1, "DataError"),
        (["train", "search-lowlight"], 2, "Misuse"),
        (["search", "derain"], 2, "Misuse"),
        (["train", "derian"], 1, "ConfigError"),
        (["train", "derain", "--device", "meta"], 2, "Misuse"),
        (["search", "search-lowlight", "--device", "cuda:99"], 2, "Misuse"),
        (["nonsense"], 2, "Misuse"),
    ],
)
def test_an_error_is_one_line_and_with_json_an_object_on_standard_output(
    arguments: list[str], code: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command_line([*arguments, "--json"]) == code
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert error["kind"] == kind
    assert said.err == f"twofold: {error['message']}\n"
    assert list(tmp_path.iterdir()) == []


def test_help_is_asked_for_in_every_usual_way(capsys: Captured) -> None:
    for asked in (["models", "-h"], ["models", "--help"], ["help", "models"]):
        assert run_command_line(asked) == 0
        assert "twofold models --json prints the whole cards" in " ".join(capsys.readouterr().out.split())
    assert run_command_line(["help", "modles"]) == 2
    assert "did you mean 'models'" in capsys.readouterr().err
    assert run_command_line(["help"]) == 0
    assert "Exit codes: 0 done" in capsys.readouterr().out


def test_help_does_not_run_across_a_wide_terminal() -> None:
    code = "from twofold.cli.app import run_command_line; run_command_line(['models', '-h'])"
    environment = {**os.environ, "COLUMNS": "400"}
    environment.pop("TERMINAL_WIDTH", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_the_help_of_restore_names_the_models(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command_line(["restore", "--help"]) == 0
    printed = "".join(capsys.readouterr().out.replace("│", "").split())
    assert ",".join(model_names()) in printed


def test_one_model_is_shown_with_everything(capsys: Captured) -> None:
    name = "derain"
    assert run_command_line(["models", name]) == 0
    printed = capsys.readouterr().out
    assert "training data: " in printed
    assert "made by: " in printed
    assert run_command_line(["models", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name


def test_recipes_are_listed_with_what_they_are_for(capsys: Captured) -> None:
    for verb in ("train", "search"):
        assert run_command_line([verb, "list", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)
        assert all(recipe["about"] for recipe in listed)
        assert run_command_line([verb, "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(maxsplit=1) for line in lines] == [[recipe["name"], recipe["about"]] for recipe in listed]


def test_completion_knows_every_verb_and_option(capsys: Captured, tmp_path: Path) -> None:
    options = verb_options()
    assert list(options) == list(VERBS)
    assert {"--model", "--quality", "-o", "--no-recursive"} <= set(options["restore"])
    assert all(name in fish_script() for name in ("-l quality", *VERBS, *model_names()))
    script = tmp_path / "twofold.bash"
    script.write_text(bash_script())

    def completed(*words: str) -> list[str]:
        given = " ".join(f"'{word}'" for word in words)
        code = f". {script}; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _twofold; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert completed("twofold", "res") == ["restore"]
    assert completed("twofold", "restore", "--qua") == ["--quality"]
    assert completed("twofold", "restore", "a.png", "--model", "dera") == ["derain"]
    for shell in ("bash", "zsh", "fish"):
        assert run_command_line(["completion", shell]) == 0
        assert "twofold" in capsys.readouterr().out
    assert run_command_line(["completion", "csh"]) == 2


def test_sigterm_ends_a_run_as_ctrl_c_does(
    picture: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from twofold import metrics

    picture("in/a.png"), picture("in/b.png")
    really = metrics.psnr

    def terminated(*arguments: object) -> object:
        if (tmp_path / "out" / "a.png").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return really(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(metrics, "psnr", terminated)
    asked = ["degrade", "-k", "noise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--json"]
    assert run_command_line(asked) == 130
    report = json.loads(capsys.readouterr().out)
    assert (len(report["done"]), report["stopped"]) == (1, "interrupted")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_second_is_no_traceback(blow: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "twofold", "degrade", "-k", "noise", "-", "-o", str(tmp_path / "b.png")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # it waits for its input and so cannot end before
        maps = Path(f"/proc/{process.pid}/maps")
        while "libtorch" not in maps.read_text():  # torch is being imported
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(blow)
        error = process.communicate()[1]
    assert "Traceback" not in error
    assert process.returncode in (130, -blow)


def test_a_run_folder_is_for_one_process(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "run"
    with locked(folder):
        asked = ["train", "derain", "--data", str(tmp_path), "-o", str(folder), "--device", "cpu"]
        assert run_command_line(asked) == 1
    assert f"{folder}: process {os.getpid()} works in this folder" in capsys.readouterr().err


def test_a_failed_start_leaves_the_folder_to_a_corrected_one(tmp_path: Path, capsys: Captured) -> None:
    for recipe in ("derain", "search-lowlight", "judge-lowlight"):
        verb = "search" if recipe.startswith("search") else "train"
        folder = tmp_path / "runs" / recipe
        asked = [verb, recipe, "--data", str(tmp_path), "-o", str(folder), "--device", "cpu"]
        assert run_command_line(asked) == 1
        assert run_command_line([*asked, "--set", "seed=3"]) == 1
        assert "another recipe" not in capsys.readouterr().err
        assert not (folder / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "..", "a/b"])
def test_the_name_of_a_recipe_is_no_path(name: str, tmp_path: Path, capsys: Captured) -> None:
    assert (
        run_command_line(["train", "derain", "--data", str(tmp_path), "--set", f"name={name}", "--device", "cpu"]) == 1
    )
    assert "is no name of a folder" in capsys.readouterr().err


def test_a_crop_that_the_network_cannot_take_is_one_line(picture: Maker, tmp_path: Path, capsys: Captured) -> None:
    for number in range(2):
        picture(f"photos/{number}.png", 40, 40)
    for crop in (1, 7, 9):
        change = [f"data.crop={crop}", "data.batch=2", "data.validation={}", "data.guidance=null"]
        change.append("data.train=[{kind: synthetic, clean: [{path: photos}], degradation: {kind: streaks}}]")
        words = [word for each in change for word in ("--set", each)]
        asked = ["train", "derain", "--data", str(tmp_path), "-o", str(tmp_path / "run"), "--device", "cpu", *words]
        assert run_command_line(asked) == 1
        error = capsys.readouterr().err
        assert "data.crop: the network cannot take crops of" in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_table_that_is_interrupted_is_of_what_was_measured(
    plain_model: Path, picture: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for name in "abcd":
        picture(f"rain/{name}.png", 24, 24), picture(f"clean/{name}.png", 24, 24)
    really, calls = evaluation._row, []

    def interrupted(*arguments: object) -> object:
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return really(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "_row", interrupted)
    asked = ["evaluate", "-m", str(plain_model), "--data", str(tmp_path), "--observed", "rain", "--clean", "clean"]
    table = tmp_path / "table.md"
    assert run_command_line([*asked, "--json", "-o", str(table)]) == 130
    said = capsys.readouterr()
    assert [row["name"] for row in json.loads(said.out)["images"]] == ["a", "b"]
    assert "| b |" in table.read_text()
    assert "the table is of the first 2 of 4 pairs" in said.err


def test_names_of_files_cannot_break_a_table() -> None:
    from twofold.metrics import PROTOCOLS

    row = evaluation.Row("a|b\nc\x1b[2J", 30.0, 0.9, 20.0, 0.8, 0.1)
    text = evaluation.Evaluation("m", "", PROTOCOLS["rgb"], (row,), (), ()).to_markdown()
    assert "| a\\|b\\nc\\x1b[2J | 30.00 |" in text


def test_names_of_sets_cannot_break_the_progress_of_a_training(capsys: Captured) -> None:
    from twofold.cli.search import Live
    from twofold.cli.train import Bar

    for bar in (Bar(), Live("[/x]")):
        bar.step(1, 1, {"[/x]": 1.0}, 1.0)
        bar.validated(1, {"[/x]/psnr": 30.0})
        assert "[/x]/psnr 30.000" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/proc/demo", "file/demo"])
def test_a_demonstration_that_cannot_be_written_fails_before_its_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from twofold import demo

    (tmp_path / "file").touch()
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: pytest.fail("it began"))
    assert run_command_line(["demo", "-o", str(tmp_path / place), "--seconds", "0"]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_without_docstrings_everything_still_runs() -> None:
    code = "import sys; from twofold.cli.app import run_command_line; sys.exit(run_command_line(['models', '--help']))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("seed=100000000000000000000000", "seed: "),
        ("seed=-1", "seed: "),
        ("model.net.widths=[0,0]", "model"),
        ("name=" + "[" * 2000, "name"),
        ("seed=2026-99-99", "seed"),
    ],
    ids=lambda text: text[:20],
)
def test_settings_that_no_training_can_use_are_one_line(
    change: str, reason: str, picture: Maker, tmp_path: Path, capsys: Captured
) -> None:
    asked = ["train", "derain", "--data", str(tmp_path), "-o", str(tmp_path / "run"), "--device", "cpu"]
    assert run_command_line([*asked, "--set", change]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) == 1


def test_a_recipe_that_is_too_deep_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000)
    assert run_command_line(["train", str(tmp_path / "deep.yaml")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_damaged_best_json_is_replaced(tmp_path: Path) -> None:
    from twofold.train.run import keep_best

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for content in ("", "[]", '{"psnr": "x"}'):
        (tmp_path / "best.json").write_text(content)
        keep_best(tmp_path, 7, {"a/psnr": 30.0})
        assert json.loads((tmp_path / "best.json").read_text())["psnr"] == 30.0
