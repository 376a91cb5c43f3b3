"""Stochastic bilevel methods on sums of quadratics, whose optimum is known, and the streams they draw from."""

from itertools import islice

import pytest
import torch
from quadratics import quadratic, random

from twofold.solve import Neumann, hypergradient
from twofold.solve.dynamics import Bilevel, GradientDescent
from twofold.solve.first_order import BOME, F2SA, F3SA, PBGD
from twofold.solve.implicit import Settled
from twofold.solve.params import SolveError
from twofold.solve.second_order import CentralDifference
from twofold.solve.stochastic import SABA, SOBA, AmIGO, StocBiO
from twofold.solve.streams import Draws, FiniteSum, Polynomial, descend, gradients, minibatches, whole

Q = quadratic()
STEP = 0.9 / torch.linalg.eigvalsh(Q.a)[-1].item()
W, ZERO = random(3, seed=3), torch.zeros(5, dtype=torch.float64)
TENTH = Polynomial(0.1)
START = (W - Q.optimum()).norm().item()


def last(method, stream, iterations, w=W, u=ZERO):
    *_, turn = islice(descend(method, stream, w, u), iterations)
    return turn


def error(method, stream, iterations):
    return (last(method, stream, iterations).upper_params - Q.optimum()).norm().item() / START


def noisy(parts=12, spread=0.3, seed=0):
    """The quadratic as a mean over parts whose curvatures and linear terms differ."""
    turn = random(parts, 5, 5, seed=8) * spread
    turn = turn + turn.mT
    turn, shift, move = turn - turn.mean(0), random(parts, 5, seed=9), random(parts, 3, seed=10)
    shift, move = spread * (shift - shift.mean(0)), spread * (move - move.mean(0))

    def lower(j):
        return lambda w, u: Q.problem.lower(w, u) + u @ turn[j] @ u / 4 + shift[j] @ u

    def upper(i):
        return lambda w, u: Q.problem.upper(w, u) - shift[i] @ u + move[i] @ w

    return FiniteSum([upper(i) for i in range(parts)], [lower(j) for j in range(parts)], seed)


WITHOUT_NOISE = {
    "SOBA": (SOBA(Polynomial(STEP), Polynomial(0.08)), 200),
    "SOBA with averaging": (SOBA(Polynomial(STEP), Polynomial(0.08), averaging=Polynomial(0.5)), 200),
    "SOBA by differences": (SOBA(Polynomial(STEP), Polynomial(0.08), cross=CentralDifference()), 200),
    "AmIGO": (AmIGO(Polynomial(STEP), Polynomial(STEP), Polynomial(0.2), inner=5, linear=5), 80),
    "StocBiO": (StocBiO(Polynomial(STEP), STEP, Polynomial(0.2), inner=5, terms=40), 80),
}


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_without_noise_each_reaches_the_known_optimum(name):
    way, iterations = WITHOUT_NOISE[name]
    assert error(way, whole(Q.problem), iterations) < 1e-3


def test_the_series_of_stocbio_is_that_of_neumann():
    way = StocBiO(Polynomial(STEP), STEP, Polynomial(1.0), inner=1, terms=7)
    turn = last(way, whole(Q.problem), 1)
    neumann = Neumann(1, GradientDescent(STEP), STEP, terms=7, tolerance=1.0, settled=Settled(relative=float("inf")))
    found = hypergradient(Q.problem, W, ZERO, strategy=neumann)
    torch.testing.assert_close(turn.upper_params, W - found.gradient)
    assert turn.calls == (1, 1 + 7 + 1, 7 + 1, 1 + 1 + 7 + 1)


def test_amigo_at_rest_moves_along_the_exact_hypergradient():
    way = AmIGO(Polynomial(STEP), Polynomial(STEP), Polynomial(1.0), inner=200, linear=200)
    turn = last(way, whole(Q.problem), 1)
    torch.testing.assert_close(turn.upper_params, W - Q.gradient(W))
    torch.testing.assert_close(turn.lower_params, Q.answer(W))
    torch.testing.assert_close(turn.memory.adjoint, torch.linalg.solve(Q.a, Q.answer(W) - Q.c))


