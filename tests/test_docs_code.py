"""Every Python block of README and docs runs, unless a comment above it says what it would need."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


def blocks(page: Path) -> tuple[list[str], list[str]]:
    """The blocks that run, and why the others do not."""
    found = list(BLOCK.finditer(page.read_text(encoding="utf-8")))
    return [f["code"] for f in found if not f["why"]], [f["why"] for f in found if f["why"]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the small images that the pages name."""
    photograph = Image.fromarray(data.astronaut()).resize((128, 128))
    for name in ("rainy.jpg", "shaken.jpg", "photographs/one.png", "photographs/two.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photograph.save(tmp_path / name)
    generator = np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 255, (48, 48, 3), dtype=np.uint8)
        for half in ("light", "clean"):
            path = tmp_path / "Rain100" / half / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)[0]], ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page: Path, folder: Path) -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    for code in blocks(page)[0]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile(code, str(page), "exec"), names)


def test_a_block_that_does_not_run_says_why() -> None:
    found = "<!-- not run: needs a GPU -->\n```python\n1 / 0\n```\n```python\nx = 1\n```\n"
    assert [(f["why"], f["code"]) for f in BLOCK.finditer(found)] == [("needs a GPU", "1 / 0\n"), (None, "x = 1\n")]
