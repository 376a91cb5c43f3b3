"""`from twofold.solve import name` gives the thing of that name, and each name has one meaning."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import twofold
from twofold import solve

PACKAGE = Path(twofold.__file__).parent


def definitions() -> dict[str, set[str]]:
    """Public functions, classes and type aliases of the whole package: name → modules that define it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            else:
                continue
            for name in names:
                if not name.startswith("_"):
                    found[name].add(str(path.relative_to(PACKAGE)))
    return found


def test_every_public_name_is_a_thing_and_never_the_module_of_that_name():
    for name in solve.__all__:
        assert type(getattr(solve, name)).__name__ != "module", name
    assert callable(solve.fixed_point)
    assert callable(solve.hypergradient)


def test_the_public_face_is_sorted_and_complete_for_its_imports():
    tree = ast.parse(Path(solve.__file__).read_text())
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(solve.__all__)
    assert len(solve.__all__) == len(set(solve.__all__))


def test_a_public_name_of_solve_is_defined_once_in_the_whole_package():
    twice = {
        name: modules
        for name, modules in definitions().items()
        if len(modules) > 1 and any(m.startswith("solve/") for m in modules)
    }
    assert not twice


def test_no_module_of_solve_exceeds_350_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE / "solve").glob("*.py")}
    assert max(lengths.values()) <= 350, lengths