def test_soba_takes_the_three_directions_of_the_paper_at_one_point():
    v = random(5, seed=7)
    way = SOBA(Polynomial(0.1), Polynomial(0.01))
    begun = way.begin(Draws(whole(Q.problem)), W, ZERO)._replace(lower=random(5, seed=6), adjoint=v)
    after = way.step(Draws(whole(Q.problem)), 0, begun)
    u = begun.lower
    torch.testing.assert_close(after.lower, u - 0.1 * (Q.a @ u - Q.b @ W))
    torch.testing.assert_close(after.adjoint, v - 0.1 * (Q.a @ v - (u - Q.c)))
    torch.testing.assert_close(after.upper, W - 0.01 * (W + Q.b.T @ v))


def test_saba_converges_with_constant_steps_where_soba_stays_at_its_noise():
    saba = SABA(Polynomial(STEP / 3), Polynomial(0.03))
    soba = SOBA(Polynomial(STEP / 3), Polynomial(0.03))
    noise = error(soba, noisy(), 1500)
    assert error(saba, noisy(), 1500) < 1e-4
    assert noise > 1e-3


def test_soba_converges_with_falling_steps():
    falling, constant = SOBA(Polynomial(STEP, -2 / 5), Polynomial(0.3, -3 / 5)), SOBA(Polynomial(STEP), Polynomial(0.1))
    mean = lambda way: sum(error(way, noisy(seed=seed), 800) for seed in range(3)) / 3  # noqa: E731
    assert mean(falling) < min(0.06, mean(constant) / 3)


def test_averaging_lowers_the_noise_of_the_moves():
    def noise(averaging):
        way = SOBA(Polynomial(STEP / 3), Polynomial(0.01), averaging)
        turns = list(islice(descend(way, noisy(), W, ZERO), 600))[300:]
        return torch.stack([turn.upper_params for turn in turns]).diff(dim=0).std(0).norm().item()

    assert noise(Polynomial(0.1)) < 0.4 * noise(None)


def test_saba_with_one_part_is_soba():
    stream = FiniteSum([Q.problem.upper], [Q.problem.lower])
    steps = Polynomial(STEP), Polynomial(0.05)
    one, other = last(SABA(*steps), stream, 30), last(SOBA(*steps), stream, 30)
    torch.testing.assert_close(one.upper_params, other.upper_params)
    assert one.calls.draws == other.calls.draws + 2


def test_the_tables_of_saba_always_have_the_means_it_uses():
    turn = last(SABA(Polynomial(STEP / 3), Polynomial(0.03)), noisy(), 40)
    for mean, parts in ((turn.memory.lower_mean, turn.memory.lowers), (turn.memory.upper_mean, turn.memory.uppers)):
        for at, average in enumerate(mean):
            torch.testing.assert_close(average, torch.stack([part[at] for part in parts]).mean(0))


def test_saba_needs_a_finite_sum():
    with pytest.raises(SolveError, match="FiniteSum"):
        last(SABA(Polynomial(0.1), Polynomial(0.1)), whole(Q.problem), 1)


def test_a_draw_depends_on_its_number_alone_and_every_part_is_drawn_about_equally_often():
    stream = noisy(seed=5)
    drawn = [stream.parts(k) for k in range(2400)]
    assert drawn == [stream.parts(k) for k in range(2400)]
    assert drawn[:50] != [noisy(seed=6).parts(k) for k in range(50)]
    for level in range(2):
        counts = torch.bincount(torch.tensor([pair[level] for pair in drawn]), minlength=12)
        assert (counts - 200).abs().max() < 60
    pairs = {(i, j) for i, j in drawn}
    assert len(pairs) == 144


def test_the_whole_sum_is_the_mean_of_its_parts():
    torch.testing.assert_close(noisy().whole.lower(W, ZERO + 1), Q.problem.lower(W, ZERO + 1))
    torch.testing.assert_close(noisy().whole.upper(W, ZERO + 1), Q.problem.upper(W, ZERO + 1))


def test_batches_cut_the_samples_without_rest():
    x = random(12, 2)
    parts = minibatches(lambda w, u, i: (x[i] @ u - w).square().mean(), 12, 4)
    u = random(2, seed=1)
    mean = torch.stack([part(1.0, u) for part in parts]).mean()
    torch.testing.assert_close(mean, (x @ u - 1).square().mean())
    with pytest.raises(SolveError, match="leave 2 out"):
        minibatches(lambda w, u, i: x[i].mean(), 12, 5)


