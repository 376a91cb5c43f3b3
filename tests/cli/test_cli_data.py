"""`twofold train` and `twofold evaluate`: mistakes in recipes and folders are named before anything is computed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from twofold import zoo
from twofold.cli.app import run_command_line
from twofold.train.learner import Diverged

Maker = Callable[..., Path]


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ("data.bacth=4", ["data.bacth", "did you mean 'batch'?"]),
        ("step=100", ["step", "did you mean 'steps'?"]),
        ("model.net.widhts=[8]", ["model.net.widhts", "did you mean 'widths'?"]),
        ("steps=many", ["steps: ", "integer, got 'many'"]),
        ("data.crop=1.5", ["data.crop: ", "integer, got 1.5"]),
        ("scheme.kind=magic", ["scheme", "magic", "guided"]),
        ("loss.l3=1", ["loss", "l3"]),
        ("seed.first=1", ["'seed' is not a group of settings"]),
        ("steps", ["key.path=value"]),
    ],
)
def test_a_wrong_key_or_value_in_a_recipe_is_named_with_its_path(
    change: str, reasons: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["train", "derain", "--show", "--set", change]) == 1
    error = capsys.readouterr().err
    assert all(reason in error for reason in reasons)
    assert len(error.splitlines()) == 1


def test_recipes_are_listed_and_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["train", "list"]) == 0
    assert "derain" in [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert run_command_line(["train", "derain", "--show", "--set", "data.batch=4"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["batch"] == 4
    assert run_command_line(["train", "derian"]) == 1
    assert "did you mean 'derain'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1\n", None])
def test_a_recipe_file_that_is_none_is_one_line(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
    assert run_command_line(["train", str(tmp_path / "mine.yaml")]) == 1
    error = capsys.readouterr().err
    assert "mine.yaml" in error
    assert len(error.splitlines()) == 1


def test_training_without_its_data_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command_line(
            ["train", "derain", "--data", str(tmp_path), "--output", str(tmp_path / "run"), "--device", "cpu"]
        )
        == 1
    )
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "recipe", "runner"),
    [("train", "derain", "train.run.train"), ("search", "search-lowlight", "search.run.search")],
)
def test_a_loss_that_is_no_number_any_more_is_one_line(
    verb: str,
    recipe: str,
    runner: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def diverging(*_: object, **__: object) -> None:
        raise Diverged("the training loss became nan; train again with a lower learning_rate")

    monkeypatch.setattr(f"twofold.{runner}", diverging)
    judge = ["--judge", str(tmp_path / "judge.safetensors")] if verb == "search" else []
    assert run_command_line([verb, recipe, "--output", str(tmp_path / "run"), *judge]) == 1
    error = capsys.readouterr().err
    assert error == "twofold: the training loss became nan; train again with a lower learning_rate\n"


@pytest.fixture
def evaluate(plain_model: Path, tmp_path: Path) -> Callable[..., int]:
    sides = ["--observed", "rain", "--clean", "clean"]
    return lambda *more: run_command_line(
        ["evaluate", "--model", str(plain_model), "--data", str(tmp_path), *sides, *map(str, more)]
    )


def test_a_model_is_measured_on_pairs(
    evaluate: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        picture(f"rain/{name}.png", 24, 24), picture(f"clean/{name}.png", 24, 24)
    assert evaluate("-o", tmp_path / "out" / "facts.json", "-o", tmp_path / "table.md", "--every", 2) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == printed
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert facts["summary"]["pictures"] == 2
    assert f"{facts['summary']['psnr']:.2f}" in printed


def test_pictures_are_scored_as_they_are_without_a_model(picture: Maker, tmp_path: Path) -> None:
    picture("rain/a.png", 24, 24), picture("clean/a.png", 24, 20)
    picture("clean/a.png", 24, 24).write_bytes(picture("other.png", 24, 24).read_bytes())
    sides = ["--data", str(tmp_path), "--observed", "rain", "--clean", "clean", "-o", str(tmp_path / "facts.json")]
    assert run_command_line(["evaluate", "--model", "none", *sides]) == 0
    (row,) = json.loads((tmp_path / "facts.json").read_text())["images"]
    assert row["psnr"] == row["input_psnr"]
    assert row["ssim"] == row["input_ssim"]


@pytest.fixture
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that ships grey-world alone."""
    card = zoo.cards()["grey-world"]
    monkeypatch.setattr(zoo, "cards", lambda: {"grey-world": card})


