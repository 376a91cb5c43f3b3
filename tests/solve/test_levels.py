"""Three levels against a closed form, Adam's response against exact unrolling, and two processes against one."""

from pathlib import Path

import pytest
import torch
from quadratics import random
from torch import distributed, multiprocessing

from twofold.solve import (
    Adam,
    Bilevel,
    CentralDifference,
    ConjugateGradient,
    Exact,
    GradientDescent,
    SolveError,
    Unrolled,
    hypergradient,
)
from twofold.solve.dynamics import lower_gradient
from twofold.solve.levels import AdaptedOneStep, settled_loss, shared
from twofold.solve.value_function import ValueFunction

A = torch.diag(torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64))
B, C, D, E = random(3, 2), random(3, 2, seed=1), random(3, seed=2), random(2, seed=3)
W, U0, X0 = random(2, seed=4), torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)


def bottom(wu, x):
    return x @ A @ x / 2 - x @ (B @ wu[0] + C @ wu[1])


def middle(wu, x):
    return (wu[1] ** 2).sum() / 2 + ((x - D) ** 2).sum() / 2


def top(wu, x):
    return ((x - 1) ** 2).sum() / 2 + (wu[0] ** 2).sum() / 2 + ((wu[1] - E) ** 2).sum() / 2


def closed_form(w):
    """F at u(w) and x(w, u(w)); x = A⁻¹(B w + C u), u the minimum of a quadratic."""
    p, r = torch.linalg.solve(A, B), torch.linalg.solve(A, C)
    u = torch.linalg.solve(r.T @ r + torch.eye(2, dtype=torch.float64), r.T @ (D - p @ w))
    return top((w, u), p @ w + r @ u), u


SETTLE = ConjugateGradient(30, GradientDescent(0.6), tolerance=1e-9)
THREE = Bilevel(
    upper=settled_loss(Bilevel(top, bottom), X0, strategy=SETTLE),
    lower=settled_loss(Bilevel(middle, bottom), X0, strategy=SETTLE),
)
R = torch.linalg.solve(A, C)
STEP = 1.0 / (1 + torch.linalg.matrix_norm(R, 2).item() ** 2)
ABOVE = {
    "value function": (ValueFunction(100.0, 40, GradientDescent(STEP), order=2, tolerance=1e-3), 1e-3),
    "conjugate gradients": (
        ConjugateGradient(40, GradientDescent(STEP), tolerance=1e-6, cross=CentralDifference()),
        1e-6,
    ),
}


