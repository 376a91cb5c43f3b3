"""Builds the documentation as a site: pages, every recipe key, the API from docstrings; into build/site.

    python docs/site.py

The pages are copied into build/pages with the layout of the repository, so that their links are the same there as on a
code-hosting site. A link that leads nowhere, and any other warning, ends the build with exit code 1. Nothing is loaded
from another server, neither now nor by a reader.
"""

from __future__ import annotations

import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import recipe_keys
import yaml

ROOT = Path(__file__).resolve().parent.parent
BUILD, PAGES = ROOT / "build", ROOT / "build" / "pages"
ORDER = (
    "how-to-choose",
    "guidance",
    "deblur",
    "haze",
    "search",
    "bmo",
    "data",
    "protocols",
    "paper-a",
    "claims",
    "solve",
)
"""The pages that come first; the others follow by name, the notation last."""
EXTERNAL = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//""")


def stage() -> None:
    """Copies the pages and all that they link to."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for pattern in ("*.md", "LICENSE", "docs/*.md", "docs/pictures/*", "benchmarks/results/*.png", "examples/*.py"):
        for path in sorted(ROOT.glob(pattern)):
            target = PAGES / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (PAGES / "docs" / "recipe-keys.md").write_text(recipe_keys.page(), encoding="utf-8")


def api() -> list[dict[str, Any]]:
    """Writes a page for every public module of the package; the entries of the navigation, by package."""
    package = ROOT / "src" / "twofold"
    groups: dict[str, list[Any]] = {"twofold": []}
    for found in pkgutil.walk_packages([str(package)], "twofold.", onerror=lambda name: None):
        if any(part.startswith("_") for part in found.name.split(".")):
            continue
        path = package.joinpath(*found.name.split(".")[1:])
        if path.is_dir() and not (path / "__init__.py").exists():
            continue
        page = Path("api") / f"{found.name}.md"
        (PAGES / page).parent.mkdir(exist_ok=True)
        (PAGES / page).write_text(f"::: {found.name}\n", encoding="utf-8")
        group = found.name if found.ispkg else found.name.rpartition(".")[0]
        groups.setdefault(group, []).append({found.name: page.as_posix()})
    (PAGES / "api" / "twofold.md").write_text("::: twofold\n", encoding="utf-8")
    return [{"twofold": ["api/twofold.md", *groups.pop("twofold")]}, *({name: found} for name, found in groups.items())]


def navigation() -> list[Any]:
    names = [
        path.stem for path in sorted((PAGES / "docs").glob("*.md")) if path.stem not in ("notation", "recipe-keys")
    ]
    names = [*(name for name in ORDER if name in names), *(name for name in names if name not in ORDER)]
    return [
        {"twofold": "README.md"},
        {"Guides": [f"docs/{name}.md" for name in names]},
        {"Reference": [{"Recipe keys": "docs/recipe-keys.md"}, {"Notation": "docs/notation.md"}, {"API": api()}]},
        {"Project": ["CONTRIBUTING.md", "CHANGELOG.md"]},
    ]


def external(site: Path) -> list[str]:
    """The pages that load something from another server."""
    return [
        str(path.relative_to(site))
        for path in sorted(site.rglob("*.html"))
        if any('rel="canonical"' not in match for match in EXTERNAL.findall(path.read_text(encoding="utf-8")))
    ]


def main() -> int:
    stage()
    settings = {"INHERIT": "../docs/mkdocs.yml", "nav": navigation()}
    (BUILD / "mkdocs.yml").write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(BUILD / "mkdocs.yml")]
    if subprocess.run(command, check=False).returncode:
        return 1
    loading = external(BUILD / "site")
    if loading:
        print(f"these pages load something from another server: {', '.join(loading)}", file=sys.stderr)
        return 1
    print(f"built {BUILD / 'site' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
