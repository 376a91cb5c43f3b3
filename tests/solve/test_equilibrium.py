"""Broyden's method, phantom gradients and the Jacobian's penalty on linear and small nonlinear equilibria."""

import pytest
import torch
from quadratics import random

from twofold.solve import (
    Implicit,
    KrasnoselskiiMann,
    NormalEquations,
    SolveError,
    TruncatedAdjoint,
    fixed_point,
    iterate,
)
from twofold.solve.equilibrium import Broyden, PhantomGradient, jacobian_penalty

EYE = torch.eye(4, dtype=torch.float64)


def matrix(values):
    turn = random(4, 4, seed=3) + 2 * EYE
    return turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ torch.linalg.inv(turn)


CONTRACTION, RUNAWAY = matrix([0.9, 0.5, -0.4, 0.1]), matrix([3.0, -2.0, 0.5, -0.3])


@pytest.mark.parametrize("j", [CONTRACTION, RUNAWAY], ids=["contraction", "runaway"])
def test_broyden_solves_linear_equations_in_about_twice_their_size(j):
    """Gay (1979): 2 n steps for a linear system of n; iteration diverges for the second."""
    a = random(3, 4)
    found = iterate(lambda u: u @ j.T + a, torch.zeros(3, 4, dtype=torch.float64), solver=Broyden(tolerance=1e-9))
    torch.testing.assert_close(found.value, torch.linalg.solve(EYE - j, a.T).T, rtol=1e-6, atol=1e-6)
    assert found.steps <= 12


def test_samples_do_not_disturb_one_another():
    a = random(3, 4)

    def solve(a):
        solver = Broyden(steps=6, tolerance=0.0)
        return iterate(lambda u: (u @ RUNAWAY.T).tanh() + a, torch.zeros_like(a), solver=solver).value

    torch.testing.assert_close(solve(a)[1:2], solve(a[1:2]))


def test_broyden_goes_with_implicit_adjoints_through_a_nonlinear_equilibrium():
    weight = (0.8 * random(4, 4)).requires_grad_()
    a = random(2, 4, seed=1)

    def value(w, solver):
        way = Implicit(NormalEquations(tolerance=1e-9))
        return fixed_point(lambda u: (u @ w).tanh() + a, torch.zeros_like(a), solver=solver, adjoint=way).value

    solver = Broyden(tolerance=1e-11)
    (gradient,) = torch.autograd.grad((value(weight, solver) ** 2).sum(), weight)
    with torch.no_grad():
        for at in ((0, 0), (2, 1)):
            e = torch.zeros_like(weight)
            e[at] = 1e-5
            ends = [(value(w, solver) ** 2).sum() for w in (weight + e, weight - e)]
            torch.testing.assert_close(gradient[at], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_a_phantom_gradient_is_the_damped_series():
    a = random(1, 4).requires_grad_()
    many = KrasnoselskiiMann(1.0, steps=2000, tolerance=1e-12)
    c, damping, last = random(4, seed=5), 0.4, 7
    solution = PhantomGradient(last, damping).solve(lambda u: u @ CONTRACTION.T + a, torch.zeros_like(a), many, True)
    (found,) = torch.autograd.grad((solution.value @ c).sum(), a)
    step = (1 - damping) * EYE + damping * CONTRACTION
    series = damping * sum(torch.linalg.matrix_power(step, i) for i in range(last))
    torch.testing.assert_close(found[0], series.T @ c)


def test_damping_gives_a_gradient_where_the_plain_series_grows():
    """J = −1.5: the series of J diverges; that of I + ½ (J − I) has the factor −¼."""
    a = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    solver = Broyden(tolerance=1e-10)
    operator = lambda u: -1.5 * u + a  # noqa: E731
    truth = 1 / 2.5
    phantom = PhantomGradient(30, 0.5).solve(operator, torch.zeros_like(a), solver, True)
    plain = TruncatedAdjoint(30).solve(operator, torch.zeros_like(a), solver, True)
    assert abs(torch.autograd.grad(phantom.value, a)[0].item() - truth) < 1e-9
    assert abs(torch.autograd.grad(plain.value, a)[0].item() - truth) > 1


def test_the_penalty_estimates_the_jacobians_norm_and_its_gradient():
    weight = random(4, 4).requires_grad_()
    draw = torch.Generator().manual_seed(0)
    found = jacobian_penalty(lambda u: u @ weight, torch.zeros(1, 4, dtype=torch.float64), generator=draw, samples=3000)
    torch.testing.assert_close(found, (weight.detach() ** 2).sum() / 4, rtol=0.1, atol=0)
    (gradient,) = torch.autograd.grad(found, weight)
    assert (gradient - weight.detach() / 2).norm() < 0.2 * (weight.detach() / 2).norm()


def test_settings_without_sense_are_refused():
    with pytest.raises(SolveError, match="damping"):
        PhantomGradient(3, 0.0)
    with pytest.raises(SolveError, match="memory"):
        Broyden(memory=0)
    with pytest.raises(SolveError, match="sample"):
        jacobian_penalty(lambda u: u, EYE, generator=torch.Generator(), samples=0)
