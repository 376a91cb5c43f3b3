"""`from twofold.solve import name` gives the thing of that name."""

from __future__ import annotations

import ast
from pathlib import Path

import twofold
from twofold import solve

PACKAGE = Path(twofold.__file__).parent


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


def test_no_module_of_solve_exceeds_350_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE / "solve").glob("*.py")}
    assert max(lengths.values()) <= 350, lengths
