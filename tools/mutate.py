"""Mutation testing of `twofold.solve`: small faults are planted one by one, and each must make a test fail.

    python tools/mutate.py                                       every fault; an hour or more
    python tools/mutate.py --share 0.2 --seed 1                  a fifth of the faults of each module, drawn at random
    python tools/mutate.py implicit unroll                       two modules
    python tools/mutate.py --share 0.2 --minutes 8 --json FILE   stops after 8 minutes; the same call continues

A fault is one changed comparison, sign, arithmetic operator, number, `and`/`or`, `not`, `any`/`all`, `min`/`max`, or
one refusal removed, in a function or a class attribute. Left alone are defaults, annotations, texts, seeds, and numbers
up to 1e-20, which only avoid a division by zero.

The tests are collected once, and run once to see which of them execute which line. Each fault is then planted in a
forked process, in the code objects and in a copy of the source (for processes that a test starts), and meets the tests
of its line: those first that are quick and execute few other lines. The first failure ends it; so does ten times the
time that the tests take without a fault. Nothing is written outside a temporary folder, `build/` and the result.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import inspect
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/twofold/solve"
PROGRESS = ROOT / "build" / "mutation.json"
LEFT_OUT = {  # they look at files or run programs, so they never see a fault; or measure the memory of the process
    "test_examples.py",
    "test_public_names.py",
    "test_solve_is_documented.py",
    "test_the_bilevel_page_runs.py",
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
BROKEN = 2
FAILED = 10  # exit status of a child whose first test failed; one more for the second, and so on
NAMES = {"any": "all", "all": "any", "min": "max", "max": "min"}

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "params",
        "dot",
        "products.append(_product(a, b, per_sample)) or a  →  products.append(_product(a, b, per_sample)) and a",
    ): "the tree that `over` builds here is not used",
    ("krylov", "minres", "0.0  →  1.0"): "a start value that multiplies zero vectors, or the scale of rounding",
    ("krylov", "minres", "1.0  →  10.0"): "a start value that multiplies zero vectors",
    ("krylov", "nystrom", "10  →  11"): "a shift of the size of rounding, taken off again",
    ("equilibrium", "Broyden.advance", "True  →  False"): "lengths are compared with one another alone",
    ("adjoint_equation", "NormalEquations.solve", "10  →  11"): "a margin; the caller checks the residual",
    (
        "watch",
        "_Calls.__torch_function__",
        "name == 'instance_norm'  →  name != 'instance_norm'",
    ): "torch always hands the flag over",
    ("implicit", "_newton_length", "100  →  101"): "a margin for rounding",
    ("solvers", "Anderson.advance", "10  →  11"): "a margin for rounding",
    ("solvers", "require_converged", "1  →  2"): "which sample's numbers the message shows",
    ("linear", "_solve_spd", "500  →  501"): "a limit that is never met",
    ("second_order", "_DifferenceProducts._require_one_function", "0.0  →  1.0"): "a branch for the type checker",
    ("equilibrium", "Broyden.advance", "1  →  2"): "a divisor where the quotient is not used",
    ("second_order", "_DifferenceProducts._require_one_function", "1000  →  1001"): "a margin for rounding",
    ("unroll", "_require_same", "4  →  5"): "a margin for rounding",
    ("adaptive", "_certified", "1000.0  →  10000.0"): "a margin for rounding",
    ("implicit", "Neumann.inverse", "0.0  →  1.0"): "a number of the message, or of a branch for `terms=0`",
    ("streams", "Draws.__init__", "2  →  3"): "one more draw is watched",
    (
        "meta",
        "curvature",
        "1 / float(norm(slope).clamp_min(1e-30))  →  1 * float(norm(slope).clamp_min(1e-30))",
    ): "the power iteration starts elsewhere",
}
"""(module, function, what the fault changes) → why no test can notice it."""


class Fault(NamedTuple):
    """One planted fault. path: names of the class and the function, or of the class and its attribute. first, last: the
    lines of the statement. what: before → after. number: of this fault among those of the module."""

    module: str
    number: int
    path: tuple[str, ...]
    first: int
    last: int
    what: str

    @property
    def key(self) -> str:
        return f"{self.module} {self.number}"


class Place(NamedTuple):
    """A node where a fault may be planted, with the names around it and the lines of its statement."""

    node: ast.AST
    path: tuple[str, ...]
    first: int
    last: int


def faults(module: str, source: str) -> Iterator[tuple[Fault, ast.Module]]:
    """Every fault of one module, in the order of its lines, each with the faulty tree, which the next one changes."""
    tree = ast.parse(source)
    number = 0
    for place in list(places(tree)):
        for change, undo in changes(place.node):
            before = shown(place.node)
            old = change()
            what = f"{before}  →  {'pass' if isinstance(place.node, ast.If) else shown(place.node)}"[:160]
            yield Fault(module, number, place.path, place.first, place.last, what), tree
            undo(old)
            number += 1


def shown(node: ast.AST) -> str:
    return f"if {ast.unparse(node.test)}: raise" if isinstance(node, ast.If) else ast.unparse(node)


def places(tree: ast.Module) -> Iterator[Place]:
    """Where faults may be planted: in functions and methods, and in the plain attributes of classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield from within(node, (node.name,))
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    yield from within(part, (node.name, part.name))
                elif isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant):
                    name = ast.unparse(part.targets[0])
                    yield Place(part.value, (node.name, name), part.lineno, part.lineno)


