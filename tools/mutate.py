"""Mutation testing of `twofold.solve`: small faults are planted one by one, and each must make a test fail.

    python tools/mutate.py                              all modules; takes long
    python tools/mutate.py implicit unroll --sample 40  40 faults drawn from two modules

A fault is one changed comparison, sign, arithmetic operator, number, `and`/`or`, `any`/`all`, `min`/`max`, or one
refusal taken out. Numbers that are defaults, type annotations and texts are left alone. First the tests are run once
to see which of them call which function; then each fault meets the tests of its function, the quickest first. Nothing
is written outside a temporary folder, so several runs may go on side by side.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/twofold/solve"
LEFT_OUT = {  # they look at files or start processes of their own, so they never see a fault
    "test_examples.py",
    "test_public_names.py",
    "test_solve_is_documented.py",
    "test_the_page_runs.py",
    "test_unroll_memory.py",
}
SWAPS: dict[type, type] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
REWRITE = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the parent imports what its children share
NAMES = {"any": "all", "all": "any", "min": "max", "max": "min"}


class Fault(NamedTuple):
    """One planted fault. line: of it, function: of the first line of the function around it, in the original. source:
    the whole module with the fault."""

    module: str
    line: int
    function: int
    what: str
    source: str


def faults(path: Path) -> Iterator[Fault]:
    """Every fault of one module, in the order of its lines."""
    tree = ast.parse(path.read_text())
    spans = [(f.lineno, f.end_lineno, f) for f in functions(tree)]
    for place in list(places(tree)):
        for change, undo in changes(place):
            before = ast.unparse(place) if not isinstance(place, ast.If) else f"if {ast.unparse(place.test)}: raise"
            redo = change()
            after = ast.unparse(place) if not isinstance(place, ast.If) else "pass"
            line = place.lineno  # type: ignore[attr-defined]
            around = next((f for first, last, f in spans if first <= line <= (last or first)), None)
            first = 0 if around is None else min([around.lineno, *(d.lineno for d in around.decorator_list)])
            yield Fault(path.stem, line, first, f"{before}  →  {after}"[:160], ast.unparse(tree))
            undo(redo)


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """The functions of a module and the methods of its classes; what is nested in them counts as theirs."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [f for body in (tree.body, *(c.body for c in classes)) for f in body if isinstance(f, ast.FunctionDef)]


