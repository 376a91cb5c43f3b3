"""Fully first-order methods against closed forms of quadratic problems."""

from itertools import islice

import pytest
import torch
from quadratics import quadratic, random, without_second_derivatives

from twofold.solve import ConjugateGradient, hypergradient
from twofold.solve.dynamics import Adam, Bilevel, FixedPointSteps, GradientDescent, Momentum
from twofold.solve.first_order import BOME, F2SA, F3SA, PBGD
from twofold.solve.params import SolveError
from twofold.solve.streams import FiniteSum, Polynomial, descend, whole
from twofold.solve.value_function import ValueFunction

Q = quadratic()
STEP = 0.9 / torch.linalg.eigvalsh(Q.a)[-1].item()
W, ZERO = random(3, seed=3), torch.zeros(5, dtype=torch.float64)


def last(method, stream, iterations, w=W, u=ZERO, **options):
    *_, turn = islice(descend(method, stream, w, u, **options), iterations)
    return turn


@pytest.mark.parametrize("penalty", [3.0, 30.0, 1e4])
def test_a_solved_value_function_gradient_is_that_of_the_penalised_problem(penalty):
    way = ValueFunction(penalty, 400, GradientDescent(STEP), tolerance=1e-6)
    found = hypergradient(Q.problem, W, ZERO, strategy=way)
    torch.testing.assert_close(found.gradient, Q.penalised_gradient(W, penalty), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.lower_params, Q.answer(W))
    torch.testing.assert_close(found.value, Q.problem.upper(W, Q.answer(W)))
    assert found.cost.products == 0


def test_its_bias_falls_like_one_over_the_penalty_and_with_order_two_like_its_square():
    truth = Q.gradient(W)

    def error(penalty, order):
        way = ValueFunction(penalty, 600, GradientDescent(0.8 * STEP), order, tolerance=1e-6)
        return (hypergradient(Q.problem, W, ZERO, strategy=way).gradient - truth).norm().item()

    assert 8 < error(30.0, 1) / error(300.0, 1) < 12
    assert 80 < error(30.0, 2) / error(300.0, 2) < 120
    assert error(30.0, 2) < error(30.0, 1) / 10


@pytest.mark.parametrize("dynamics", [GradientDescent(STEP), Momentum(STEP / 3, 0.8), Adam(0.02)])
def test_any_dynamics_that_minimise_may_solve_its_two_problems(dynamics):
    way = ValueFunction(100.0, 1500, dynamics, tolerance=0.02)
    found = hypergradient(Q.problem, W, ZERO, strategy=way).gradient
    torch.testing.assert_close(found, Q.penalised_gradient(W, 100.0), rtol=0.05, atol=0.05)


def test_an_unsettled_lower_level_is_refused_and_not_multiplied_by_the_penalty():
    with pytest.raises(SolveError, match="take more steps"):
        hypergradient(Q.problem, W, ZERO, strategy=ValueFunction(1e3, 5, GradientDescent(STEP)))


def test_a_penalty_that_only_leaves_rounding_is_refused():
    problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2 + 300 * w)
    w = torch.tensor(4.0)
    way = ValueFunction(1e5, 50, GradientDescent(1.0), tolerance=float("inf"))
    with pytest.raises(SolveError, match="rounding"):
        hypergradient(problem, w, w, strategy=way)


def test_dynamics_that_do_not_minimise_and_meaningless_settings_are_refused():
    way = ValueFunction(10.0, 5, FixedPointSteps(lambda w: lambda u: u / 2))
    with pytest.raises(SolveError, match="FixedPointSteps"):
        hypergradient(Q.problem, W, ZERO, strategy=way)
    with pytest.raises(SolveError, match="order"):
        ValueFunction(1.0, 5, GradientDescent(0.1), order=3)
    with pytest.raises(SolveError, match="penalty"):
        ValueFunction(0.0, 5, GradientDescent(0.1))
    with pytest.raises(SolveError, match="steps"):
        ValueFunction(1.0, 0, GradientDescent(0.1))


def test_where_the_upper_loss_does_not_care_for_the_answer_only_its_own_gradient_is_left():
    problem = Bilevel(upper=lambda w, u: (w**2).sum() + 0 * u.sum(), lower=Q.problem.lower)
    found = hypergradient(problem, W, ZERO, strategy=ValueFunction(10.0, 50, GradientDescent(STEP)))
    torch.testing.assert_close(found.gradient, 2 * W)


