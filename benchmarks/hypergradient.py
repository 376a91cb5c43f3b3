"""Time and peak memory of hypergradients: this library, TorchOpt, higher and, where it is installed, Betty.

    python benchmarks/hypergradient.py --json benchmarks/results/hypergradient.json

Three bilevel problems, the same data and start for everybody, plain gradient descent below, float32, one thread.
Time: CPU time of the process, libraries interleaved, the best of several rounds, so that a noisy machine
cannot favour one of them. Memory: every allocation and release of a tensor, as torch's own profiler records
them; the peak of what was held above the start. It is exact, knows nothing of caches and pages, and does not
depend on the machine's load. For the long horizon the resident set of a fresh process is measured too (VmHWM,
reset once the code is loaded). Betty has no exact unrolling: its engine's rounds are timed beside ours.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from harness import cpu_seconds, figure, fresh_process, parser, peak_growth, read, table, write
from hypergradient_problems import (
    CASES,
    UNROLLED,
    Case,
    ParameterHolder,
    differentiate,
    ours,
    reweighting,
    weight_decay,
)
from twofold.solve import (
    Aggregated,
    Bilevel,
    CentralDifference,
    ConjugateGradient,
    Exact,
    GradientDescent,
    Neumann,
    OneStepUnrolled,
    Settled,
    SolveError,
    Strategy,
    Truncated,
    Unrolled,
)
from twofold.solve.dynamics import lower_gradient
from twofold.solve.params import norm

HORIZON = 64
LONG = 1000
LAW = (4, 16, 64, 256)
MIB = 2**20
ANY = Settled(relative=math.inf)  # costs are compared where the lower level is not at its minimum yet


def strategies(case: Case, steps: int) -> dict[str, Strategy]:
    """What the laws of memory and cost are drawn for; 20 terms or iterations wherever there is a linear equation."""
    descent = GradientDescent(case.rate)
    return {
        "Unrolled": Unrolled(steps, descent),
        "Unrolled, √T states": Unrolled(steps, descent, math.isqrt(steps)),
        "Unrolled, aggregated": Unrolled(steps, Aggregated(descent, mu=0.1)),
        "Truncated, last 8": Truncated(steps, min(8, steps), descent),
        "Neumann": Neumann(steps, descent, case.rate, 20, tolerance=1.0, settled=ANY),
        "Neumann, differences": Neumann(steps, descent, case.rate, 20, 1.0, CentralDifference(), ANY),
        "ConjugateGradient": ConjugateGradient(steps, descent, 20, tolerance=1.0, settled=ANY),
        "OneStepUnrolled": OneStepUnrolled(case.rate),
    }


def peak_mib(work: Callable[[], object]) -> float:
    """The most that tensors held at once while `work` ran, beyond what they held before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))) / MIB


def resident_mib(case: Case, steps: int) -> float:
    """How far the resident set of this process, which should be fresh, grows at its peak; needs Linux."""

    ours(case, 2)
    gc.collect()
    return peak_growth(lambda: ours(case, steps)) / MIB


