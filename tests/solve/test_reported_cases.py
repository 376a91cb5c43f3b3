"""Every case in which `solve` was once seen to return a wrong number or a misleading error: each is right now, or
refused with a reason. `python tests/solve/test_reported_cases.py` prints the list with what happens.

The other tests look at the same guards from more sides; this file is the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from twofold import solve
from twofold.solve import (
    Aggregated,
    Anderson,
    Bilevel,
    CentralDifference,
    ConjugateGradient,
    GradientDescent,
    Harmonic,
    Implicit,
    KrasnoselskiiMann,
    Momentum,
    Neumann,
    NormalEquations,
    OneStepUnrolled,
    Settled,
    SolveError,
    Strategy,
    Truncated,
    Unrolled,
    as_function,
    fixed_point,
    hypergradient,
    rounds,
)
from twofold.solve.params import dot

DOUBLE = torch.float64
PICARD = KrasnoselskiiMann(1.0, steps=2000, tolerance=1e-8)
DESCENT = GradientDescent(0.1)


class Case(NamedTuple):
    """One report. wrong: what was returned then. run: does it again. right: the truth, None where it must be refused.
    refused: what the message says. near: relative tolerance."""

    title: str
    wrong: str
    run: Callable[[], Any]
    right: Any = None
    refused: str = ""
    near: float = 1e-3


CASES: list[Case] = []


def case(
    title: str, wrong: str, *, right: Any = None, refused: str = "", near: float = 1e-3
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(run: Callable[[], Any]) -> Callable[[], Any]:
        CASES.append(Case(title, wrong, run, right, refused, near))
        return run

    return add


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def gradient(problem: Bilevel, w: Any, u: Any, strategy: Strategy) -> Any:
    return hypergradient(problem, w, u, strategy=strategy).gradient


def simple() -> Bilevel:
    return Bilevel(lambda w, u: ((u - 1) ** 2).sum(), lambda w, u: ((u - w) ** 2).sum() / 2)


# Fixed points


@case("rows that feed each other", "[1, 2], both converged", right=[2.0, 2.0])
def _() -> Tensor:
    return fixed_point(lambda u: torch.stack([0.5 * u[0] + 0.5 * u[1], 0.5 * u[1] + 1]), torch.zeros(2)).value


@case("a graph network on a ring of 100 nodes", "56 % off, all converged", right=0.0)
def _() -> Tensor:
    eye = torch.eye(100, dtype=DOUBLE)
    ring = 0.95 * (eye.roll(1, 0) + eye.roll(-1, 0)) / 2
    found = fixed_point(lambda u: ring @ u + eye[:, :1], torch.zeros(100, 1, dtype=DOUBLE), solver=PICARD).value
    return (found - torch.linalg.solve(eye - ring, eye[:, :1])).norm() / found.norm()


@case("A u + b with half of b zero", "63 % off, all converged", right=0.0)
def _() -> Tensor:
    a, b = random(50, 50), random(50, seed=1)
    a, b[25:] = 0.9 * a / torch.linalg.eigvals(a).abs().max(), 0
    found = fixed_point(lambda u: a @ u + b, torch.zeros(50, dtype=DOUBLE), solver=PICARD).value
    return (found - torch.linalg.solve(torch.eye(50, dtype=DOUBLE) - a, b)).norm() / found.norm()


@case("a fixed point of norm 2e-6", "converged after one step, 37 % off", right=2e-6)
def _() -> Tensor:
    return fixed_point(lambda u: u / 2 + 1e-6, torch.zeros(1), solver=KrasnoselskiiMann(1.0)).value


@case("Implicit where the solve has not converged", "2.28 instead of 1.11", refused="no fixed point was found")
def _() -> Tensor:
    a = torch.tensor(1.0, requires_grad=True)
    found = fixed_point(lambda u: 0.9 * u + a.sin(), torch.zeros(1), solver=KrasnoselskiiMann(1.0, steps=3)).value
    return torch.autograd.grad(found.sum(), a)[0]


@case("the same with the outcome taken as data", "a gradient", refused="at a point that is no fixed point")
def _() -> Tensor:
    a, few = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(1.0, steps=3)
    found = fixed_point(lambda u: 0.9 * u + a.sin(), torch.zeros(1), solver=few, throw=False).value
    return torch.autograd.grad(found.sum(), a)[0]


@case("3 u + 1 with NormalEquations", "a gradient at u = 8e19", refused="it expands, or divides by 0")
def _() -> Tensor:
    a, implicit = torch.tensor(1.0, requires_grad=True), Implicit(NormalEquations())
    return torch.autograd.grad(
        fixed_point(
            lambda u: 3 * u + a, torch.ones(1, 1), solver=KrasnoselskiiMann(1.0, steps=40), adjoint=implicit
        ).value.sum(),
        a,
    )[0]


def logistic(steps: int) -> Tensor:
    r = torch.tensor(3.2, requires_grad=True)
    found = fixed_point(
        lambda u: r * u * (1 - u), torch.full((1, 1), 0.3), solver=KrasnoselskiiMann(1.0, steps=steps)
    ).value
    return torch.autograd.grad(found.sum(), r)[0]


@case("the logistic map, r = 3.2, even steps", "0.231 instead of 0.098", refused="no fixed point was found")
def _() -> Tensor:
    return logistic(100)


@case("the logistic map, r = 3.2, odd steps", "0.231 instead of 0.098", refused="no fixed point was found")
def _() -> Tensor:
    return logistic(101)


@case("spectrum up to 0.99 in float32", "1e-3 off at a tolerance of 1e-5: documented", right=100.0, near=2e-3)
def _() -> Tensor:
    rates = torch.linspace(0, 0.99, 50)
    return fixed_point(lambda u: rates * u + 1, torch.zeros(1, 50), solver=Anderson(steps=2000)).value[0, -1]


@case("an operator that returns its keys in another order", "said to contain dropout", right=[2.0, 4.0])
def _() -> Tensor:
    start = {"a": torch.zeros(1), "b": torch.zeros(1)}
    found = fixed_point(lambda u: {"b": u["b"] / 2 + 2, "a": u["a"] / 2 + 1}, start).value
    return torch.cat([found["a"], found["b"]])


# Implicit gradients


def two_curvatures() -> Bilevel:
    scales = torch.tensor([1.0, 1e-3])
    return Bilevel(lambda w, u: ((u - 1) ** 2).sum(), lambda w, u: (scales * (u - w) ** 2).sum() / 2)


@case("curvatures 1 and 1e-3 after 100 steps", "[2, −1.62] instead of [2, 2]", refused="not settled after 100 steps")
def _() -> Tensor:
    way = ConjugateGradient(100, GradientDescent(1.0))
    return gradient(two_curvatures(), torch.full((2,), 2.0), torch.zeros(2), way)


@case("the same by Neumann's series", "[2, −1.62] instead of [2, 2]", refused="not settled after 100 steps")
def _() -> Tensor:
    way = Neumann(100, GradientDescent(1.0), 0.9, 9000)
    return gradient(two_curvatures(), torch.full((2,), 2.0), torch.zeros(2), way)


def conditioned(strategy: Strategy) -> Tensor:
    """2 (w − 1) at w = 2 for curvatures from 1e-3 to 1."""
    scales = torch.logspace(-3, 0, 10, dtype=DOUBLE)
    problem = Bilevel(lambda w, u: ((u - 1) ** 2).sum(), lambda w, u: (scales * (u - w) ** 2).sum() / 2)
    start = torch.zeros(10, dtype=DOUBLE)
    return gradient(problem, torch.full((10,), 2.0, dtype=DOUBLE), start, strategy)


@case("condition number 1e3, 1,000 steps", "29 % off", refused="not settled after 1000 steps")
def _() -> Tensor:
    return conditioned(ConjugateGradient(1000, GradientDescent(1.0)))


@case("condition number 1e3, 1,000 steps with momentum", "right", right=[2.0] * 10)
def _() -> Tensor:
    return conditioned(ConjugateGradient(1000, Momentum(0.9, 0.95)))


def logistic_regression(way: Strategy, *, at_minimum: bool = False) -> Tensor:
    """How far the gradient in one weight decay a coordinate is from ∂_w F(u(w)), which linear algebra has."""
    x, held = random(60, 20), random(60, 20, seed=1)
    y, y_held = ((z[:, 0] > 0).double() for z in (x, held))
    loss = nn.functional.binary_cross_entropy_with_logits
    w, best = torch.full((20,), -4.0, dtype=DOUBLE), torch.zeros(20, dtype=DOUBLE)
    decay = torch.diag(w.exp())
    for _ in range(20):  # Newton's method
        p = (x @ best).sigmoid()
        hessian = x.T @ (x * (p * (1 - p))[:, None]) / 60 + decay
        best = best - torch.linalg.solve(hessian, x.T @ (p - y) / 60 + decay @ best)
    slope = held.T @ ((held @ best).sigmoid() - y_held) / 60
    truth = -w.exp() * best * torch.linalg.solve(hessian, slope)
    problem = Bilevel(lambda w, u: loss(held @ u, y_held), lambda w, u: loss(x @ u, y) + (w.exp() * u**2).sum() / 2)
    found = gradient(problem, w, best if at_minimum else 0 * best, way)
    return (found - truth).norm() / truth.norm()


@case("weight decays of a logistic regression, 60 steps", "19 % off", refused="not settled after 60 steps")
def _() -> Tensor:
    return logistic_regression(ConjugateGradient(60, GradientDescent(0.5)))


@case("the same after 300 steps with momentum", "right: 8e-4", right=0.0)
def _() -> Tensor:
    return logistic_regression(ConjugateGradient(300, Momentum(0.5, 0.9)))


@case("the same at the optimum", "right: 8e-4", right=0.0)
def _() -> Tensor:
    return logistic_regression(ConjugateGradient(0, DESCENT), at_minimum=True)


@case("conjugate gradients that miss their tolerance", "0.76 accepted for 0.1", refused="wanted 1e-01")
def _() -> Tensor:
    a = torch.diag(torch.logspace(-6, 0, 40, dtype=DOUBLE))
    problem = Bilevel(lambda w, u: u.sum(), lambda w, u: (u - w) @ a @ (u - w) / 2)
    w, accept = torch.ones(40, dtype=DOUBLE), Settled(relative=float("inf"))
    way = ConjugateGradient(0, GradientDescent(1.0), iterations=3, tolerance=0.1, settled=accept)
    return gradient(problem, w, w, way)


# Randomness and state


def dropping(rate: float, strategy: Strategy) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(rate), nn.Linear(8, 1))
    return trained(net, strategy)


def trained(net: nn.Module, strategy: Strategy = Unrolled(3, DESCENT)) -> Any:
    function, u = as_function(net)
    x, y = torch.randn(16, 6), torch.randn(16, 1)
    lower = lambda w, u: (w.sigmoid() * (function(u, x) - y).square().flatten(1).sum(1)).mean()  # noqa: E731
    return gradient(Bilevel(lambda w, u: sum((t**2).sum() for t in u.values()), lower), torch.zeros(16), u, strategy)


@case("dropout under central differences", "a gradient 49 times too long", refused="draws random numbers")
def _() -> Any:
    return dropping(0.5, OneStepUnrolled(0.1, CentralDifference()))


@case("dropout 0.5 under replay, step 1e-4", "15 to 19 % off", refused="draws random numbers")
def _() -> Any:
    return dropping(0.5, Unrolled(3, GradientDescent(1e-4)))


@case("dropout 0.1 under replay, step 1e-3", "7 % off", refused="draws random numbers")
def _() -> Any:
    return dropping(0.1, Unrolled(3, GradientDescent(1e-3)))


@case("BatchNorm in training mode", "refused, with .eval() as advice", refused="track_running_stats=False")
def _() -> Any:
    return trained(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))


@case("InstanceNorm that tracks statistics", "a gradient", refused="InstanceNorm.*track_running_stats=False")
def _() -> Any:
    return trained(nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, affine=True, track_running_stats=True)))


@case("spectral_norm in training mode", "a gradient", refused="changes '_u'")
def _() -> Any:
    return trained(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.weight * self.calls


@case("a module that changes its own buffer", "a gradient", refused="changes 'calls' of Counting")
def _() -> Any:
    return trained(Counting())


# Gradients that are zero for a reason


@case("a lower loss that calls the network itself", "exactly 0", refused="the lower loss does not depend on")
def _() -> Any:
    net = nn.Linear(3, 1)
    function, u = as_function(net)
    x = torch.ones(4, 3)
    problem = Bilevel(lambda w, u: function(u, x).sum(), lambda w, u: (w * net(x)).sum())
    return gradient(problem, torch.ones(()), u, Unrolled(3, DESCENT))


@case("an upper loss that detaches", "exactly 0", refused="the upper loss does not depend on the lower")
def _() -> Any:
    problem = Bilevel(lambda w, u: (w * u.detach()).sum(), simple().lower)
    return gradient(problem, torch.ones(3), torch.zeros(3), Unrolled(3, DESCENT))


@case("a lower loss that detaches w", "exactly 0", refused="depends on the upper parameters, so nothing flows")
def _() -> Any:
    problem = Bilevel(simple().upper, lambda w, u: ((u - w.detach()) ** 2).sum())
    return gradient(problem, torch.ones(3), torch.zeros(3), Unrolled(3, DESCENT))


@case("Truncated(last=0)", "exactly 0", refused="identically zero")
def _() -> Any:
    return gradient(simple(), torch.ones(3), torch.zeros(3), Truncated(3, 0, DESCENT))


@case("Unrolled(0)", "exactly 0", refused="identically zero")
def _() -> Any:
    return gradient(simple(), torch.ones(3), torch.zeros(3), Unrolled(0, DESCENT))


# Numbers that run away


@case("Aggregated with a stiff upper loss", "u = −9e8, gradient 3e17", refused="is too long")
def _() -> Any:
    problem = Bilevel(lambda w, u: 100 * ((u - 3) ** 2).sum(), simple().lower)
    return gradient(problem, torch.ones(1), torch.zeros(1), Unrolled(50, Aggregated(GradientDescent(0.5))))


@case("the same with the schedule that the message names", "", right=[-400.0], near=2e-2)
def _() -> Any:
    problem = Bilevel(lambda w, u: 100 * ((u - 3) ** 2).sum(), simple().lower)
    way = Unrolled(400, Aggregated(GradientDescent(0.5), schedule=Harmonic(5e-3)))
    return gradient(problem, torch.ones(1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE), way)


@case("a norm that starts at 0", "NaN; the next round blames the step", refused="is there a norm, a root")
def _() -> Any:
    problem = Bilevel(lambda w, u: (u**2).sum(), lambda w, u: (u - w).norm())
    return gradient(problem, torch.ones(3), torch.ones(3), Unrolled(1, DESCENT))


@case("NaN in a leaf that the upper loss ignores", "NaN", refused=r"\['ignored'\] is not finite")
def _() -> Any:
    lower = lambda w, u: ((u["seen"] - w) ** 2).sum() + u["ignored"].abs().sqrt().sum()  # noqa: E731
    u = {"seen": torch.zeros(2), "ignored": torch.zeros(2)}
    return gradient(Bilevel(lambda w, u: (u["seen"] ** 2).sum(), lower), torch.ones(2), u, Unrolled(2, DESCENT))


# Trees and parameters


@case("a projection that returns its keys in another order", "values swapped", right=[1.0, 5.0])
def _() -> Any:
    w = {"a": torch.tensor([1.0]), "b": torch.tensor([5.0])}
    problem = Bilevel(lambda w, u: 1e-6 * u.sum(), lambda w, u: ((u - w["a"] * w["b"]) ** 2).sum())
    loop = rounds(
        problem,
        w,
        torch.zeros(1),
        strategy=Unrolled(2, DESCENT),
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        project=lambda w: {"b": w["b"], "a": w["a"]},
    )
    after = next(loop).upper_params
    return torch.cat([after["a"], after["b"]])


@case("dot of dicts filled in different order", "20", right=101.0)
def _() -> Any:
    one, ten = torch.tensor([1.0]), torch.tensor([10.0])
    return dot({"a": one, "b": ten}, {"b": ten, "a": one})


@case("frozen parameters", "trained", right=["1.bias", "1.weight"])
def _() -> Any:
    net = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1))
    return sorted(as_function(net)[1])


@case("LBFGS in rounds", "a closure is missing", refused="LBFGS evaluates the loss many times a step")
def _() -> Any:
    way, make = Unrolled(2, DESCENT), torch.optim.LBFGS
    return next(rounds(simple(), torch.ones(2), torch.zeros(2), strategy=way, optimizer=make))


@case("an empty tree", "StopIteration", refused="holds no tensors")
def _() -> Any:
    return gradient(simple(), {}, torch.ones(1), Unrolled(2, DESCENT))


@case("an integer leaf", "an error of autograd", refused="is torch.int64, expected floating-point")
def _() -> Any:
    return gradient(simple(), torch.ones(2, dtype=torch.int64), torch.ones(2), Unrolled(2, DESCENT))


@case("complex numbers", "an error of autograd", refused="view_as_real")
def _() -> Any:
    return gradient(simple(), torch.ones(2), torch.ones(2, dtype=torch.complex64), Unrolled(2, DESCENT))


@case("nested trees, mixed types, an empty leaf", "right", right=2.0)
def _() -> Any:
    w = {"x": (torch.ones(2), [torch.ones(1, dtype=DOUBLE)]), "none": torch.zeros(0)}
    lower = lambda w, u: ((u - w["x"][0]) ** 2).sum() / 2 + w["x"][1][0].sum().float() * u.sum() * 0  # noqa: E731
    problem = Bilevel(lambda w, u: (u**2).sum(), lower)
    return gradient(problem, w, torch.zeros(2), Unrolled(60, GradientDescent(0.5)))["x"][0][0]


# Slips


@case("fixed_point from the package", "the module", right=True)
def _() -> Any:
    return callable(solve.fixed_point) and callable(solve.hypergradient)


@case("steps and dynamics exchanged", "a bare TypeError", refused=r"write Unrolled\(20, GradientDescent")
def _() -> Any:
    return Unrolled(GradientDescent(0.4), 20)  # type: ignore[arg-type]


@case("an optimizer class as dynamics", "a bare TypeError", refused=r"cannot differentiate torch\.optim\.SGD")
def _() -> Any:
    return Unrolled(20, torch.optim.SGD)  # type: ignore[arg-type]


@case("an optimizer instead of a function that makes one", "'Adam' object is not callable", refused="already has its")
def _() -> Any:
    made = torch.optim.Adam([torch.ones(2, requires_grad=True)])
    way = Unrolled(2, DESCENT)
    return next(rounds(simple(), torch.ones(2), torch.zeros(2), strategy=way, optimizer=made))  # type: ignore[arg-type]


@pytest.mark.parametrize("reported", CASES, ids=[c.title for c in CASES])
def test_a_reported_case_is_right_or_refused(reported: Case) -> None:
    if reported.refused:
        with pytest.raises(SolveError, match=reported.refused):
            reported.run()
        return
    found = reported.run()
    if not isinstance(found, Tensor):
        assert found == reported.right
        return
    truth = torch.tensor(reported.right, dtype=found.dtype).expand_as(found)
    torch.testing.assert_close(found, truth, rtol=reported.near, atol=1e-3 * float(truth.abs().max() or 1))


def main() -> None:
    for reported in CASES:
        try:
            outcome = f"right: {reported.run()}"
        except SolveError as error:
            outcome = f"refused: {error}"
        print(f"{reported.title}\n    then: {reported.wrong}\n    now:  {' '.join(outcome.split())[:200]}")


if __name__ == "__main__":
    main()
