"""Aggregation, its schedules and metric, and the loop around it."""

import itertools
from itertools import islice

import pytest
import torch

from twofold.solve import (
    Adam,
    Aggregated,
    Ball,
    Bilevel,
    ConjugateGradient,
    Constant,
    FixedPointSteps,
    Geometric,
    GradientDescent,
    Harmonic,
    LinearisedALM,
    Momentum,
    OneStepUnrolled,
    SolveError,
    Unrolled,
    aggregated_step,
    hypergradient,
    lower_solution,
    matrix_map,
    rounds,
)
from twofold.solve.linear import Linearised, metric_norm
from twofold.solve.params import tensors


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def counter_example():
    """f = ½y₁² − x y₁ does not see y₂; F = ½(x − y₂)² + ½(y₁ − 1)². The solution is x = y₁ = y₂ = 1."""
    return Bilevel(
        upper=lambda x, y: (x - y[1]) ** 2 / 2 + (y[0] - 1) ** 2 / 2,
        lower=lambda x, y: y[0] ** 2 / 2 - x * y[0],
    )


def solved(steps, mu, schedule, dynamics=GradientDescent(0.5)):
    """The x with d/dx F(x, y_K(x)) = 0, y started at 0: the hypergradient is affine in x, so two of them find it."""
    strategy = Unrolled(steps, Aggregated(dynamics, mu, schedule))
    zero = torch.zeros(2, dtype=torch.float64)
    slope = lambda x: hypergradient(counter_example(), torch.tensor(x, dtype=torch.float64), zero, strategy=strategy)  # noqa: E731
    at_0, at_1 = slope(0.0).gradient.item(), slope(1.0).gradient.item()
    return at_0 / (at_0 - at_1)


@pytest.mark.parametrize(("steps", "expected"), [(16, 0.9751), (64, 0.9947), (256, 0.9987)])
def test_aggregation_approaches_the_bilevel_solution_where_plain_unrolling_never_does(steps, expected):
    assert solved(steps, 0.0, Harmonic(1.0)) == pytest.approx(0.5, abs=1e-4)
    assert solved(steps, 0.5, Harmonic(1.0)) == pytest.approx(expected, abs=6e-5)


def test_a_constant_leader_reaches_the_solution_here_because_both_levels_agree_there():
    assert solved(16, 0.5, Constant(0.5)) == pytest.approx(0.9996, abs=6e-5)
    assert solved(64, 0.5, Constant(0.5)) == pytest.approx(1.0, abs=6e-5)


def test_a_geometric_leader_stops_short_because_its_reach_is_bounded():
    assert solved(64, 0.5, Geometric(0.5, 0.8)) == pytest.approx(solved(256, 0.5, Geometric(0.5, 0.8)), abs=1e-6)
    assert solved(256, 0.5, Geometric(0.5, 0.8)) < 0.99


def test_a_constant_leader_leaves_the_fixed_points_where_the_levels_disagree_and_a_harmonic_one_does_not():
    problem = Bilevel(upper=lambda w, u: ((u - 4) ** 2).sum() / 2, lower=lambda w, u: ((u - w) ** 2).sum() / 2)
    w, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    reach = lambda schedule: lower_solution(  # noqa: E731
        problem, w, zero, dynamics=Aggregated(GradientDescent(0.5), 0.5, schedule), steps=1000
    ).item()
    assert reach(Harmonic(0.5)) == pytest.approx(1.0, abs=5e-3)
    assert reach(Constant(0.5)) == pytest.approx(2.5, abs=1e-6)


@pytest.mark.parametrize("followers", [GradientDescent(0.3), Momentum(0.2, 0.5), Adam(0.05)])
def test_aggregated_hypergradients_are_exact(followers):
    a = random(4, 4)
    problem = Bilevel(
        upper=lambda w, u: ((u - 1) ** 2).sum() / 2 + (u * w).sin().sum(),
        lower=lambda w, u: ((a @ u - w) ** 2).sum() / 8 + (u**4).sum() / 20,
    )
    w, start = random(4, seed=1), random(4, seed=2)
    strategy = Unrolled(6, Aggregated(followers, 0.4, Harmonic(0.3)), keep_every=2)
    found = hypergradient(problem, w, start, strategy=strategy).gradient
    value = lambda v: hypergradient(problem, v, start, strategy=strategy).value.item()  # noqa: E731
    units = torch.eye(4, dtype=torch.float64) * 1e-5
    central = torch.tensor([(value(w + e) - value(w - e)) / 2e-5 for e in units], dtype=torch.float64)
    torch.testing.assert_close(found, central, rtol=1e-6, atol=1e-8)