def test_a_run_can_go_on_from_its_memory_and_what_was_given_is_not_changed():
    way, w, u = SOBA(Polynomial(STEP, -0.4), Polynomial(0.1, -0.6)), W.clone(), ZERO.clone()
    turns = list(islice(descend(way, noisy(), w, u), 20))
    again = way.step(Draws(noisy(), number=10), 10, turns[9].memory)
    torch.testing.assert_close(again.upper, turns[10].upper_params, rtol=0, atol=0)
    assert torch.equal(w, W)
    assert torch.equal(u, ZERO)


def test_upper_parameters_stay_in_their_set():
    project = lambda w: w.clamp(min=0.2)  # noqa: E731
    for turn in islice(
        descend(SOBA(Polynomial(STEP), Polynomial(0.1)), whole(Q.problem), W, ZERO, project=project), 50
    ):
        assert (turn.upper_params >= 0.2).all()


def test_trees_of_parameters_move_like_one_vector():
    def split(u):
        return {"a": u[:2], "b": (u[2:],)}

    problem = Bilevel(
        upper=lambda w, u: Q.problem.upper(torch.cat(w), torch.cat([u["a"], *u["b"]])),
        lower=lambda w, u: Q.problem.lower(torch.cat(w), torch.cat([u["a"], *u["b"]])),
    )
    for way in (
        SOBA(Polynomial(STEP), Polynomial(0.1), Polynomial(0.5)),
        StocBiO(Polynomial(STEP), STEP, Polynomial(0.1)),
    ):
        one = last(way, whole(Q.problem), 5)
        other = last(way, whole(problem), 5, (W[:1], W[1:]), split(ZERO))
        torch.testing.assert_close(torch.cat(other.upper_params), one.upper_params)
        torch.testing.assert_close(other.lower_params["b"][0], one.lower_params[2:])


def test_a_loss_that_is_no_scalar_and_settings_without_sense_are_refused():
    with pytest.raises(SolveError, match="scalar"):
        gradients(lambda w, u: u, W, ZERO)
    with pytest.raises(SolveError, match="does not depend"):
        last(SOBA(Polynomial(0.1), Polynomial(0.1)), whole(Bilevel(Q.problem.upper, lambda w, u: (w**2).sum())), 1)
    with pytest.raises(SolveError, match="inner"):
        AmIGO(Polynomial(0.1), Polynomial(0.1), Polynomial(0.1), inner=0)
    with pytest.raises(SolveError, match="series_step"):
        StocBiO(Polynomial(0.1), 0.0, Polynomial(0.1))
    with pytest.raises(SolveError, match="averaging"):
        last(SOBA(Polynomial(0.1), Polynomial(0.1), averaging=Polynomial(2.0)), whole(Q.problem), 1)
    with pytest.raises(SolveError, match="parts"):
        FiniteSum([], [Q.problem.lower])
    with pytest.raises(SolveError, match="positive"):
        Polynomial(0.0)


COSTS = {
    "F2SA": (F2SA(TENTH, TENTH, TENTH), (2, 4, 0, 2)),
    "F2SA with three inner steps": (F2SA(TENTH, TENTH, TENTH, inner=3), (4, 8, 0, 4)),
    "F3SA": (F3SA(TENTH, TENTH, TENTH), (2, 4, 0, 1)),
    "BOME": (BOME(TENTH, 0.1, inner=3), (1, 4, 0, 1)),
    "PBGD": (PBGD(TENTH, 1.0, 0.1, inner=3), (1, 5, 0, 4)),
    "SOBA": (SOBA(TENTH, TENTH), (1, 1, 2, 1)),
    "AmIGO": (AmIGO(TENTH, TENTH, TENTH, inner=3, linear=2), (3, 6, 3, 6)),
    "StocBiO": (StocBiO(TENTH, 0.1, TENTH, inner=3, terms=2), (1, 6, 3, 7)),
}


@pytest.mark.parametrize("name", COSTS)
def test_an_iteration_takes_the_gradients_and_products_that_the_tables_say(name):
    method, expected = COSTS[name]
    _, second, third = (turn.calls for turn in islice(descend(method, whole(Q.problem), W, ZERO), 3))
    assert tuple(after - before for before, after in zip(second, third, strict=True)) == expected


def test_saba_fills_its_tables_once_and_then_costs_what_soba_costs():
    first, second = (turn.calls for turn in islice(descend(SABA(TENTH, TENTH), noisy(5), W, ZERO), 2))
    assert first == (5 + 1, 5 + 1, 2 * 5 + 2, 5 + 5 + 1)
    assert second == (7, 7, 14, 12)