def within(tree: ast.AST, path: tuple[str, ...], lines: tuple[int, int] = (0, 0)) -> Iterator[Place]:
    """The nodes below a tree but for annotations, defaults, decorators, documentation and texts of errors."""
    for name, value in ast.iter_fields(tree):
        if name in ("decorator_list", "returns", "annotation", "args") and not isinstance(tree, ast.Call):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.JoinedStr)):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":  # of zip: a check of our own code
                continue
            if isinstance(tree, ast.Call) and ast.unparse(tree.func).endswith("manual_seed"):
                continue
            # Of an `if`, a loop and the like the head counts alone.
            part = child.test if isinstance(child, ast.If) else child
            head = isinstance(tree, ast.stmt) and hasattr(tree, "body")
            whole = isinstance(child, ast.stmt) and not hasattr(child, "body")
            around = lines
            if isinstance(part, (ast.stmt, ast.expr)) and (part is not child or head or whole):
                around = part.lineno, part.end_lineno or part.lineno
            yield Place(child, path, *around)
            yield from within(child, path, around)


def changes(node: ast.AST) -> Iterator[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """(change, undo) for each fault of one node; change returns what undo needs."""

    def setter(owner: Any, name: str, value: Any) -> tuple[Callable[[], Any], Callable[[Any], None]]:
        def change() -> Any:
            old = getattr(owner, name)
            setattr(owner, name, value)
            return old

        return change, lambda old: setattr(owner, name, old)

    match node:
        case ast.Compare(ops=[operator]) if type(operator) in SWAPS:
            yield setter(node, "ops", [SWAPS[type(operator)]()])
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in SWAPS:
            yield setter(node, "op", SWAPS[type(operator)]())
        case ast.UnaryOp(op=ast.USub()):
            yield setter(node, "op", ast.UAdd())
        case ast.UnaryOp(op=ast.Not() | ast.Invert() as operator, operand=operand):
            yield setter(node, "operand", ast.UnaryOp(operator, operand))
        case ast.Constant(value=bool(value)):
            yield setter(node, "value", not value)
        case ast.Constant(value=int(value)):
            yield setter(node, "value", value + 1)
        case ast.Constant(value=float(value)) if not 0 < abs(value) <= 1e-20:
            yield setter(node, "value", 10 * value if value else 1.0)
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield setter(node.func, "id", NAMES[name])
        case ast.If(orelse=[], body=body) if any(isinstance(statement, ast.Raise) for statement in body):
            yield setter(node, "test", ast.Constant(False))


def plant(fault: Fault, tree: ast.Module, place: Path) -> None:
    """Puts a fault into the package as this process has imported it, and into its file."""
    place.write_text(ast.unparse(tree))
    module = importlib.import_module(f"twofold.solve.{fault.module}")
    owner: Any = vars(module)[fault.path[0]]
    code = compiled(ast.fix_missing_locations(tree), str(place), fault.path)
    if code is None:  # an attribute of a class
        body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == fault.path[0])
        assign = next(n for n in body.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == fault.path[1])
        setattr(owner, fault.path[1], ast.literal_eval(assign.value))
        return
    if len(fault.path) == 2:
        owner = vars(owner)[fault.path[1]]
        owner = owner.fget if isinstance(owner, property) else getattr(owner, "__func__", owner)
    owner.__code__ = code