def betty_seconds(case: Case, kind: str, rounds: int) -> float:
    """Wall-clock seconds a round of Betty's engine: one lower step and one hypergradient of `kind`."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    class Upper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(case.upper.clone())

        def forward(self) -> Tensor:
            return self.w

    class UpperProblem(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: object) -> Tensor:
            return self.lower(case.problem.upper, self.module())

    class LowerProblem(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: object) -> Tensor:
            return self.module(case.problem.lower, self.upper())

    holder, leader = ParameterHolder(case.lower), Upper()
    loader = [(torch.zeros(1),)]
    settings = {
        "type": kind,
        "unroll_steps": 1,
        "neumann_iterations": 20,
        "neumann_alpha": case.rate,
        "cg_iterations": 20,
    }
    lower = LowerProblem(
        name="lower",
        module=holder,
        optimizer=torch.optim.SGD(holder.parameters(), case.rate),
        train_data_loader=loader,
        config=Config(**settings),
    )
    upper = UpperProblem(
        name="upper",
        module=leader,
        optimizer=torch.optim.SGD(leader.parameters(), 0.0),
        train_data_loader=loader,
        config=Config(retain_graph=True, allow_unused=True),
    )
    engine = Engine(
        config=EngineConfig(train_iters=rounds, logger_type="none"),
        problems=[upper, lower],
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )
    before = time.process_time()
    engine.run()
    return (time.process_time() - before) / rounds


def unrolled_exactly(rounds: int) -> dict[str, dict[str, object]]:
    """Exact unrolling over the same steps: ours, TorchOpt's and higher's."""
    table: dict[str, dict[str, object]] = {}
    for name, make in CASES.items():
        case = make()
        gradients = {key: function(case, HORIZON) for key, function in UNROLLED.items()}
        reference = gradients["torchopt"]
        table[name] = {
            "seconds": cpu_seconds({k: partial(f, case, HORIZON) for k, f in UNROLLED.items()}, rounds, at_least=5),
            "peak_mib": {key: peak_mib(partial(f, case, HORIZON)) for key, f in UNROLLED.items()},
            "relative_difference": {k: (norm(g - reference) / norm(reference)).item() for k, g in gradients.items()},
        }
        print(name, json.dumps(table[name], indent=1, ensure_ascii=False), flush=True)
    return table


def costs(rounds: int) -> dict[str, dict[str, float]]:
    """What the other strategies cost in gradients of the lower loss, timed interleaved with one."""
    table = {}
    for name, make in CASES.items():
        case = make()
        descent = GradientDescent(case.rate)
        work: dict[str, Callable[[], object]] = {
            "gradient": partial(lower_gradient, case.problem, case.upper, case.lower),
            "upper": partial(lower_gradient, Bilevel(case.problem.upper, case.problem.upper), case.upper, case.lower),
        }
        for way, cross in (("exact", Exact()), ("differences", CentralDifference())):
            work[f"one step, {way}"] = partial(differentiate, case, OneStepUnrolled(case.rate, cross))
            for terms in (2, 12):  # with a tiny step: early in training a net's I − s ∇²f is no contraction
                few = Neumann(0, descent, case.rate / 100, terms, 1.0, cross, ANY)
                work[f"{terms} terms, {way}"] = partial(differentiate, case, few)
        seconds = cpu_seconds(work, rounds, at_least=5)
        unit = seconds["gradient"]
        table[name] = {"seconds_of_a_lower_gradient": unit}
        for way in ("exact", "differences"):
            each = (seconds[f"12 terms, {way}"] - seconds[f"2 terms, {way}"]) / 10
            table[name][f"lower_gradients_an_implicit_iteration, {way}"] = each / unit
            beyond = seconds[f"one step, {way}"] - seconds["gradient"] - seconds["upper"]
            table[name][f"lower_gradients_of_the_cross_derivative_of_one_step, {way}"] = beyond / unit
        print(name, json.dumps(table[name], indent=1), flush=True)
    return table


def memory_laws() -> dict[str, dict[int, float]]:
    """Peak MiB against the number of lower steps, for every strategy and both peers, on the weight-decay problem.

    It is the convex one, so no strategy is refused there.
    """
    case = weight_decay()
    laws: dict[str, dict[int, float]] = {}
    for method in ("torchopt", "higher"):
        laws[method] = {steps: peak_mib(partial(UNROLLED[method], case, steps)) for steps in LAW}
    for steps in LAW:
        for method, strategy in strategies(case, steps).items():
            laws.setdefault(method, {})[steps] = peak_mib(partial(differentiate, case, strategy))
    print(json.dumps(laws, ensure_ascii=False), flush=True)
    return laws


def long_horizon() -> dict[str, float]:
    """T = 1,000 on the reweighting problem: what a fresh process grew by at its peak, the worst of three."""
    runs = [json.loads(fresh_process(__file__, "--long"))["resident_mib"] for _ in range(3)]
    print("resident MiB", runs, flush=True)
    return {"resident_mib": max(runs), "least_resident_mib": min(runs)}


def betty(rounds: int) -> dict[str, object]:
    """Betty's rounds beside the same work done here, or why not."""
    if importlib.util.find_spec("betty") is None:
        return {"installed": False, "why": "betty-ml declares torch>=1.6.*, a specifier that pip ≥ 24 refuses"}
    table: dict[str, object] = {"installed": True}
    for name, make in CASES.items():
        case = make()
        row: dict[str, object] = {}
        for kind in ("darts", "neumann", "cg"):
            try:
                row[f"betty {kind}"] = betty_seconds(case, kind, rounds)
            except Exception as error:  # whatever a peer raises is the result
                row[f"betty {kind}"] = f"{type(error).__name__}: {error}"[:200]
        descent = GradientDescent(case.rate)
        same = {
            "twofold one step, differences": OneStepUnrolled(case.rate, CentralDifference()),
            "twofold neumann 20": Neumann(1, descent, case.rate, 20, 1.0, settled=ANY),
            "twofold cg 20": ConjugateGradient(1, descent, 20, 1.0, settled=ANY),
        }
        for key, strategy in same.items():
            try:
                row[key] = cpu_seconds({key: partial(differentiate, case, strategy)}, 3, at_least=5)[key]
            except SolveError as refused:
                row[key] = f"refused: {refused}"[:200]
        table[name] = row
        print(name, json.dumps(row, indent=1), flush=True)
    return table


