"""Every extra of pyproject.toml can be installed with constraints.txt: pins and extras are solved together."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.skipif(not os.environ.get("TWOFOLD_INSTALL_TEST"), reason="needs PyPI; set TWOFOLD_INSTALL_TEST=1")
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_can_be_installed(extra: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "-c", "constraints.txt", f".[{extra}]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
