"""The page on Bilevel Meta Optimization says what its file of results says."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


VERDICT = re.compile(r"^\| (\w+) \|[^|]*\| (reproduced|\*\*not reproduced\*\*) \|", re.M)


@pytest.fixture
def paper_c(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_c", ROOT / "benchmarks" / "paper_c.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "paper_c", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def facts() -> dict[str, Any]:
    return dict(json.loads((ROOT / "benchmarks/results/paper_c.json").read_text()))


def test_the_tables_of_the_page_are_those_of_its_results(
    tmp_path: Path, paper_c: ModuleType, facts: dict[str, Any]
) -> None:
    page = tmp_path / "bmo.md"
    shutil.copy(ROOT / "docs" / "bmo.md", page)
    paper_c.write_tables(facts, page)
    assert page.read_text() == (ROOT / "docs" / "bmo.md").read_text()


def test_the_page_says_which_claims_hold_and_which_does_not() -> None:
    verdicts = dict(VERDICT.findall((ROOT / "docs" / "bmo.md").read_text()))
    assert verdicts == {**dict.fromkeys(("1", "2", "3", "4a", "4b", "5"), "reproduced"), "6": "**not reproduced**"}


@pytest.mark.parametrize(
    ("claim", "place", "value"),
    [
        ("1", ("rain", "training", "BMO", "largest_residual_ratio_of_any_turn"), 0.9),
        ("2", ("rain", "ways", "BMO", "residual_beyond"), 9.0),
        ("3", ("deconvolution", "fixed_batch", "gradient_last_tenth"), 9.0),
        ("4a", ("deconvolution", "ways", "BMO", "contraction_factor"), 1.1),
        ("5", ("counter", "256", "upper_loss_BMO"), 9.0),
    ],
)
def test_a_claim_whose_numbers_fail_is_not_reproduced(
    paper_c: ModuleType, facts: dict[str, Any], claim: str, place: tuple[str, ...], value: float
) -> None:
    *path, last = place
    inner = facts
    for key in path:
        inner = inner[key]
    inner[last] = value
    assert dict(VERDICT.findall(paper_c.claims_table(facts)))[claim] == "**not reproduced**"