def test_a_leader_in_the_metric_of_an_operator_with_multipliers_finds_the_best_of_many_fixed_points():
    """min 0 subject to A u = A w has a plane of solutions; the upper loss asks for the one of least norm."""
    a = random(3, 6)
    linear = matrix_map(a)
    make = lambda w: LinearisedALM(lambda v, t: v, linear, linear.forward(w), penalty=0.15, fraction=0.3)  # noqa: E731
    problem = Bilevel(upper=lambda w, state: (state[0] ** 2).sum() / 2, lower=None)
    w = random(1, 6, seed=1)
    start = (random(1, 6, seed=2), torch.zeros(1, 3, dtype=torch.float64))
    floor = float(make(w).metric.floor)

    def reach(mu):
        dynamics = Aggregated(FixedPointSteps(make), mu, Harmonic(0.9 * floor), metric=lambda w: make(w).metric)
        return lower_solution(problem, w, start, dynamics=dynamics, steps=400)[0]

    least = (torch.linalg.pinv(a) @ a @ w[0])[None]
    for mu in (0.0, 0.5):
        torch.testing.assert_close(linear.forward(reach(mu)), linear.forward(w), rtol=0, atol=0.02)
    assert (reach(0.0) - least).norm() > 1
    assert (reach(0.5) - least).norm() < 0.25 * (reach(0.0) - least).norm()


def test_the_metric_preconditions_and_receives_no_gradient():
    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)

    class Metric:
        floor = 1.0

        def apply(self, v):
            return weight * v

        def solve(self, v):
            return v / weight

    u = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    out = aggregated_step(lambda u: u, lambda v: (v**2).sum(), u, mu=0.5, step=0.1, metric=Metric())
    assert out.item() == pytest.approx(0.5 * (3 - 0.1 * 6 / 2) + 0.5 * 3)
    found, none = torch.autograd.grad(out.sum(), (u, weight), allow_unused=True)
    assert none is None
    assert found.item() == pytest.approx(0.5 * (1 - 0.1 * 2 / 2) + 0.5)


def test_projection_keeps_the_lower_parameters_in_their_set():
    problem = Bilevel(upper=lambda w, u: -u.sum(), lower=lambda w, u: ((u - 3 * w) ** 2).sum() / 2)
    dynamics = Aggregated(GradientDescent(0.5), project=lambda u: u.clamp(0, 1))
    found = hypergradient(problem, torch.ones(2), torch.zeros(2), strategy=Unrolled(20, dynamics))
    assert found.lower_params.tolist() == [1.0, 1.0]