def places(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes where a fault may be planted: no annotations, defaults, texts of errors or decorators."""
    if isinstance(tree, (ast.Raise, ast.JoinedStr, ast.AnnAssign, ast.arguments, ast.Import, ast.ImportFrom)):
        if isinstance(tree, ast.AnnAssign) and tree.value is not None and not isinstance(tree.value, ast.Constant):
            yield from places(tree.value)
        return
    yield tree
    skipped = {"decorator_list", "returns", "annotation", "bases"}
    for name, value in ast.iter_fields(tree):
        if name in skipped:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from places(child)


def changes(node: ast.AST) -> Iterator[tuple[Any, Any]]:
    """(change, undo) for each fault of one node; change returns what undo needs."""

    def setter(owner: Any, name: str, value: Any) -> tuple[Any, Any]:
        def change() -> Any:
            old = getattr(owner, name)
            setattr(owner, name, value)
            return old

        return change, lambda old: setattr(owner, name, old)

    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        yield setter(node, "ops", [SWAPS[type(node.ops[0])]()])
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        yield setter(node, "op", SWAPS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield setter(node, "op", ast.UAdd())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
        yield setter(node, "operand", ast.UnaryOp(copy.copy(node.op), node.operand))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield setter(node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield setter(node, "value", node.value + 1 if isinstance(node.value, int) else node.value * 10)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
        yield setter(node.func, "id", NAMES[node.func.id])
    elif isinstance(node, ast.If) and not node.orelse and any(isinstance(s, ast.Raise) for s in node.body):
        yield setter(node, "test", ast.Constant(False))


class Calls(NamedTuple):
    """seen: test → (module, first line) of the functions it calls. seconds: test → how long it takes."""

    seen: dict[str, list[tuple[str, int]]]
    seconds: dict[str, float]

    def through(self) -> dict[tuple[str, int], list[str]]:
        """(module, first line of a function) → the tests that call it, the quickest first."""
        found: dict[tuple[str, int], list[str]] = {}
        for test in sorted(self.seconds, key=self.seconds.__getitem__):
            for module, line in self.seen.get(test, []):
                found.setdefault((module, line), []).append(test)
        return found


class Recorder:
    """A pytest plugin: which functions of the package each test calls, and how long it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.seen: dict[str, list[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_protocol(self, item: Any) -> None:
        self.codes: set[Any] = set()
        self.began = time.perf_counter()
        sys.settrace(self._call)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        sys.settrace(None)
        self.seconds[nodeid] = time.perf_counter() - self.began
        own = [c for c in self.codes if c.co_filename.startswith(self.folder)]
        self.seen[nodeid] = [(Path(c.co_filename).stem, c.co_firstlineno) for c in own]

    def _call(self, frame: Any, event: str, argument: Any) -> None:
        self.codes.add(frame.f_code)


def run_tests(source: Path, tests: list[str], recorder: Recorder | None, into: Path | None) -> int:
    """Runs tests against a copy of the package in this process, which should be a child; what is said goes to a file
    beside `into`."""
    os.setpgrp()
    quiet = os.open(os.devnull if into is None else into.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(source))
    import pytest
    from hypothesis import settings as examples

    examples.register_profile("mutate", deadline=None, database=None)
    examples.load_profile("mutate")
    stop = ["-x"] if recorder is None else []
    settings = ["-q", "-p", "no:cacheprovider", "--noconftest", "-o", "addopts=", *REWRITE, *stop]
    status = pytest.main([*settings, "--rootdir", str(source.parent), *tests], plugins=[recorder] if recorder else [])
    if recorder is not None and into is not None:
        into.write_text(json.dumps([recorder.seen, recorder.seconds]))
    return int(status)


def in_child(
    source: Path, tests: list[str], limit: float, recorder: Recorder | None = None, into: Path | None = None
) -> int:
    """Runs tests against a copy of the package in a forked process; its exit status, or −1 where it took too long."""
    pid = os.fork()
    if pid == 0:
        try:
            status = run_tests(source, tests, recorder, into)
        except BaseException:  # a child must end here, whatever happens, or it would clean up for its parent
            traceback.print_exc()
            status = 99
        sys.stderr.flush()
        os._exit(status)
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


def record(source: Path, folder: Path) -> Calls:
    """The calls of every test, from one run without a fault."""
    tests = [str(p) for p in sorted((folder / "tests/solve").glob("test_*.py")) if p.name not in LEFT_OUT]
    into = folder / "calls.json"
    if in_child(source, tests, 7200, Recorder(source / "twofold/solve"), into) != 0:
        said = into.with_suffix(".txt").read_text()
        raise SystemExit(f"{said[-2000:]}\nthe tests fail without a fault: repair that first")
    return Calls(*json.loads(into.read_text()))


def within(tests: list[str], seconds: dict[str, float], limit: float) -> list[str]:
    """The first tests that fit into a time, and always ten."""
    spent = accumulate(seconds[t] for t in tests)
    return [t for k, (t, s) in enumerate(zip(tests, spent, strict=True)) if k < 10 or s < limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="module names without .py; all without one")
    parser.add_argument("--sample", type=int, help="this many faults, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--seconds", type=float, default=120, help="of tests for one fault; the quickest go first")
    parser.add_argument("--calls", type=Path, help="a file that keeps which test calls what, while neither changes")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = [p for p in sorted((ROOT / PACKAGE).glob("*.py")) if not arguments.modules or p.stem in arguments.modules]
    planted = [fault for path in paths for fault in faults(path)]
    random.Random(arguments.seed).shuffle(planted)
    planted = planted[: arguments.sample]
    for name in ("torch", "hypothesis", "pytest"):  # before the processes part, so that each need not
        importlib.import_module(name)
    began, survivors, killed, unseen = time.monotonic(), [], 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "src"
        (source / "twofold").mkdir(parents=True)
        shutil.copy(ROOT / "src/twofold/__init__.py", source / "twofold/__init__.py")
        shutil.copytree(ROOT / PACKAGE, source / "twofold/solve", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests/solve", folder / "tests/solve", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        kept: Path | None = arguments.calls
        calls = Calls(*json.loads(kept.read_text())) if kept is not None and kept.exists() else record(source, folder)
        if kept is not None:
            kept.write_text(json.dumps(calls))
        through, seconds = calls.through(), calls.seconds
        print(f"{len(seconds)} tests in {sum(seconds.values()):.0f} s; {len(planted)} faults", flush=True)
        for fault in planted:
            if arguments.minutes and time.monotonic() - began > 60 * arguments.minutes:
                break
            tests = within(through.get((fault.module, fault.function), []), seconds, arguments.seconds)
            place = source / "twofold/solve" / f"{fault.module}.py"
            whole = place.read_text()
            place.write_text(fault.source)
            limit = 30 + 10 * sum(seconds[t] for t in tests)
            found = in_child(source, [str(folder / t) for t in tests], limit) if tests else 0
            place.write_text(whole)
            if found == 0:
                unseen += not tests
                survivors.append(fault)
                note = "" if tests else "  (no test)"
                print(f"survived  {fault.module}.py:{fault.line}  {fault.what}{note}", flush=True)
            else:
                killed += 1
    total = killed + len(survivors)
    score = 100 * killed / max(total, 1)
    print(f"killed {killed} of {total} faults: {score:.1f} %  ({unseen} survivors in functions without a test)")


if __name__ == "__main__":
    main()