LOOPS = {
    "F2SA": (F2SA(Polynomial(STEP), Polynomial(5.0, 1 / 3), Polynomial(0.1)), 300),
    "F2SA with inner steps": (F2SA(Polynomial(STEP), Polynomial(20.0, 1 / 3), Polynomial(0.2), inner=10), 100),
    "F3SA": (F3SA(Polynomial(STEP), Polynomial(5.0, 1 / 3), Polynomial(0.1)), 300),
    "BOME": (BOME(Polynomial(0.03), STEP, inner=20), 200),
    "PBGD": (PBGD(Polynomial(0.01), 30.0, STEP, inner=2), 600),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_reach_the_known_optimum_without_a_second_derivative(name):
    """The losses raise in a second backward, which the counted products alone would not show."""
    way, iterations = LOOPS[name]
    turn = last(way, whole(without_second_derivatives(Q)), iterations)
    assert (turn.upper_params - Q.optimum()).norm() < 0.03 * (W - Q.optimum()).norm()
    assert turn.calls.products == 0
    assert turn.calls.lower_gradients > turn.calls.draws / 2


def test_the_losses_of_the_test_above_do_refuse_a_second_derivative():
    way = ConjugateGradient(10, GradientDescent(STEP))
    with pytest.raises(RuntimeError, match="second derivative"):
        hypergradient(without_second_derivatives(Q), W, ZERO, strategy=way)


def test_value_function_takes_no_second_derivative_either():
    way = ValueFunction(100.0, 400, GradientDescent(STEP), order=2, tolerance=1e-6)
    found = hypergradient(without_second_derivatives(Q), W, ZERO, strategy=way)
    torch.testing.assert_close(found.gradient, Q.gradient(W), rtol=1e-2, atol=1e-2)


def test_pbgd_stops_at_the_stationary_point_of_its_penalised_problem():
    penalty = 5.0
    turn = last(PBGD(Polynomial(0.1 / penalty), penalty, STEP, inner=2), whole(Q.problem), 600)
    assert Q.penalised_gradient(turn.upper_params, penalty).norm() < 1e-5
    assert (turn.upper_params - Q.optimum()).norm() > 1e-3


def test_bome_and_pbgd_solve_a_lower_level_with_many_minima():
    """Where f = ½ (u₁ − w)² does not see u₂, the upper loss chooses it: w = u₁ = u₂ = 1."""
    problem = Bilevel(
        upper=lambda w, u: (u[1] - 1) ** 2 / 2 + (w - u[1]) ** 2 / 2, lower=lambda w, u: (u[0] - w) ** 2 / 2
    )
    start = torch.tensor(3.0, dtype=torch.float64), torch.tensor([-1.0, 4.0], dtype=torch.float64)
    for way in (BOME(Polynomial(0.1), 0.5, inner=10), PBGD(Polynomial(0.05), 10.0, 0.5)):
        turn = last(way, whole(problem), 1200, *start)
        torch.testing.assert_close(turn.upper_params, torch.ones_like(start[0]), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(turn.lower_params, torch.ones_like(start[1]), rtol=1e-2, atol=1e-2)


def noisy(parts=20, spread=1.0):
    """The quadratic as a mean over parts with different linear terms."""
    noise = random(parts, 5, seed=9) * spread
    noise = noise - noise.mean(0)
    lowers = [lambda w, u, e=e: Q.problem.lower(w, u) + e @ u for e in noise]
    uppers = [lambda w, u, e=e: Q.problem.upper(w, u) + e @ u for e in noise]
    return FiniteSum(uppers, lowers)


def test_with_noise_on_both_levels_falling_steps_converge_and_momentum_comes_closer():
    plain = F2SA(Polynomial(STEP, -4 / 7), Polynomial(10.0, 1 / 7), Polynomial(0.5, -5 / 7))
    momentum = F3SA(Polynomial(STEP, -2 / 5), Polynomial(10.0, 1 / 5), Polynomial(0.3, -3 / 5), Polynomial(1.0, -0.8))
    start = (W - Q.optimum()).norm().item()
    distance = lambda way, n: (last(way, noisy(), n).upper_params - Q.optimum()).norm().item() / start  # noqa: E731
    short, long = distance(plain, 60), distance(plain, 1000)
    assert long < 0.3
    assert long < short / 2
    assert distance(momentum, 1000) < long


def test_a_step_that_is_too_long_is_named():
    way = F2SA(Polynomial(10.0), Polynomial(10.0), Polynomial(1.0))
    with pytest.raises(SolveError, match="take smaller steps"):
        last(way, whole(Q.problem), 3000)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(SolveError, match="control"):
        BOME(Polynomial(0.1), 0.1, control=1.5)
    with pytest.raises(SolveError, match="inner"):
        F2SA(Polynomial(0.1), Polynomial(1.0), Polynomial(0.1), inner=0)
    with pytest.raises(SolveError, match="momentum"):
        last(F3SA(Polynomial(0.1), Polynomial(1.0), Polynomial(0.1), lambda k: 0.0), whole(Q.problem), 3)
    with pytest.raises(SolveError, match="penalty"):
        last(F2SA(Polynomial(0.1), lambda k: 0.0, Polynomial(0.1)), whole(Q.problem), 1)