def draw(laws: dict[str, dict[int, float]], beside: Path) -> None:
    drawing, axes = figure(1, (7.0, 4.5))
    for method, law in laws.items():
        axes.loglog(list(law), list(law.values()), "o-", label=method)
    axes.set(xlabel="lower steps T", ylabel="peak memory above the start, MiB", title="Hypergradient memory")
    axes.legend(fontsize=8)
    drawing.savefig(beside.with_suffix(".png"), dpi=110)


def summary(facts: dict[str, Any]) -> dict[str, Any]:
    """The numbers to look at first, each the worst of the three problems."""
    cost = facts["costs"].values()

    def ratios(way: str) -> dict[str, float]:
        rows = facts["unrolled"].values()
        least = [min(row["peak_mib"][peer] for peer in ("torchopt", "higher")) for row in rows]
        return {
            "memory_ratio_to_best_peer": max(r["peak_mib"][way] / m for r, m in zip(rows, least, strict=True)),
            "time_ratio_to_torchopt": max(r["seconds"][way] / r["seconds"]["torchopt"] for r in rows),
            "relative_difference": max(r["relative_difference"][way] for r in rows),
        }

    return {
        **ratios("twofold, 4 together"),
        "one_step_together": ratios("twofold"),
        "graphs_kept": ratios("twofold, graphs kept"),
        f"resident_mib_at_{LONG}": facts[f"horizon_{LONG}"]["resident_mib"],
        "lower_gradients_an_implicit_iteration": max(
            row["lower_gradients_an_implicit_iteration, differences"] for row in cost
        ),
        "lower_gradients_of_the_cross_derivative_of_one_step": max(
            row["lower_gradients_of_the_cross_derivative_of_one_step, differences"] for row in cost
        ),
        "note": "each number is the worst of the three problems; T = 64, 4 steps together, float32, one thread",
    }


PARTS: dict[str, Callable[[int], object]] = {
    "unrolled": unrolled_exactly,
    "costs": costs,
    "memory_laws_mib": lambda rounds: memory_laws(),
    f"horizon_{LONG}": lambda rounds: long_horizon(),
    "betty": lambda rounds: betty(20),
}


def unrolled_table(result: dict[str, Any]) -> str:
    """Exact unrolled hypergradients over 64 steps: time against TorchOpt, memory."""
    ways = {
        "twofold": "`Unrolled`",
        "twofold, √T states": "`Unrolled`, every 8th state kept",
        "twofold, 4 together": "`Unrolled`, 4 steps together",
        "twofold, graphs kept": "`Unrolled`, graphs kept (`graph_bytes=inf`)",
        "torchopt": "TorchOpt",
        "higher": "higher",
    }
    found = result["unrolled"]
    body = []
    for key, name in ways.items():
        if not all(key in facts["seconds"] for facts in found.values()):
            continue
        line = [name]
        for facts in found.values():
            ratio = facts["seconds"][key] / facts["seconds"]["torchopt"]
            line += [f"{1e3 * facts['seconds'][key]:,.0f} ms ({ratio:.2f}×)", f"{facts['peak_mib'][key]:.3g} MiB"]
        body.append(line)
    return table(["64 steps", *(f"{name}: {what}" for name in found for what in ("time", "memory"))], body)


def costs_table(result: dict[str, Any]) -> str:
    """What the other strategies cost, in gradients of the lower loss."""
    found = result["costs"]
    names = {
        "lower_gradients_an_implicit_iteration": "an iteration of `Neumann` or `ConjugateGradient`",
        "lower_gradients_of_the_cross_derivative_of_one_step": "the cross derivative of `OneStepUnrolled`",
    }
    body = [
        [f"{name}, `{cross}`", *(f"{facts[f'{key}, {way}']:.2f}" for facts in found.values())]
        for key, name in names.items()
        for way, cross in (("exact", "Exact"), ("differences", "CentralDifference"))
    ]
    return table(["gradients of the lower loss", *found], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "hypergradient_unrolled": unrolled_table(result),
        "hypergradient_costs": costs_table(result),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5, help="rounds of each timing; the best one counts")
    options.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="renew these parts of the JSON")
    options.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.long:
        print(json.dumps({"resident_mib": resident_mib(reweighting(), LONG)}))
        return
    path: Path | None = arguments.json
    facts: dict[str, Any] = read(path)
    for part in arguments.only:
        facts[part] = PARTS[part](arguments.rounds)
        write(path, facts)  # the last part takes as long as all others
    facts["versions"] = {name: version(name) for name in ("torchopt", "higher")}
    if set(PARTS) <= set(facts):
        facts = {"summary": summary(facts), **{name: found for name, found in facts.items() if name != "summary"}}
        print(json.dumps(facts["summary"], indent=1))
    if path is not None:
        write(path, facts)
        laws = facts.get("memory_laws_mib", {})
        draw({name: {int(k): mib for k, mib in law.items()} for name, law in laws.items()}, path)


if __name__ == "__main__":
    main()