def compiled(tree: ast.Module, name: str, path: tuple[str, ...]) -> CodeType | None:
    """The code of one function or method of a module; None where the path is not that of a function."""
    code: CodeType | None = compile(tree, name, "exec", dont_inherit=True)
    for part in path:
        inner = [c for c in (code.co_consts if code else ()) if isinstance(c, CodeType) and c.co_name == part]
        code = inner[0] if inner else None
    return code


class Seen(NamedTuple):
    """What one test executes without a fault. lines: module → lines. seconds: of a processor, the tracer's included."""

    lines: dict[str, list[int]]
    seconds: float


class Faulty:
    """A pytest plugin: instead of running the collected tests, runs those of each fault, each in a forked process."""

    def __init__(self, source: Path, sample: list[Fault], done: dict[str, Any], settings: argparse.Namespace) -> None:
        self.folder, self.sample, self.done, self.settings = source / "twofold/solve", sample, done, settings
        self.failed = False

    def pytest_collection(self) -> None:
        from hypothesis import settings as examples  # not earlier: pytest rewrites it as it loads it

        examples.register_profile("mutate", deadline=None, database=None, derandomize=True)
        examples.load_profile("mutate")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or report.failed

    def pytest_runtestloop(self, session: Any) -> bool:
        session.config.pluginmanager.unregister(name="terminalreporter")
        self.until = time.monotonic() + 60 * self.settings.minutes
        items = {item.nodeid: item for item in session.items}
        tests = self.done["tests"]
        missing = {name: item for name, item in items.items() if name not in tests}
        if missing:
            into = self.folder.parent / "seen.json"
            in_child(lambda: self._record(missing, into), math.inf)
            found = json.loads(into.read_text())
            if isinstance(found, str):
                raise SystemExit(f"{found} fails without a fault: repair that first")
            tests.update(found)
            if len(tests) < len(items):
                return True
        seen = {name: Seen(*facts) for name, facts in tests.items()}
        say(f"{len(items)} tests, {sum(s.seconds for s in seen.values()):.0f} s; {len(self.sample)} faults drawn")
        sources = {path.stem: path.read_text() for path in self.folder.glob("*.py")}
        wanted = {fault.key for fault in self.sample}
        outcomes = self.done["outcomes"]
        for module, source in sources.items():
            for fault, tree in faults(module, source):
                if fault.key not in wanted or fault.key in outcomes:
                    continue
                if time.monotonic() > self.until:
                    return True
                tests = tests_of(fault, seen, self.settings.seconds)
                place = self.folder / f"{module}.py"
                limit = 10 + 10 * sum(seen[test].seconds for test in tests)
                status = in_child(partial(self._try, fault, tree, place, items, tests), limit)
                place.write_text(source)
                if status == BROKEN:
                    raise SystemExit(f"{fault} could not be planted")
                killer = tests[status - FAILED] if status >= FAILED else "stopped"
                outcomes[fault.key] = "survived" if status == 0 else killer
                if status == 0:
                    say(f"survived  {module}.py:{fault.first}  {fault.what}  ({len(tests)} tests)")
        return True

    def _try(self, fault: Fault, tree: ast.Module, place: Path, items: Mapping[str, Any], tests: list[str]) -> int:
        plant(fault, tree, place)
        for number, test in enumerate(tests):
            self._run(items[test])
            if self.failed:
                return FAILED + number
        return 0

    def _record(self, items: Mapping[str, Any], into: Path) -> int:
        inside, found = str(self.folder), {}
        for name, item in items.items():
            if time.monotonic() > self.until:
                break
            lines: set[tuple[str, int]] = set()

            def line(frame: Any, event: str, _: Any, add: Callable[[tuple[str, int]], None] = lines.add) -> Any:
                add((frame.f_code.co_filename, frame.f_lineno))
                return line

            def call(frame: Any, event: str, _: Any, line: Any = line) -> Any:
                return line if frame.f_code.co_filename.startswith(inside) else None

            began = time.process_time()
            sys.settrace(call)
            self._run(item)
            sys.settrace(None)
            if self.failed:
                into.write_text(json.dumps(name))
                return 1
            spent = round(time.process_time() - began, 3)
            modules = {file: Path(file).stem for file, _ in lines}
            found[name] = Seen({m: sorted(n for f, n in lines if f == file) for file, m in modules.items()}, spent)
        into.write_text(json.dumps(found))
        return 0

    def _run(self, item: Any) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


