"""The page on Bilevel Meta Optimization says what its file of results says."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_and_verdicts_of_the_page_are_those_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("paper_c", ROOT / "benchmarks" / "paper_c.py")
    assert spec is not None
    assert spec.loader is not None
    paper_c = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "paper_c", paper_c)  # dataclasses look their module up
    spec.loader.exec_module(paper_c)
    page = tmp_path / "bmo.md"
    shutil.copy(ROOT / "docs" / "bmo.md", page)
    paper_c.write_tables(json.loads((ROOT / "benchmarks/results/paper_c.json").read_text()), page)
    assert page.read_text() == (ROOT / "docs" / "bmo.md").read_text()
    assert (
        len(re.findall(r"\| (?:\*\*not )?reproduced(?:\*\*)? \|", page.read_text())) == 7
    )  # six claims, the fourth in halves
