"""The additions of CONTRIBUTING, made in a copy of the package as they stand there, and the files they touch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import twofold

PAGE = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
END = ""
"""In place of a text that is replaced: the code goes to the end of the file, or is the file."""


class Edit(NamedTuple):
    """One change of a file: `old`, which stands in it once, becomes `new`; CODE is the next block of the section."""

    file: str
    old: str
    new: str


class Addition(NamedTuple):
    """A section of CONTRIBUTING: the most files that it may touch, what it does to them, and what must work then."""

    files: int
    edits: list[Edit]
    check: str


ADDITIONS = {
    "loss": Addition(
        1,
        [
            Edit("losses.py", "LOSSES: dict", "CODE\n\nLOSSES: dict"),
            Edit("losses.py", '    "laplacian": laplacian,', '    "laplacian": laplacian,\n    "edges": edges,'),
        ],
        """
from twofold.losses import LossSpec
from twofold.space.loss_space import searchable
flat, ramp = torch.zeros(1, 3, 4, 5), torch.linspace(0, 1, 5).expand(1, 3, 4, 5)
assert abs(LossSpec.of({"edges": 2.0}).build(Path())(ramp, flat) - 0.25) < 1e-6
assert LossSpec.of({"edges": 1.0}).build(Path())(flat + 0.3, flat) == 0
terms = searchable(["l1", "edges"], folder=Path(), device="cpu", generator=torch.Generator())
assert list(terms) == ["l1", "edges"]
""",
    ),
    "protocol": Addition(
        1,
        [Edit("metrics.py", '        Protocol("rgb", ', '        CODE,\n        Protocol("rgb", ')],
        """
from twofold.metrics import PROTOCOLS
clean = torch.full((1, 3, 32, 32), 0.5)
restored = clean + 0.2
restored[..., 8:-8, 8:-8] = clean[..., 8:-8, 8:-8]
assert PROTOCOLS["rgb-inside"].score(restored, clean).psnr.item() > 50 > PROTOCOLS["rgb"].score(restored, clean).psnr
""",
    ),
    "degradation": Addition(
        2,
        [
            Edit("degrade/additive.py", END, "CODE"),
            Edit("data/degradations.py", "AnyDegradation = Annotated[\n", "AnyDegradation = Annotated[\n    Veil |\n"),
            Edit("data/degradations.py", "degrade.additive import ", "degrade.additive import Veil, "),
        ],
        """
from twofold.cli.app import run_command_line
from twofold.data.degradations import changed
from twofold.degrade.additive import Veil
made = changed({"kind": "veil"}, ["level=[0.2, 0.4]"], Path())
assert made == Veil((0.2, 0.4))
clean = torch.rand(2, 3, 8, 8)
sample = made(clean, torch.Generator().manual_seed(0))
assert torch.allclose((sample.observed - sample.guidance) / (1 - sample.guidance), clean, atol=1e-6)
try:
    changed({"kind": "veil"}, ["level=[0.4, 0.2]"], Path())
except twofold.TwofoldError as error:
    assert "expected low <= high" in str(error)
else:
    raise AssertionError
photographs(Path())
assert run_command_line(["degrade", "photographs/0.png", "-k", "veil", "--set", "level=[0.5,0.5]", "-o", "v.png"]) == 0
""",
    ),
    "task": Addition(
        0,
        [],
        """
from twofold.train.reading import read_recipe
from twofold.train.run import train
photographs(Path())
Path("veil.yaml").write_text(TASK)
recipe = read_recipe("veil.yaml", ["steps=2", "validate_every=2", "data.crop=16", "precision=float32"])
facts = train(recipe, Path(), Path("run"), device="cpu")
assert facts["validation"]["own/psnr"] > 0
restored = twofold.restore("photographs/0.png", "run/model.safetensors").image
""",
    ),
    "source of data": Addition(
        2,
        [
            Edit("data/sources.py", END, "CODE"),
            Edit("data/specs.py", "SourceSpec = Annotated[", "SourceSpec = Annotated[Gradients | "),
            Edit("data/specs.py", "data.sources import ", "data.sources import Gradients, "),
        ],
        """
from pydantic import TypeAdapter
from twofold.data.sources import Crops
from twofold.data.specs import SourceSpec
source = TypeAdapter(SourceSpec).validate_json('{"kind": "gradients", "degradation": {"kind": "noise"}}')
sample = source.build(Path(), Crops(24))(torch.Generator().manual_seed(0))
assert sample.clean.shape == sample.observed.shape == (1, 3, 24, 24)
assert sample.guidance is not None
""",
    ),
    "network": Addition(
        2,
        [
            Edit("nets/single.py", END, "CODE"),
            Edit(
                "specs.py",
                "NetSpec = Annotated[\n    UNetSpec",
                "CODE\n\nNetSpec = Annotated[\n    SingleSpec | UNetSpec",
            ),
            Edit(
                "specs.py", "from twofold.nets.unet", "from twofold.nets.single import Single\nfrom twofold.nets.unet"
            ),
        ],
        """