def tests_of(fault: Fault, seen: Mapping[str, Seen], limit: float) -> list[str]:
    """The tests that execute a line of the fault's statement, the particular and quick ones first; as many as fit into
    a time, but ten at least. Where the tracer saw none, those of its module."""
    lines = set(range(fault.first, fault.last + 1))
    found = [test for test, facts in seen.items() if lines.intersection(facts.lines.get(fault.module, ()))]
    found = found or [test for test, facts in seen.items() if fault.module in facts.lines]
    found.sort(key=lambda test: seen[test].seconds * sum(len(s) for s in seen[test].lines.values()))
    spent = 0.0
    chosen: list[str] = []
    for test in found:
        spent += seen[test].seconds
        if (spent > limit and len(chosen) >= 10) or len(chosen) == 255 - FAILED:
            break
        chosen.append(test)
    return chosen


def in_child(work: Callable[[], int], limit: float) -> int:
    """The status of a function run in a forked process; −1 where it took more than so many seconds of a processor, or
    twenty times as many in all, BROKEN where it raised."""
    pid = os.fork()
    if pid == 0:
        os.setpgrp()
        if limit < math.inf:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        status = BROKEN
        with contextlib.suppress(BaseException):  # a child ends here, whatever happens, or it would run as its parent
            try:
                status = work()
            except BaseException:
                traceback.print_exc()
        os._exit(status)
    until = time.monotonic() + 20 * limit
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return max(os.waitstatus_to_exitcode(status), -1)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


def say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


def drawn(planted: list[Fault], share: float, seed: int) -> list[Fault]:
    """A share of the faults of each module, rounded up. What a seed draws follows from the faults' text, not from their
    place, so that a change of the code elsewhere changes little of it."""
    modules: dict[str, list[tuple[str, Fault]]] = {}
    repeats: dict[str, int] = {}
    for fault in planted:
        text = f"{seed} {fault.module} {fault.path} {fault.what}"
        repeats[text] = repeats.get(text, 0) + 1
        rank = hashlib.sha256(f"{text} {repeats[text]}".encode()).hexdigest()
        modules.setdefault(fault.module, []).append((rank, fault))
    return [f for part in modules.values() for _, f in sorted(part)[: math.ceil(share * len(part))]]


def interval(killed: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(end, 3) for end in interval(95, 100)]
    [0.888, 0.978]
    """
    z, p = 1.959964, killed / total
    middle, half = p + z**2 / (2 * total), z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return (middle - half) / (1 + z**2 / total), (middle + half) / (1 + z**2 / total)


def report(
    sample: list[Fault], planted: list[Fault], outcomes: Mapping[str, str], settings: argparse.Namespace
) -> dict[str, Any]:
    """What `--json` writes."""
    left = [fault for fault in sample if outcomes[fault.key] == "survived"]
    killed, total = len(sample) - len(left), len(sample)
    modules = {
        name: {
            "faults": sum(f.module == name for f in planted),
            "drawn": sum(f.module == name for f in sample),
            "survived": sum(f.module == name for f in left),
        }
        for name in dict.fromkeys(f.module for f in planted)
    }
    survivors = [
        {
            "module": f.module,
            "line": f.first,
            "what": f.what,
            "equivalent": EQUIVALENT.get((f.module, ".".join(f.path), f.what)),
        }
        for f in left
    ]
    return {
        "seed": settings.seed,
        "share": settings.share,
        "seconds": settings.seconds,
        "faults": len(planted),
        "drawn": total,
        "killed": killed,
        "score": round(killed / total, 4),
        "interval": [round(end, 4) for end in interval(killed, total)],
        "modules": modules,
        "survivors": survivors,
    }


RESULTS = ("mutation",)


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/solve.md, from `benchmarks/results/mutation.json`."""
    found = facts["mutation"]
    low, high = found["interval"]
    body = [
        f"| `{m}` | {c['faults']} | {c['drawn']} | {c['drawn'] - c['survived']} |" for m, c in found["modules"].items()
    ]
    score = f"{found['killed']}: {found['score']:.1%} ({low:.1%} to {high:.1%})"
    total = f"| all | {found['faults']} | {found['drawn']} | {score} |"
    left = []
    for survivor in found["survivors"]:
        what = survivor["what"].replace("|", "\\|")
        why = survivor["equivalent"] or "not explained"
        left.append(f"| `{survivor['module']}`, line {survivor['line']} | `{what}` | {why} |")
    return {
        "mutation": "\n".join(
            ["| module | faults | drawn | found by a test |", "| --- | --- | --- | --- |", total, *body]
        ),
        "mutation_survivors": "\n".join(["| where | fault | why no test fails |", "| --- | --- | --- |", *left]),
    }


