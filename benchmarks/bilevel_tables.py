"""The tables of docs/bilevel.md, from benchmarks/results/bilevel.json."""

from __future__ import annotations

from typing import Any

from harness import table

RESULTS = ("bilevel",)
PROBLEMS = ("quadratics", "regularisation", "cleaning")


def tables(results: dict[str, Any]) -> dict[str, str]:
    found = results["bilevel"]
    made = {f"bilevel_{problem}": of_problem(found["problems"].get(problem), problem) for problem in PROBLEMS}
    return {**made, "bilevel_left_out": left_out(found)}


def of_problem(found: dict[str, Any] | None, problem: str) -> str:
    """Calls to three levels of suboptimality, CPU seconds, and where the budget ended; our methods, then the peers."""
    if found is None:
        return table([problem], [["not measured: run the command above"]])
    body = []
    for method, facts in found["methods"].items():
        line = [f"`{method}`" if method.isidentifier() else method]
        line += [
            "" if cell is None else f"{cell['calls']:.0f} ({cell['products']:.0f})"
            for cell in facts["reached"].values()
        ]
        one = facts["reached"]["0.01"]
        line.append("" if one is None else f"{one['seconds']:.2f} s")
        low, high = facts["final_quartiles"]
        body.append([*line, f"{facts['final']:.1e} ({low:.0e} … {high:.0e})", f"{facts['upper_step']:g}"])
    targets = [f"calls to {target} (products)" for target in ("10 %", "1 %", "0.1 %")]
    text = table(["", *targets, "CPU to 1 %", "suboptimality at the end (quartiles)", "upper step"], body)
    return f"{text}\n\n![Suboptimality: {problem}](pictures/bilevel-{problem}.png)"


def left_out(found: dict[str, Any]) -> str:
    body = [[problem, "all", reason] for problem, reason in found["skipped"].items()]
    for problem, facts in found["problems"].items():
        body += [[problem, f"`{method}`", reason] for method, reason in facts["skipped"].items()]
    return table(["problem", "method", "left out because"], body or [["", "", "nothing was"]])
