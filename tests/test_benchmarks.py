"""The benchmarks share one harness, and each makes the tables of its own results."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
MODULES = sorted([*BENCHMARKS.glob("*.py"), *(ROOT / "docs").glob("*.py")])


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("harness")


def test_what_is_written_is_read_back_with_the_machine_beside_it(harness: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    harness.write(path, {"psnr": 30.0})
    assert harness.read(path) == {"psnr": 30.0}
    assert set(json.loads(path.read_text())["machine"]) >= {"processor", "torch", "threads", "load"}
    assert harness.read(tmp_path / "missing.json") == {}


def test_the_interval_is_students(harness: ModuleType) -> None:
    low, high = harness.interval_of([0.0, 1.0, 2.0])
    assert (low, high) == (-1.484, 3.484)  # 1 ± 4.3027 / √3
    assert harness.half_interval([0.0, 1.0, 2.0]) == pytest.approx((high - low) / 2, abs=1e-3)
    assert harness.interval_of([1.0]) is None


def test_cpu_seconds_finds_the_longer_task(harness: ModuleType) -> None:
    found = harness.cpu_seconds({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))}, rounds=2)
    assert found["long"] > 10 * found["short"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_growth_of_memory_is_that_of_the_work(harness: ModuleType) -> None:
    """In a fresh process: this one may have freed memory at hand, which then does not grow."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import harness\n"
        "def work(): bytearray(64 * 2**20)[:: 2**12] = b'1' * 2**14\n"
        "print(harness.peak_growth(work))"
    )
    command = [sys.executable, "-c", code, str(Path(harness.__file__ or "").parent)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 48 * 2**20 < grown < 100 * 2**20


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_no_function_is_copied_between_benchmarks() -> None:
    found = defaultdict(list)
    for path in BENCHMARKS.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
                found["\n".join(map(ast.unparse, node.body[1:]))].append(f"{path.stem}.{node.name}")
    assert not [names for names in found.values() if len(names) > 1]