def digest(*paths: Path, text: str = "") -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths) + text.encode()).hexdigest()


def still_valid(done: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call found out and what holds still: nothing where the package or the way faults are planted has
    changed, else what rests on test files that have not; a fault that survived is tried again where any has."""
    way = "".join(inspect.getsource(function) for function in (places, within, changes, plant, tests_of))
    package = digest(*sorted((ROOT / PACKAGE).glob("*.py")), text=way)
    files = {path.name: digest(path) for path in sorted((ROOT / "tests/solve").glob("*.py"))}
    if done.get("package") != package:
        return {"package": package, "files": files, "tests": {}, "outcomes": {}}

    def unchanged(test: str) -> bool:
        name = Path(test.partition("::")[0]).name
        return name not in files or files[name] == done["files"].get(name)

    same = files == done["files"]
    return {
        "package": package,
        "files": files,
        "tests": {test: seen for test, seen in done["tests"].items() if unchanged(test)},
        "outcomes": {
            fault: found for fault, found in done["outcomes"].items() if (unchanged(found) if "::" in found else same)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="module names without .py; all without one")
    parser.add_argument("--share", type=float, default=1.0, help="of the faults of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hold-out", type=int, metavar="SEED", help="leave out what SEED draws")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; call again to continue")
    parser.add_argument("--seconds", type=float, default=60, help="of tests for one fault")
    parser.add_argument("--json", type=Path, help="the result, once all drawn faults have been tried")
    settings = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = [p for p in sorted((ROOT / PACKAGE).glob("*.py")) if not settings.modules or p.stem in settings.modules]
    planted = [fault for path in paths for fault, _ in faults(path.stem, path.read_text())]
    kept = set(drawn(planted, settings.share, settings.hold_out)) if settings.hold_out is not None else set()
    sample = [fault for fault in drawn(planted, settings.share, settings.seed) if fault not in kept]
    done = still_valid(json.loads(PROGRESS.read_text()) if PROGRESS.exists() else {})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "src"
        (source / "twofold").mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copy(ROOT / "src/twofold/__init__.py", source / "twofold/__init__.py")
        shutil.copytree(ROOT / PACKAGE, source / "twofold/solve", ignore=ignored)
        shutil.copytree(ROOT / "tests/solve", folder / "tests/solve", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        run_tests(folder, source, Faulty(source, sample, done, settings))
    PROGRESS.parent.mkdir(exist_ok=True)
    PROGRESS.write_text(json.dumps(done))
    left = sum(fault.key not in done["outcomes"] for fault in sample)
    if left:
        say(f"{left} of {len(sample)} faults are left; the same call continues")
        return
    facts = report(sample, planted, done["outcomes"], settings)
    low, high = facts["interval"]
    say(
        f"killed {facts['killed']} of {facts['drawn']} (of {facts['faults']}): {facts['score']:.1%}, "
        f"95 % interval {low:.1%} to {high:.1%}"
    )
    if settings.json is not None:
        settings.json.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def run_tests(folder: Path, source: Path, plugin: Faulty) -> None:
    """Collects the tests of the copy and hands them to the plugin."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(source))
    os.environ["PYTHONPATH"] = str(source)  # for processes that tests start
    import pytest

    tests = [str(p) for p in sorted((folder / "tests/solve").glob("test_*.py")) if p.name not in LEFT_OUT]
    options = ["-q", "-pno:cacheprovider", "-pno:xdist", "--noconftest", "-o", "addopts=", "--doctest-modules"]
    pytest.main([*options, "--rootdir", str(folder), *tests, str(source / "twofold/solve")], plugins=[plugin])


if __name__ == "__main__":
    main()