@pytest.mark.parametrize("name", ABOVE)
def test_three_levels_give_the_hypergradient_of_the_closed_form(name):
    strategy, close = ABOVE[name]
    leaf = W.clone().requires_grad_()
    value, u = closed_form(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    found = hypergradient(THREE, W, U0, strategy=strategy)
    torch.testing.assert_close(found.gradient, gradient, rtol=close, atol=close)
    torch.testing.assert_close(found.lower_params, u.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.value, value.detach(), rtol=1e-6, atol=1e-6)


def test_a_settled_level_refuses_a_second_derivative():
    with pytest.raises(SolveError, match="no second derivative"):
        hypergradient(THREE, W, U0, strategy=Unrolled(2, GradientDescent(STEP)))


def test_the_gradient_of_a_settled_loss_is_that_of_finite_differences():
    loss = settled_loss(Bilevel(top, bottom), X0, strategy=SETTLE)
    w, u = W.clone().requires_grad_(), random(2, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(loss, (w, u), eps=1e-5, atol=1e-5)


def network():
    x, t = random(10, 3), torch.arange(10) % 2
    problem = Bilevel(
        upper=lambda w, u: ((x @ u["a"]).tanh() @ u["b"] - 1).square().mean() + (w**2).sum(),
        lower=lambda w, u: (((x @ u["a"]).tanh() @ u["b"] - t).square() * w.sigmoid()).mean(),
    )
    return problem, random(10, seed=5), {"a": random(3, 4, seed=6), "b": random(4, seed=7)}


@pytest.mark.parametrize("cross", [Exact(), CentralDifference()], ids=["exact", "differences"])
def test_the_response_of_adams_first_step_is_that_of_exact_unrolling(cross):
    problem, w, u = network()
    way = Adam(0.05, epsilon=1e-2)
    exact = hypergradient(problem, w, u, strategy=Unrolled(1, way))
    found = hypergradient(problem, w, u, strategy=AdaptedOneStep(way, cross=cross))
    torch.testing.assert_close(found.gradient, exact.gradient, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.lower_params, exact.lower_params)
    if isinstance(cross, CentralDifference):
        assert found.cost.products == 0


def test_later_steps_of_adam_use_its_memory():
    problem, w, u = network()
    way = Adam(0.05, epsilon=1e-2)
    state = way.begin(u)
    for k in range(6):
        state = way.step(problem, k, w, state)
    u, m, v = state
    leaf = w.clone().requires_grad_()
    after = way.step(problem, 6, leaf, (u, m, v))
    (gradient,) = torch.autograd.grad(problem.upper(leaf, way.params(after)), leaf)
    found = hypergradient(problem, w, u, strategy=AdaptedOneStep(way, 6, (m, v), Exact()))
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-6, atol=1e-10)


def part(rank, ranks):
    """A share of the samples of a logistic-like regression; the whole for one process."""
    x, y = random(24, 4, seed=8)[rank::ranks], random(24, seed=9)[rank::ranks]
    xv, yv = random(20, 4, seed=10)[rank::ranks], random(20, seed=11)[rank::ranks]
    return Bilevel(
        upper=lambda w, u: (xv @ u["u"] - yv).square().mean(),
        lower=lambda w, u: (x @ u["u"] - y).cosh().log().mean() + (w.exp() * u["u"] ** 2).sum() / 2,
    )


STRATEGIES = {
    "unrolled": Unrolled(20, GradientDescent(0.3)),
    "conjugate gradients": ConjugateGradient(200, GradientDescent(0.3), tolerance=1e-9),
    "value function": ValueFunction(100.0, 300, GradientDescent(0.2), tolerance=1e-3),
}
START = random(4, seed=12) * 0.3, {"u": torch.zeros(4, dtype=torch.float64)}


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    problem = shared(part(rank, 2))
    found = {name: hypergradient(problem, *START, strategy=way) for name, way in STRATEGIES.items()}
    alone = hypergradient(part(rank, 2), *START, strategy=STRATEGIES["unrolled"]).gradient
    distributed.all_reduce(alone)
    result = {name: (h.value, h.gradient, h.lower_params["u"]) for name, h in found.items()}
    torch.save({**result, "mean of hypergradients": alone / 2}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_with_half_the_samples_each_give_the_hypergradient_of_all_samples(tmp_path: Path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, strategy in STRATEGIES.items():
        truth = hypergradient(part(0, 1), *START, strategy=strategy)
        for rank in range(2):
            value, gradient, lower = found[rank][name]
            torch.testing.assert_close(value, truth.value)
            torch.testing.assert_close(gradient, truth.gradient, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(lower, truth.lower_params["u"])
        assert torch.equal(found[0][name][1], found[1][name][1])
    # Each process with an answer of its own is another problem: the mean of those hypergradients is not the same.
    truth = hypergradient(part(0, 1), *START, strategy=STRATEGIES["unrolled"]).gradient
    assert (found[0]["mean of hypergradients"] - truth).norm() > 0.01 * truth.norm()


def test_without_a_process_group_the_error_says_what_to_call():
    with pytest.raises(SolveError, match="init_process_group"):
        shared(part(0, 1))


def test_lower_gradients_of_three_levels_are_first_derivatives_only():
    with torch.no_grad():
        g = lower_gradient(THREE, W, U0)
    u = U0.clone().requires_grad_()
    x = torch.linalg.solve(A, B @ W + C @ u)
    torch.testing.assert_close(g.detach(), torch.autograd.grad(middle((W, u), x), u)[0], rtol=1e-6, atol=1e-6)