@pytest.mark.usefixtures("one_model")
def test_all_models_are_measured_on_the_sets_of_their_recipes(
    picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        for folder in ("EUVP_dark/trainA", "EUVP_dark/trainB", "UIEB6/input", "UIEB6/target"):
            picture(f"underwater/{folder}/{name}.png", 24, 24)
    out = tmp_path / "models.json"
    assert run_command_line(["evaluate", "--all", "--data", str(tmp_path), "-o", str(out)]) == 0
    results = json.loads(out.read_text())["evaluations"]
    assert [(row["model"], row["set"], row["summary"]["pictures"]) for row in results] == [
        ("grey-world", "euvp", 1),  # every fifth scene is held out
        ("grey-world", "uieb", 2),
    ]
    printed = capsys.readouterr().out
    assert all(f"| {row['model']} | {row['set']} |" in printed for row in results)


@pytest.mark.usefixtures("one_model")
def test_a_missing_set_is_named_and_the_exit_code_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["evaluate", "--all", "--data", str(tmp_path)]) == 1
    assert "grey-world: " in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--model", "derain"], ["--every", "2"], ["--observed", "rain"]])
def test_options_of_one_model_are_refused_with_all(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["evaluate", "--all", "--data", str(tmp_path), *more]) == 2
    assert "--all takes sets and protocols from the recipes" in capsys.readouterr().err
    assert run_command_line(["evaluate", "--data", str(tmp_path)]) == 2
    assert "--model" in capsys.readouterr().err


def test_a_part_of_the_pairs_is_whole_scenes(evaluate: Callable[..., int], picture: Maker, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        picture(f"clean/{name}.png", 24, 24)
        for number in (1, 2, 3):
            picture(f"rain/{name}_{number}.png", 24, 24)
    assert evaluate("-o", tmp_path / "facts.json", "--every", 3) == 0
    measured = [row["name"] for row in json.loads((tmp_path / "facts.json").read_text())["images"]]
    assert measured == ["a_1", "a_2", "a_3", "d_1", "d_2", "d_3"]


def test_a_name_that_is_not_unicode_is_escaped_in_a_table(
    evaluate: Callable[..., int], picture: Maker, tmp_path: Path
) -> None:
    for side in ("rain", "clean"):
        os.rename(picture(f"{side}/a.png", 24, 24), os.fsencode(tmp_path / side) + b"/caf\xe9.png")
    assert evaluate("-o", tmp_path / "facts.json", "-o", tmp_path / "table.md") == 0
    (row,) = json.loads((tmp_path / "facts.json").read_text())["images"]
    assert os.fsencode(row["name"]) == b"caf\xe9"
    assert "caf\\udce9" in (tmp_path / "table.md").read_text()


def test_a_table_that_cannot_be_written_costs_no_report(
    evaluate: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("rain/a.png", 24, 24), picture("clean/a.png", 24, 24)
    (tmp_path / "notes").write_text("a file")
    assert evaluate("-o", tmp_path / "notes" / "facts.json") == 1
    told = capsys.readouterr()
    assert "| a |" in told.out
    assert "cannot write" in told.err


def test_a_broken_pair_costs_only_itself(
    evaluate: Callable[..., int], picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        picture(f"rain/{name}.png", 24, 24), picture(f"clean/{name}.png", 24, 24)
    (tmp_path / "rain" / "b.png").write_bytes(b"")
    assert evaluate() == 1
    told = capsys.readouterr()
    assert "| a" in told.out
    assert "twofold: b: " in told.err


def test_an_empty_folder_of_pairs_is_named(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate() == 1
    assert f"{tmp_path / 'rain'}: no such folder" in capsys.readouterr().err
    (tmp_path / "rain").mkdir(), (tmp_path / "clean").mkdir()
    assert evaluate() == 1
    assert "no pictures in rain" in capsys.readouterr().err


def test_pictures_without_a_partner_are_named(
    evaluate: Callable[..., int], picture: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        picture(f"rain/photo{number}.png")
    picture("clean/photo2.png")
    assert evaluate() == 1
    error = capsys.readouterr().err
    assert "5 of 6 pictures of rain have no partner in clean: photo0.png, photo1.png, photo3.png …" in error
