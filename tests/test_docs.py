"""What README and docs say is what the files say."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from twofold.settings import checked

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_table_is_the_one_that_its_file_makes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_on_bilevel_meta_optimization_judges_every_claim() -> None:
    """Six claims, the fourth in halves."""
    page = (ROOT / "docs" / "bmo.md").read_text()
    assert len(re.findall(r"\| (?:\*\*not )?reproduced(?:\*\*)? \|", page)) == 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_command_that_the_readme_shows_is_a_verb() -> None:
    from twofold.cli.app import VERBS

    verbs = set(re.findall(r"^twofold (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert verbs
    assert verbs <= set(VERBS)


def test_every_recipe_that_a_page_shows_is_valid() -> None:
    import yaml

    from twofold.search.recipe import JudgeRecipe, SearchRecipe

    schemas = {"judge": JudgeRecipe, "search": SearchRecipe}
    text = "\n".join(page.read_text() for page in PAGES)
    trees = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)]
    shown = [tree for tree in trees if tree.get("kind") in schemas]
    assert {tree["kind"] for tree in shown} == set(schemas)
    settings = [checked(schemas[tree["kind"]], tree, tree["name"]) for tree in shown]
    assert len({str(found.data.train) for found in settings}) == 1, "a judge is refused on other pictures"


def test_every_key_of_every_recipe_stands_on_the_reference_page_with_a_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    keys = importlib.import_module("recipe_keys")
    page = keys.page()
    schemas = [recipe.model_json_schema(schema_generator=keys.RecipeSchema) for recipe in keys.RECIPES.values()]
    groups = [group for schema in schemas for group in (schema, *schema["$defs"].values())]
    for group in groups:
        for key in group.get("properties", {}):
            assert f"| `{key}` |" in page
    silent = re.findall(r"^\| `(\w+)` \|.*\|  \|$", page, flags=re.MULTILINE)
    assert not silent, "say what they mean as `key: meaning` in the docstring of their class, or in their Field"
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links
    assert links == {link for link in links if f"{{ #{link} }}" in page}
