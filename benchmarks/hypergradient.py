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
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

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
    as_function,
    hypergradient,
)
from twofold.solve.dynamics import lower_gradient
from twofold.solve.params import norm

HORIZON = 64
LONG = 1000
LAW = (4, 16, 64, 256)
MIB = 2**20
ANY = Settled(relative=math.inf)  # costs are compared where the lower level is not at its minimum yet


class Case(NamedTuple):
    """A bilevel problem with its starts; rate: the step of the lower level."""

    problem: Bilevel
    upper: Tensor
    lower: dict[str, Tensor]
    rate: float


def weight_decay() -> Case:
    """One weight decay a feature, chosen on validation data: logistic regression, 1,000 samples, 100 features."""
    torch.manual_seed(0)
    features, samples = 100, 1000
    truth = torch.randn(features) * (torch.arange(features) < 20)
    x, xv = torch.randn(samples, features), torch.randn(samples // 4, features)
    y, yv = ((z @ truth + 2 * torch.randn(len(z)) > 0).float() for z in (x, xv))

    def fit(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(x @ u["weight"], y) + (w.exp() * u["weight"] ** 2).sum() / 2

    def validate(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(xv @ u["weight"], yv)

    return Case(Bilevel(validate, fit), torch.full((features,), -3.0), {"weight": torch.zeros(features)}, 0.5)


def reweighting() -> Case:
    """One weight a training sample, half of the labels wrong: a small convolutional net, 32 pictures of 28×28."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Softplus(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.Softplus(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(32 * 49, 4),
    )
    function, lower = as_function(net)
    x, t = _pictures(32)
    xv, tv = _pictures(32)
    t = torch.where(torch.rand(32) < 0.5, torch.randint(0, 4, (32,)), t)

    def fit(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return (F.cross_entropy(function(u, x), t, reduction="none") * w.sigmoid()).mean()

    def validate(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(function(u, xv), tv)

    return Case(Bilevel(validate, fit), torch.zeros(32), lower, 0.05)


class MixedNet(nn.Module):
    """Two nodes, each a softmax mixture of four operations, as DARTS relaxes them; the logits come from outside."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.threes = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.ones = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        h = self.stem(x)
        for three, one, mixture in zip(self.threes, self.ones, logits.softmax(1), strict=True):
            blurred = F.avg_pool2d(h, 3, stride=1, padding=1)
            h = mixture[0] * three(h).tanh() + mixture[1] * one(h).tanh() + mixture[2] * blurred + mixture[3] * h
        return x + self.head(h)


def mixed_operation() -> Case:
    """Architecture weights of a small denoiser, chosen on validation pictures: 16 crops of 24×24."""
    torch.manual_seed(0)
    net = MixedNet()
    function, lower = as_function(net)
    clean, held = (F.avg_pool2d(torch.rand(16, 1, 28, 28), 5, stride=1) for _ in range(2))
    noisy, noisy_held = (z + 0.1 * torch.randn_like(z) for z in (clean, held))

    def fit(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(function(u, noisy, w), clean)

    def validate(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(function(u, noisy_held, w), held)

    return Case(Bilevel(validate, fit), torch.zeros(2, 4), lower, 0.1)


CASES = {"weight decay": weight_decay, "reweighting": reweighting, "mixed operation": mixed_operation}


def ours(case: Case, steps: int, *, keep_every: int = 1) -> Tensor:
    return differentiate(case, Unrolled(steps, GradientDescent(case.rate), keep_every))


def differentiate(case: Case, strategy: Strategy) -> Tensor:
    return hypergradient(case.problem, case.upper, case.lower, strategy=strategy).gradient


def ours_sparse(case: Case, steps: int) -> Tensor:
    return ours(case, steps, keep_every=math.isqrt(steps))


def ours_together(case: Case, steps: int) -> Tensor:
    return differentiate(case, Unrolled(steps, GradientDescent(case.rate), together=4))


def ours_graphs(case: Case, steps: int) -> Tensor:
    return differentiate(case, Unrolled(steps, GradientDescent(case.rate), graph_bytes=math.inf))


def torchopt_unrolled(case: Case, steps: int) -> Tensor:
    import torchopt

    w, holder = case.upper.clone().requires_grad_(), _Holder(case.lower)
    optimizer = torchopt.MetaSGD(holder, lr=case.rate)
    for _ in range(steps):
        optimizer.step(holder(case.problem.lower, w))
    return torch.autograd.grad(holder(case.problem.upper, w), w)[0]


def higher_unrolled(case: Case, steps: int) -> Tensor:
    import higher

    w, holder = case.upper.clone().requires_grad_(), _Holder(case.lower)
    with higher.innerloop_ctx(holder, torch.optim.SGD(holder.parameters(), case.rate)) as (fast, optimizer):
        for _ in range(steps):
            optimizer.step(fast(case.problem.lower, w))
        return torch.autograd.grad(fast(case.problem.upper, w), w)[0]


UNROLLED: dict[str, Callable[[Case, int], Tensor]] = {
    "twofold": ours,
    "twofold, √T states": ours_sparse,
    "twofold, 4 together": ours_together,
    "twofold, graphs kept": ours_graphs,
    "torchopt": torchopt_unrolled,
    "higher": higher_unrolled,
}


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


class _Holder(nn.Module):
    """The lower parameters as a module's, for libraries that ask for one; the loss is called through `forward`."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = list(parameters)
        self.values = nn.ParameterList(nn.Parameter(p.clone()) for p in parameters.values())

    def forward(self, loss: Callable[[Tensor, dict[str, Tensor]], Tensor], w: Tensor) -> Tensor:
        return loss(w, dict(zip(self.names, self.values, strict=True)))


def _pictures(count: int) -> tuple[Tensor, Tensor]:
    """Bars in four directions under noise, and which."""
    kind = torch.randint(0, 4, (count,))
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    waves = torch.stack([(x * a + y * b).sin() for a, b in ((1, 0), (0, 1), (0.7, 0.7), (0.7, -0.7))])
    return waves[kind][:, None] + 0.5 * torch.randn(count, 1, 28, 28), kind


def cpu_seconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least CPU time of each, measured in turns: at least `rounds` of them, and more where they take under 5 s.

    What is short is repeated for at least 20 ms.
    """
    best, repeats = dict.fromkeys(work, math.inf), dict.fromkeys(work, 1)
    began, turn = time.process_time(), -1
    while (turn := turn + 1) <= rounds or time.process_time() - began < 5:
        for name, function in work.items():
            gc.collect()
            gc.disable()
            before = time.process_time()
            for _ in range(repeats[name]):
                function()
            spent = (time.process_time() - before) / repeats[name]
            gc.enable()
            if turn == 0:  # the first turn warms up
                repeats[name] = max(1, math.ceil(0.02 / spent))
            else:
                best[name] = min(best[name], spent)
    return best


def peak_mib(work: Callable[[], object]) -> float:
    """The most that tensors held at once while `work` ran, beyond what they held before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))) / MIB


def resident_mib(case: Case, steps: int) -> float:
    """How far the resident set of this process, which should be fresh, grows at its peak; needs Linux."""

    def status(key: str) -> float:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) / 1024

    ours(case, 2)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = status("VmRSS")
    ours(case, steps)
    return status("VmHWM") - before


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

    holder, leader = _Holder(case.lower), Upper()
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
            "seconds": cpu_seconds({k: partial(f, case, HORIZON) for k, f in UNROLLED.items()}, rounds),
            "peak_mib": {key: peak_mib(partial(f, case, HORIZON)) for key, f in UNROLLED.items()},
            "relative_difference": {k: (norm(g - reference) / norm(reference)).item() for k, g in gradients.items()},
        }
        print(name, json.dumps(table[name], indent=1, ensure_ascii=False), flush=True)
    return table


def costs(rounds: int) -> dict[str, dict[str, float]]:
    """What the other strategies cost in gradients of the lower loss, timed in turns with one."""
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
        seconds = cpu_seconds(work, rounds)
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
    command = [sys.executable, __file__, "--long"]
    runs = [json.loads(subprocess.check_output(command, text=True))["resident_mib"] for _ in range(3)]
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
                row[key] = cpu_seconds({key: partial(differentiate, case, strategy)}, 3)[key]
            except SolveError as refused:
                row[key] = f"refused: {refused}"[:200]
        table[name] = row
        print(name, json.dumps(row, indent=1), flush=True)
    return table


def draw(laws: dict[str, dict[int, float]], beside: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method, law in laws.items():
        axes.loglog(list(law), list(law.values()), "o-", label=method)
    axes.set(xlabel="lower steps T", ylabel="peak memory above the start, MiB", title="Hypergradient memory")
    axes.legend(fontsize=8)
    figure.savefig(beside.with_suffix(".png"), dpi=110)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here, and the plot of the memory laws beside it")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each timing; the best one counts")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="renew these parts of the JSON")
    parser.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.long:
        print(json.dumps({"resident_mib": resident_mib(reweighting(), LONG)}))
        return
    path: Path | None = arguments.json
    facts: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    for part in arguments.only:
        facts[part] = PARTS[part](arguments.rounds)
    facts["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "torchopt": version("torchopt"),
        "higher": version("higher"),
        "load_average": os.getloadavg(),
    }
    if set(PARTS) <= set(facts):
        facts = {"summary": summary(facts), **{name: found for name, found in facts.items() if name != "summary"}}
        print(json.dumps(facts["summary"], indent=1))
    if path is not None:
        path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        laws = facts.get("memory_laws_mib", {})
        draw({name: {int(k): mib for k, mib in law.items()} for name, law in laws.items()}, path)


if __name__ == "__main__":
    main()