from pydantic import TypeAdapter
from twofold.specs import ModelSpec
tree = '{"kind": "guided", "guidance": "noise_level", "net": {"kind": "single", "size": 5}}'
restorer = TypeAdapter(ModelSpec).validate_json(tree).build()
assert restorer.net.layer.weight.shape == (3, 4, 5, 5)
assert restorer.halo == restorer.guide.halo + 2
assert restorer(torch.rand(1, 3, 9, 7)).image.shape == (1, 3, 9, 7)
""",
    ),
    "way of training": Addition(
        2,
        [
            Edit("train/mirrored.py", END, "CODE"),
            Edit("train/recipe.py", "SchemeSpec = Annotated[\n", "SchemeSpec = Annotated[\n    MirroredSpec |\n"),
            Edit(
                "train/recipe.py",
                "from twofold.train.schemes",
                "from twofold.train.mirrored import MirroredSpec\nfrom twofold.train.schemes",
            ),
        ],
        """
from twofold.train.reading import read_recipe
from twofold.train.run import train
photographs(Path())
Path("veil.yaml").write_text(TASK.replace("kind: supervised", "kind: mirrored").replace("kind: veil, level: [0.2, 0.6]",
    "kind: noise"))
recipe = read_recipe("veil.yaml", ["steps=1", "data.crop=16", "precision=float32", "data.degraded={}", "average=0"])
train(recipe, Path(), Path("mirrored"), device="cpu")
assert '"mirrored":' in Path("mirrored/log.jsonl").read_text()
""",
    ),
    "verb": Addition(
        2,
        [
            Edit("cli/size.py", END, "CODE"),
            Edit("cli/app.py", '    "ui": ', '    "size": "print the size of images",\n    "ui": '),
        ],
        """
from twofold.cli.app import run_command_line
photographs(Path())
assert run_command_line(["size", "photographs/0.png"]) == 0
assert run_command_line(["size", "missing.png"]) == 1
""",
    ),
}

PROGRAM = """
import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import twofold

assert Path(twofold.__file__).parents[1] == Path(os.environ["PYTHONPATH"])

def photographs(root):
    (root / "photographs").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels[number]).save(root / "photographs" / f"{number}.png")

facts, here, failures = json.load(sys.stdin), Path.cwd(), {}
names = {"Path": Path, "torch": torch, "twofold": twofold, "photographs": photographs, "TASK": facts["task"]}
for name, check in facts["checks"].items():
    (here / name).mkdir()
    os.chdir(here / name)
    try:
        exec(check, dict(names))
        failures[name] = ""
    except Exception:
        failures[name] = traceback.format_exc()
(here / "failures.json").write_text(json.dumps(failures))
"""


def section(name: str) -> str:
    return re.split(r"^## ", PAGE.split(f"## Add a {name}\n")[1], flags=re.MULTILINE)[0]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with every addition made."""
    root = tmp_path_factory.mktemp("grown")
    package = root / "twofold"
    leave = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(Path(twofold.__file__).parent, package, ignore=leave)
    for name, addition in ADDITIONS.items():
        blocks = re.findall(r"```python\n(.*?)```", section(name), flags=re.DOTALL)
        for edit in addition.edits:
            path = package / edit.file
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            new = edit.new.replace("CODE", blocks.pop(0).rstrip("\n")) if "CODE" in edit.new else edit.new
            if edit.old == END:
                path.write_text(f"{text}\n\n{new}\n".lstrip("\n"), encoding="utf-8")
                continue
            assert text.count(edit.old) == 1, f"{edit.old!r} stands {text.count(edit.old)} times in {edit.file}"
            path.write_text(text.replace(edit.old, new), encoding="utf-8")
        assert not blocks, f"CONTRIBUTING shows code under {name!r} that is not tried here"
    return root


@pytest.fixture(scope="module")
def failures(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong with each addition. All are tried in one process, each in a folder of its own."""
    task = re.search(r"```yaml\n(.*?)```", section("task"), flags=re.DOTALL)
    assert task is not None
    place = tmp_path_factory.mktemp("tried")
    facts = {"checks": {name: addition.check for name, addition in ADDITIONS.items()}, "task": task[1]}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        input=json.dumps(facts),
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads((place / "failures.json").read_text())
    return found


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_works_as_contributing_shows_it(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_touches_few_files(name: str) -> None:
    files = {edit.file for edit in ADDITIONS[name].edits}
    assert len(files) <= ADDITIONS[name].files
    if files:
        assert re.search(rf"^\| a {name}\b[^|]*\| {len(files)} \|$", PAGE, flags=re.MULTILINE)


def test_every_addition_of_the_table_is_tried() -> None:
    rows = re.findall(r"^\| an? ([^|,]+?)(?:,[^|]*)? \| (?:\d|none|a degradation)", PAGE, flags=re.MULTILINE)
    tried = {"solver", *ADDITIONS}  # the solver's block is run by tests/test_docs_code.py
    assert {re.sub(" of the command line", "", row) for row in rows} == tried
