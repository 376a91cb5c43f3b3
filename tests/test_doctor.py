"""The report says what is so, finds what is wrong, and comes out even where something fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import twofold
from twofold import doctor, runtime, zoo
from twofold.cli.app import run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("cache")
    (cache / "recipes.json").write_text(
        json.dumps(
            {
                f"torch {torch.__version__} | {runtime.processor()} | {torch.get_num_threads()} threads | a | b": {
                    "channels_last": True,
                    "bfloat16": False,
                    "fused": True,
                    "compiled": False,
                },
                "torch 1.0 | another processor | 64 threads | a | b": {"compiled": True},
            }
        )
    )
    return doctor.examine({"OMP_NUM_THREADS": "1", "SECRET": "x"}, cache=cache)


def test_the_report_is_plain_data_and_names_versions_and_weights(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert report["versions"]["twofold"] == twofold.__version__
    assert report["versions"]["torch"] == torch.__version__.split("+")[0] or report["versions"]["torch"]
    assert set(report["weights"]) == set(zoo.cards())
    assert all(facts["right"] for facts in report["weights"].values())
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert report["settings"]["OMP_NUM_THREADS"] == "1"
    assert "SECRET" not in json.dumps(report)


def test_only_recipes_of_this_machine_are_listed(report: dict[str, Any]) -> None:
    assert report["recipes"]["kept"] == ["channels_last + fused"]


def test_the_self_test_restores_and_times_every_recipe(report: dict[str, Any]) -> None:
    test = report["test"]
    assert test["psnr_after"] > test["psnr_before"] + 3
    assert test["tiles_deviate"] < 1e-4
    assert test["recipes"][0]["recipe"] == "plain float32"
    assert len(test["recipes"]) == 1 + len(runtime.CANDIDATES)
    timed = {each["recipe"]: each["seconds"] for each in test["recipes"] if "seconds" in each}
    assert timed[test["fastest"]] == min(timed.values())


def test_the_text_fits_a_bug_report(report: dict[str, Any]) -> None:
    said = doctor.text(report)
    assert said.startswith(f"twofold {twofold.__version__}, Python ")
    assert f"weights: {len(zoo.cards())} of {len(zoo.cards())}" in said
    assert "← fastest" in said
    assert str(Path.home()) not in said


def changed(report: dict[str, Any], section: str, **facts: Any) -> dict[str, Any]:
    return {**report, section: {**report[section], **facts}}


def test_what_is_wrong_is_said_with_what_to_do(report: dict[str, Any]) -> None:
    cases = {
        "the weights of derain are missing": ("weights", {"derain": {"found": False, "right": False}}),
        "the weights of derain are not those": ("weights", {"derain": {"found": True, "right": False}}),
        "1.0 GiB of memory are free": ("memory", {"available": 2**30}),
        "set OMP_NUM_THREADS=2": ("machine", {"threads": 64, "cores": 2}),
        "the self-test failed: no": ("test", {"error": "no"}),
        "restored less than it should": ("test", {"psnr_after": 0.0}),
        "tiles differ": ("test", {"tiles_deviate": 0.1}),
        "safetensors is not installed": ("versions", {"safetensors": None}),
    }
    for said, (section, facts) in cases.items():
        found = doctor.problems(changed(report, section, **facts))
        assert any(said in each for each in found), said


def test_a_self_test_that_fails_is_part_of_the_report() -> None:
    def failing() -> dict[str, Any]:
        raise RuntimeError("no convolution here")

    assert doctor.guarded(failing)["error"] == "RuntimeError: no convolution here"


def test_weights_that_were_changed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {name: card.model_copy(update={"sha256": "0" * 64}) for name, card in zoo.cards().items()}
    monkeypatch.setattr(zoo, "cards", lambda: cards)
    assert not any(facts["right"] for facts in doctor.weights().values())


def test_the_command_prints_text_or_json(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = run(["doctor", "--no-test"])
    assert capsys.readouterr().out.startswith("twofold ")
    assert run(["doctor", "--no-test", "--json"]) == code
    assert "test" not in json.loads(capsys.readouterr().out)
