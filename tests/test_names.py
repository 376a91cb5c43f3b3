"""One name, one meaning: a public top-level name is defined once in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import twofold

ROOT = Path(twofold.__file__).parent

SHARED = {"command"}
"""What several modules define on purpose: the function that `twofold.cli.app` calls in the module of every verb."""


def public_names(source: str) -> Iterator[str]:
    """The names that a module's top level defines: classes, functions, constants, aliases; not what it imports.

    >>> list(public_names("from a import b\\nC = 1\\n_d = 2\\ndef e(): f = 3\\nclass G: h = 4"))
    ['C', 'e', 'G']
    """
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found = [name]
            case ast.Assign(targets=targets):
                found = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                found = [name]
            case _:
                found = []
        yield from (name for name in found if not name.startswith("_"))


def definitions(root: Path) -> dict[str, list[str]]:
    """The modules that define each public name, as paths below `root`."""
    found = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        for name in dict.fromkeys(public_names(path.read_text(encoding="utf-8"))):
            found[name].append(path.relative_to(root).as_posix())
    return found


def twice(root: Path) -> dict[str, list[str]]:
    """The public names that more than one module defines."""
    return {name: files for name, files in definitions(root).items() if len(files) > 1 and name not in SHARED}


def test_no_public_name_is_defined_twice() -> None:
    found = twice(ROOT)
    assert not found, "\n".join(f"{name} is defined in {', '.join(files)}; rename one" for name, files in found.items())


def test_the_exceptions_are_all_needed() -> None:
    files = definitions(ROOT)
    assert {name for name in SHARED if len(files[name]) < 2} == set()


def test_a_second_definition_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("Source = int\n")
    (tmp_path / "two.py").write_text("class Source: ...\n")
    (tmp_path / "three.py").write_text("from one import Source\n")
    assert twice(tmp_path) == {"Source": ["one.py", "two.py"]}
