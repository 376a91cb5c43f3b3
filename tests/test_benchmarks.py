"""The benchmarks share one harness, and each makes the tables of its own results."""

from __future__ import annotations

import ast
import importlib
import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from twofold import images
from twofold.contracts import Restored, Sample

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


NETWORK = """
import torch
import torchvision
from timm.models.layers import DropPath


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.path = DropPath(0.5)

    def forward(self, x):
        return x, self.path(x * self.scale + {offset})
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("peers")


def clone(networks: ModuleType, folder: Path, name: str, *, scale: float, offset: float) -> Any:
    """A peer, and its clone in `folder` with a module `model` and weights below `net.`, one of them denormal."""
    (folder / name).mkdir()
    (folder / name / "model.py").write_text(NETWORK.format(offset=offset))
    torch.save({"model_state_dict": {"net.scale": torch.tensor([scale])}}, folder / name / "weights.pt")
    build = networks.plain("model", "Net", part="net.", pick=1)
    return networks.Peer(name, "rain", f"somebody/{name}", "0", "MIT", "A 2020", "weights.pt", "rain", build)


def test_networks_of_two_repositories_with_the_same_module_do_not_mix(peers: ModuleType, tmp_path: Path) -> None:
    networks, path = importlib.import_module("peers_networks"), list(sys.path)
    before = {name: sys.modules.get(name) for name in ("model", "timm", "timm.models.layers", "torchvision")}
    half = clone(networks, tmp_path, "Half", scale=0.5, offset=0.0)
    more = clone(networks, tmp_path, "More", scale=1e-40, offset=0.25)
    picture = torch.full((1, 3, 4, 4), 0.5)
    assert half.load(tmp_path).restored(picture).image.unique().tolist() == [0.25]
    assert more.load(tmp_path).restored(picture).image.unique().tolist() == [0.25]
    assert more.load(tmp_path).network.scale.item() == 0.0, "denormal weights are zero"
    after = {name: sys.modules.get(name) for name in before}
    assert after == before, "neither modules of repositories nor stand-ins stay"
    assert sys.path == path


def test_a_peer_whose_weights_are_missing_is_left_out_with_a_line(
    peers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = importlib.import_module("peers_networks")
    there = clone(networks, tmp_path, "There", scale=1.0, offset=0.0)
    gone = clone(networks, tmp_path, "Gone", scale=1.0, offset=0.0)
    (tmp_path / "Gone" / "weights.pt").unlink()
    assert [one.name for one in peers.theirs("rain", tmp_path, (there, gone))] == ["There"]
    assert peers.theirs("haze", tmp_path, (there, gone)) == []
    said = capsys.readouterr().out
    assert said.startswith("Gone: left out")
    assert "github.com/somebody/Gone" in said


def test_only_changed_weights_are_measured_again(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    cases = [(f"{n}", Sample(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.4))) for n in range(2)]

    def candidate(name: str, kind: str, digest: str) -> Any:
        def restore(observed: torch.Tensor) -> Restored:
            measured.append(name)
            return Restored(observed + 0.05)

        return peers.Candidate(name, kind, digest, 1, restore)

    def run(before: dict[str, Any], digest: str, *, with_peers: bool = True) -> dict[str, Any]:
        measured.clear()
        monkeypatch.setattr(peers, "ours", lambda task: [candidate("derain", "ours", digest)])
        monkeypatch.setattr(peers, "theirs", lambda *_: [candidate("peer", "peer", "b")] if with_peers else [])
        folder = Path() if with_peers else None
        *_, facts = peers.measured("rain", Path(), folder, before, again=False, rounds=1)
        return json.loads(json.dumps(facts))

    monkeypatch.setattr(peers.material, "validation", lambda *_: {"light": cases})
    monkeypatch.setattr(peers, "seconds", lambda candidates, *_: {one.name: 1.0 for one in candidates})
    first = run({}, "a")
    assert sorted(measured) == ["derain", "derain", "peer", "peer"]
    for method, error in (("peer", 0.05), ("input", 0.1)):
        expected = -20 * math.log10(error * 219 / 255)  # luma spans 219 of 255 levels; rounded to 8 bits
        assert first["scores"][method]["light"]["psnr"] == pytest.approx([expected] * 2, abs=0.6)
    assert run(first, "a") == first
    assert measured == []
    assert run(first, "new")["methods"]["derain"]["digest"] == "new"
    assert set(measured) == {"derain"}
    assert run(first, "a", with_peers=False) == first, "without a folder their rows stay"
    other = first | {"sets": {"light": "another split"}}
    assert run(other, "a") == first
    assert set(measured) == {"derain", "peer"}


def test_the_tables_of_peers_say_what_was_measured_what_printed_and_what_may_have_been_seen(peers: ModuleType) -> None:
    tables = importlib.import_module("peers_tables").tables
    scores = {
        "input": {"lol": {"psnr": [8.0, 9.0, 10.0], "ssim": [0.1] * 3}},
        "lowlight": {"lol": {"psnr": [20.0, 21.0, 22.0], "ssim": [0.8] * 3}},
        "IAT": {"lol": {"psnr": [21.0, 21.0, 21.0], "ssim": [0.9] * 3}},
        "clahe": {"lol": {"psnr": [9.0, 9.0, 9.0], "ssim": [0.2] * 3}},
    }
    kinds = {"lowlight": "ours", "IAT": "peer", "clahe": "classical"}
    about = {"digest": "0123456789abcdef", "parameters": 5, "cpu_seconds_per_megapixel": 1.5}
    methods = {name: {"kind": kind, **about} for name, kind in kinds.items()}
    facts = {"protocol": "rgb", "sets": {"lol": "digest"}, "methods": methods, "scores": scores}
    made = tables({"peers": {"lowlight": facts}})
    lines = made["results_lowlight"].splitlines()
    assert "| IAT † | 21.00 | 0.9000 | +0.00 (-2.48 … +2.48) |" in lines[3], "Student: 4.3027 / √3"
    assert "| **`lowlight`** | 21.00 | 0.8000 |  |" in lines[2]
    assert "| untouched | 9.00" in lines[4] or "| untouched | 9.00" in lines[5]
    assert (
        "| LOL, 99 test pictures of 789 (LOL-v2-real by its size); protocol not stated | RUAS | 14.97 |"
        in made["results_lowlight"]
    )
    assert "| **`lowlight`** | 21.00 (lol) | 21.00 (lol) | 0.00 | +12.00 (lol) | +12.00 (lol) |" in made["results_gaps"]
    assert "clahe" not in made["results_gaps"]
    assert made["results_rain"].splitlines()[2] == "| the validation sets | not measured yet |  |  |  |"
    assert "| IAT | lowlight | 5 | 1.5 | `0123456789ab` |" in made["results_networks"]
    assert "github.com/cuiziteng/Illumination-Adaptive-Transformer" in made["results_peers"]


def test_a_contact_sheet_reduces_photographs_and_shows_the_map(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    sheets = importlib.import_module("contact_sheet")
    (tmp_path / "haze/real").mkdir(parents=True)
    images.write(tmp_path / "haze/real/fog.png", images.Picture(torch.rand(1, 3, 40, 80)))
    (photograph,) = sheets.photographs("haze", tmp_path, 50)
    assert photograph.observed.shape == (1, 3, 25, 50)
    assert photograph.kernel is None
    one = sheets.Candidate("a", "ours", "", 0, lambda x: Restored(1 - x, x.mean(1, keepdim=True) / 2))
    shown = sheets.row(photograph, [one, one._replace(name="b", kind="classical")])
    assert list(shown) == ["observed", "a", "a: its map", "b"]
    assert shown["a: its map"].max() == 1
    sheets.write(tmp_path / "sheet.png", [shown], 30)
    assert images.read(tmp_path / "sheet.png").pixels.shape[-1] > 3 * 60