def test_the_ball_projects_in_its_metric():
    """Against every other point of the ball, for a metric that is not diagonal; and its derivative."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    linear = matrix_map(A)
    metric = Linearised(linear, 0.5 / float(linear.norm) ** 2, 1.0)
    ball = Ball(metric, radius=1.5)
    u = 3 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    near = ball(u)
    torch.testing.assert_close(metric_norm(metric, near, per_sample=True), torch.full((4,), 1.5, dtype=torch.float64))
    v = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    inside = v * (1.5 / metric_norm(metric, v, per_sample=True))[:, None]
    for point, nearest in zip(u, near, strict=True):
        best = metric_norm(metric, (point - inside), per_sample=True).min()
        assert metric_norm(metric, (point - nearest)[None]) <= best
    assert torch.equal(ball(0.01 * u), 0.01 * u)
    assert torch.autograd.gradcheck(ball, (u.requires_grad_(),))
    other = ball(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    assert (metric_norm(metric, near - other, per_sample=True) <= metric_norm(metric, u - other, per_sample=True)).all()


def test_an_aggregated_step_ends_in_its_set_with_and_without_a_leader():
    for mu in (0.0, 0.5):
        step = aggregated_step(
            lambda u: u + 10, lambda u: (u**2).sum(), torch.ones(1, 2), mu=mu, step=0.1, project=lambda u: u.clamp(0, 1)
        )
        assert torch.equal(step, torch.ones(1, 2))


def test_implicit_strategies_refuse_aggregated_dynamics():
    strategy = ConjugateGradient(5, Aggregated(GradientDescent(0.5)))
    with pytest.raises(SolveError, match="Aggregated does not come to rest"):
        hypergradient(counter_example(), torch.tensor(1.0), torch.zeros(2), strategy=strategy)
    with pytest.raises(SolveError, match=r"mu must lie in \[0, 1\)"):
        Aggregated(GradientDescent(0.5), mu=1.0)


def test_the_outer_loop_solves_the_counter_example_with_aggregation_alone():
    def final(mu):
        strategy = Unrolled(16, Aggregated(GradientDescent(0.5), mu, Harmonic(1.0)))
        sgd = lambda p: torch.optim.SGD(p, 0.7)  # noqa: E731
        loop = rounds(
            counter_example(), torch.tensor(3.0), torch.zeros(2), strategy=strategy, optimizer=sgd, warm_start=False
        )
        return list(islice(loop, 20))

    with_leader, without = final(0.5), final(0.0)
    assert with_leader[-1].upper_params.item() == pytest.approx(0.9751, abs=1e-3)
    assert without[-1].upper_params.item() == pytest.approx(0.5, abs=1e-3)
    assert with_leader[-1].upper_loss < without[-1].upper_loss
    assert with_leader[-1].gradient_norm < 1e-4 > with_leader[-1].change


def test_a_warm_start_continues_where_the_last_round_ended():
    problem = Bilevel(upper=lambda w, u: ((u - 1) ** 2).sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2)
    strategy, still = Unrolled(3, GradientDescent(0.5)), lambda p: torch.optim.SGD(p, 0.0)
    w, start = torch.full((2,), 4.0), torch.zeros(2)
    warm = list(islice(rounds(problem, w, start, strategy=strategy, optimizer=still), 3))
    cold = list(islice(rounds(problem, w, start, strategy=strategy, optimizer=still, warm_start=False), 3))
    torch.testing.assert_close(warm[2].lower_params, 4 * (1 - 0.5 ** torch.full((2,), 9.0)))
    torch.testing.assert_close(cold[2].lower_params, 4 * (1 - 0.5 ** torch.full((2,), 3.0)))
    assert all(a.lower_change > b.lower_change for a, b in itertools.pairwise(warm))
    assert w.tolist() == [4, 4]
    assert start.tolist() == [0, 0]


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), lambda p: torch.optim.Adam(p, 0.1)])
def test_any_torch_optimiser_and_a_projection_serve_the_upper_level(make):
    problem = Bilevel(
        upper=lambda w, u: ((u["v"] - 1) ** 2).sum(), lower=lambda w, u: ((u["v"] - w[0] * w[1]) ** 2).sum() / 2
    )
    w, start = (torch.full((2,), 3.0), torch.tensor(1.0)), {"v": torch.zeros(2)}
    inside = lambda w: (w[0], w[1].clamp(0.5, 0.8))  # noqa: E731
    loop = rounds(problem, w, start, strategy=Unrolled(8, GradientDescent(0.5)), optimizer=make, project=inside)
    *_, last = islice(loop, 100)
    assert 0.5 <= last.upper_params[1] <= 0.8
    assert last.upper_loss < 1e-3
    assert len(tensors(last.upper_params)) == 2


def test_one_step_search_learns_the_loss_weight_that_validation_prefers():
    """Two lower terms pull to 0 and to 2; validation wants 1.5: the learned weights settle near one to three."""
    problem = Bilevel(
        upper=lambda w, u: ((u - 1.5) ** 2).sum(),
        lower=lambda w, u: (w.softmax(0)[0] * u**2 + w.softmax(0)[1] * (u - 2) ** 2).sum() / 2,
    )
    adam = lambda p: torch.optim.Adam(p, 0.05)  # noqa: E731
    loop = rounds(problem, torch.zeros(2), torch.zeros(1), strategy=OneStepUnrolled(0.5), optimizer=adam)
    *_, last = islice(loop, 200)
    torch.testing.assert_close(last.upper_params.softmax(0), torch.tensor([0.25, 0.75]), rtol=0, atol=0.01)
