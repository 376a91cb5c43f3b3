"""What README and docs say is what the files say."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
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


def test_contributing_shows_the_layers_that_are_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    shown = (ROOT / "CONTRIBUTING.md").read_text().split("## Layers\n\n```\n")[1].split("```")[0]
    rows = [re.split(r"\s{2,}", line)[0] for line in shown.splitlines() if not line.startswith(" ")]
    assert rows == contracts[0]["layers"]


def test_the_page_on_bilevel_meta_optimization_judges_every_claim() -> None:
    """Six claims, the fourth in halves, its second half for each baseline."""
    page = (ROOT / "docs" / "bmo.md").read_text()
    verdict = r"(?:\*\*)?(?:holds|does not hold|undecided|does not converge for \d of \d seeds)"
    judged = re.findall(rf"^\| (\w+) \| [^|]+ \| {verdict}[^|]* \|", page, flags=re.MULTILINE)
    assert sorted(set(judged)) == ["1", "2", "3", "4a", "4b", "5", "6"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def commands(page: Path) -> list[str]:
    """The command lines of twofold that a page shows, whole where a line ends in a backslash."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" # ")[0] for line in lines if re.match(r"twofold [a-z]", line)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_that_a_page_shows_has_its_verb_and_options(page: Path) -> None:
    import typer

    from twofold.cli.app import VERBS, module_of

    for line in commands(page):
        verb = line.split()[1]
        assert verb in VERBS, line
        app = typer.Typer(add_completion=False)
        app.command()(module_of(verb).command)
        known = {name for p in typer.main.get_command(app).params for name in (*p.opts, *p.secondary_opts)}
        used = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line))
        assert used <= known | {"-h", "--help"}, f"{line}: {used - known}"


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
