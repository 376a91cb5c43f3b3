"""The report says what is so, finds what is wrong, and comes out even where something fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import twofold
from twofold import api, doctor, zoo
from twofold.cli.app import run_command_line


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.examine({"OMP_NUM_THREADS": "1", "SECRET": "x"})


def test_the_report_is_plain_data_and_names_versions_and_weights(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert report["versions"]["twofold"] == twofold.__version__
    assert report["versions"]["torch"] == torch.__version__.split("+")[0] or report["versions"]["torch"]
    assert set(report["weights"]) == set(doctor.with_weights())
    assert all(facts["right"] for facts in report["weights"].values())
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert report["settings"]["OMP_NUM_THREADS"] == "1"
    assert "SECRET" not in json.dumps(report)


def test_the_plan_of_each_model_is_that_of_loading_it(report: dict[str, Any]) -> None:
    for name, card in doctor.with_weights().items():
        chosen = report["plans"][name]
        plan = api.load(name).plan
        assert ("bfloat16" in chosen["plan"].split(" + ")) == plan.bfloat16
        assert chosen["reason"]
        assert card.name == name


def test_the_self_test_restores_and_times_every_plan(report: dict[str, Any]) -> None:
    test = report["test"]
    assert test["psnr_after"] > test["psnr_before"] + 3
    assert test["tiles_deviate"] < 1e-4
    assert [each["plan"] for each in test["plans"]][:2] == ["plain float32", "channels_last + fused"]
    assert all(each["seconds"] > 0 for each in test["plans"] if "seconds" in each)
    assert "seconds" in test["plans"][0]


def test_the_text_fits_a_bug_report(report: dict[str, Any]) -> None:
    said = doctor.report_text(report)
    assert said.startswith(f"twofold {twofold.__version__}, Python ")
    assert "weights: {0} of {0}".format(len(doctor.with_weights())) in said
    assert "plan of " in said
    assert str(Path.home()) not in said


def changed(report: dict[str, Any], section: str, **facts: Any) -> dict[str, Any]:
    return {**report, section: {**report[section], **facts}}


def test_problems_are_reported_with_a_remedy(report: dict[str, Any]) -> None:
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
        found = doctor._problems(changed(report, section, **facts))
        assert any(said in each for each in found), said


def test_a_self_test_that_fails_is_part_of_the_report() -> None:
    def failing() -> dict[str, Any]:
        raise RuntimeError("no convolution here")

    assert doctor._guarded(failing)["error"] == "RuntimeError: no convolution here"


def test_weights_that_were_changed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {name: card.model_copy(update={"sha256": "0" * 64}) for name, card in zoo.cards().items()}
    monkeypatch.setattr(zoo, "cards", lambda: cards)
    assert not any(facts["right"] for facts in doctor._weights().values())


def test_the_command_prints_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command_line(["doctor", "--no-test"])
    assert capsys.readouterr().out.startswith("twofold ")
    assert run_command_line(["doctor", "--no-test", "--json"]) == code
    assert "test" not in json.loads(capsys.readouterr().out)
