"""Every public definition has a docstring, and that of a function of tensors says their shapes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import twofold

ROOT = Path(twofold.__file__).parent
SHAPE = re.compile(
    r"\((?:[A-Z]\w*|[a-z]|\d+|\.\.\.|…)(?: or \d+| \d+)?,[^()]*\)"  # (B, C, H, W), (1, 1, h, w), (n,), (..., H, W)
    r"|scalar|any shape|element-?wise|of one shape|same shape|like the parameters|[Tt]ree|[Ss]tate",
)
"""How a shape is written; in `solve`, trees and states hold tensors of any shape."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Definition(NamedTuple):
    """A public class, function or method. docs: what is said of it, by itself, its class, a base or a protocol."""

    where: str
    node: ast.AST
    docs: list[str]


def definitions(modules: dict[str, ast.Module]) -> Iterator[Definition]:
    """The public definitions of parsed modules by path. Public names are unique, so a base class is found by name.

    What a protocol says of its methods holds for every class that has them all.
    """
    classes = {n.name: n for tree in modules.values() for n in tree.body if isinstance(n, ast.ClassDef)}
    protocols = [n for n in classes.values() if any("Protocol" in ast.unparse(base) for base in n.bases)]

    def members(node: ast.ClassDef) -> set[str]:
        body = [part for kin in family(node) for part in kin.body]
        fields = {
            part.target.id for part in body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        }
        return fields | {part.name for part in body if isinstance(part, Function)}

    def family(node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        yield node
        for base in node.bases:
            name = ast.unparse(base).partition("[")[0]
            if name in classes and name != "Protocol":  # that of `typing`, not of `metrics`
                yield from family(classes[name])

    for path, tree in modules.items():
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
                continue
            yield Definition(f"{path}: {node.name}", node, [ast.get_docstring(node) or ""])
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, Function) and (not method.name.startswith("_") or method.name == "__call__"):
                    fulfilled = [protocol for protocol in protocols if members(protocol) <= members(node)]
                    same = [
                        ast.get_docstring(other) or ""
                        for kin in (*family(node), *fulfilled)
                        for other in kin.body
                        if isinstance(other, Function) and other.name == method.name
                    ]
                    # a class may say what a method does by its name; it always says it of its only one
                    named = re.compile(rf"\b{method.name}(?:,[\w ,]+)?: |`{method.name}[`(]")
                    own = [
                        text
                        for kin in (*family(node), *fulfilled)
                        if (text := " ".join((ast.get_docstring(kin) or "").split()))
                        if method.name in ("forward", "__call__", only(kin)) or named.search(text)
                    ]
                    yield Definition(f"{path}: {node.name}.{method.name}", method, same + own)


def only(node: ast.ClassDef) -> str:
    """The name of a class's one public method, empty where there are none or several."""
    methods = [m for m in node.body if isinstance(m, Function) and not m.name.startswith("_")]
    names = [m.name for m in methods if not any(ast.unparse(mark) == "property" for mark in m.decorator_list)]
    return names[0] if len(names) == 1 else ""


def takes_tensors(node: ast.AST) -> bool:
    """Whether a function has a parameter annotated with a tensor, alone or in a container."""
    if not isinstance(node, Function):
        return False
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    written = [ast.unparse(argument.annotation) for argument in given if argument.annotation is not None]
    return any("Tensor" in text and "Callable" not in text for text in written)


def parsed(root: Path) -> dict[str, ast.Module]:
    return {
        path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(root.rglob("*.py"))
    }


def silent(modules: dict[str, ast.Module]) -> list[str]:
    """Public definitions without a docstring."""
    return [found.where for found in definitions(modules) if not any(found.docs)]


def without_shape(modules: dict[str, ast.Module]) -> list[str]:
    """Public functions of tensors whose docstring names no shape."""
    return [
        found.where
        for found in definitions(modules)
        if takes_tensors(found.node) and not SHAPE.search(" ".join(found.docs))
    ]


def test_every_module_says_what_it_is_for() -> None:
    assert [path for path, tree in parsed(ROOT).items() if not ast.get_docstring(tree)] == []


def test_every_public_definition_has_a_docstring() -> None:
    found = silent(parsed(ROOT))
    assert not found, "no docstring:\n" + "\n".join(found)


def test_every_public_function_of_tensors_says_their_shapes() -> None:
    found = without_shape(parsed(ROOT))
    assert not found, "no shape, such as `(B, C, H, W)`, 'scalar' or 'any shape':\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "without_docs", "without_shapes"),
    [
        ("def f(x: Tensor): ...", ["m: f"], ["m: f"]),
        ('def f(x: Tensor): "Half of it."', [], ["m: f"]),
        ('def f(x: Tensor): "`(B, 1, H, W)` → its half."', [], []),
        ('def f(x: list[Tensor]): "Their sum, a scalar."', [], []),
        ("def _f(x: Tensor): ...", [], []),
        ('class C:\n  "It takes `(B, K)`."\n  def __call__(self, x: Tensor): ...', [], []),
        ('class C:\n  "It is `(n,)`."\n  def f(self, x: Tensor): ...', [], []),
        ('class C:\n  "."\n  def f(self, x: Tensor): ...\n  def g(self): ...', ["m: C.f", "m: C.g"], ["m: C.f"]),
        ('class C:\n  "f: of `(n,)`. g: none."\n  def f(self, x: Tensor): ...\n  def g(self): ...', [], []),
        (
            'class C:\n  "."\n  def f(self, x: Tensor): "(n,)"\nclass D(C):\n  "."\n  def f(self, x: Tensor): ...',
            [],
            [],
        ),
    ],
)
def test_the_rules_find_what_they_are_for(source: str, without_docs: list[str], without_shapes: list[str]) -> None:
    modules = {"m": ast.parse(source)}
    assert silent(modules) == without_docs
    assert without_shape(modules) == without_shapes
