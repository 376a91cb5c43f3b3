"""Writes the tables of README and docs from committed results.

    python docs/tables.py            writes them
    python docs/tables.py --check    exits 1 if one differs from what its file says

A table stands between `<!-- table NAME -->` and `<!-- end -->`. Every benchmark makes the tables of its own results
(`tables` in its module); this program collects them.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

import harness  # noqa: E402

BENCHMARKS = (
    "bilevel_tables",
    "cards",
    "claims",
    "classical",
    "controls",
    "convergence",
    "fixed_losses",
    "gkm",
    "guidance",
    "hadamard_guided",
    "hadamard_maps",
    "hypergradient",
    "large",
    "loss_strategies",
    "mutate",
    "paper_a",
    "paper_b",
    "paper_c",
    "peers_tables",
    "restore",
    "runtimes",
    "searches",
    "shipped",
    "steering",
    "train",
    "unrolling",
)
"""The modules of `benchmarks/` and `tools/` that define `tables`."""


def collected() -> dict[str, str]:
    """Every table by name. Raises ValueError where two benchmarks make one of the same name."""
    found: dict[str, str] = {}
    for name in BENCHMARKS:
        module = importlib.import_module(name)
        files = getattr(module, "RESULTS", None)
        facts = harness.result(name) if files is None else {file: harness.result(file) for file in files}
        for title, text in module.tables(facts).items():
            if title in found:
                raise ValueError(f"two benchmarks make the table {title!r}; the second is {name}")
            found[title] = text
    return found


def renewed(text: str, tables: dict[str, str]) -> str:
    """The text with every table between its marks replaced. Raises KeyError for a table that no benchmark makes."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables[found[2]]}\n{found[3]}"

    return re.sub(r"(<!-- table (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is out of date")
    check = parser.parse_args().check
    stale, tables = [], collected()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        new = renewed(text, tables)
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'out of date; run make docs' if check else 'written'}")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
