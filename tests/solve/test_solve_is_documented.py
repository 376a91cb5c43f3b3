"""What is public in `solve` shows a number that can be checked by eye, and the package needs torch alone."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from twofold import solve

MODULES = [importlib.import_module(f"{solve.__name__}.{found.name}") for found in pkgutil.iter_modules(solve.__path__)]


def has_nothing_to_show(thing: object) -> bool:
    """Protocols compute nothing, and an error's message is shown where it is raised."""
    return getattr(thing, "_is_protocol", False) or (isinstance(thing, type) and issubclass(thing, Exception))


PUBLIC = [
    pytest.param(thing, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module in MODULES
    for name, thing in vars(module).items()
    if not name.startswith("_")
    and (inspect.isfunction(thing) or inspect.isclass(thing))
    and thing.__module__ == module.__name__
    and not has_nothing_to_show(thing)
]


def test_the_list_of_public_names_is_not_empty() -> None:
    assert len(PUBLIC) > 70


@pytest.mark.parametrize("thing", PUBLIC)
def test_every_public_name_has_an_example(thing: object) -> None:
    assert ">>> " in (inspect.getdoc(thing) or "")


def test_the_mathematics_imports_torch_and_nothing_else_that_was_installed() -> None:
    """In a fresh interpreter: what each module brings in beyond what torch brings in by itself."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        f"for name in {[module.__name__ for module in MODULES]}: __import__(name)\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new - {'torch'}), sorted(n for n in sys.modules if n.startswith('twofold.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    brought, own = done.stdout.strip().split("] [")
    assert brought == "['twofold'"
    assert all("twofold.solve" in name for name in own.rstrip("]").split(", "))
