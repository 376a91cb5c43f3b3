"""Guards that act in the middle of a run, each at the step, the sample and the size where it has to."""

import pytest
import torch
from torch import nn

from twofold.solve import (
    Adaptive,
    Aggregated,
    Anderson,
    Bilevel,
    ConjugateGradient,
    Euclidean,
    GradientDescent,
    Linearised,
    Neumann,
    NystromInverse,
    OneStepUnrolled,
    ProximalGradient,
    Regularity,
    Scaled,
    SolveError,
    Unrolled,
    adaptive_descent,
    as_function,
    certified,
    gmres,
    hypergradient,
    matrix_map,
    metric_of,
)


def test_a_leaders_step_is_judged_by_the_change_that_it_made_itself():
    """Steps 0 to 3, of which step 2 alone is too long: what it did is seen at step 3."""
    problem = Bilevel(lambda w, u: 100 * ((u - 3) ** 2).sum(), lambda w, u: ((u - w) ** 2).sum() / 2)
    w, u = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    leader = Aggregated(GradientDescent(0.5), schedule=lambda k: 0.5 if k == 2 else 1e-3)
    with pytest.raises(SolveError, match="at lower step 2 is too long"):
        hypergradient(problem, w, u, strategy=Unrolled(4, leader))
    assert hypergradient(problem, w, u, strategy=Unrolled(2, leader)).value.isfinite()  # which never takes it


@pytest.mark.parametrize(("grown_by", "plain"), [(0.4, False), (1.9, False), (2.1, True)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_anderson_compares_residuals_whatever_their_size(grown_by, plain, size):
    solver, residual = Anderson(), torch.tensor([size])
    _, memory = solver.advance(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), residual, None)
    u, image = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.5, 0.2]])
    taken, _ = solver.advance(u, image, grown_by * residual, memory)
    assert torch.equal(taken, image) is plain


def test_a_buffer_that_changes_after_its_module_has_run_is_refused():
    net = nn.Linear(3, 1)
    net.register_buffer("calls", torch.zeros(()))
    function, u = as_function(net)

    def lower(w, u):
        value = (w * function(u, torch.ones(2, 3)) ** 2).sum()
        net.calls += 1
        return value

    problem = Bilevel(upper=lambda w, u: sum((t**2).sum() for t in u.values()), lower=lower)
    with pytest.raises(SolveError, match="changes 'calls' of Linear"):
        hypergradient(problem, torch.ones(()), u, strategy=OneStepUnrolled(0.1))


def first_step(w, u, **settings):
    """Of F = (u − 1)² / 2 with u(w) = 2 w, by lower steps that halve the distance."""
    problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)
    known = Regularity(strong_convexity=1.0, mixed_norm=2.0, upper_lipschitz=1.0)
    w, u = torch.tensor(w, dtype=torch.float64), torch.tensor(u, dtype=torch.float64)
    way = GradientDescent(0.5)
    return next(
        adaptive_descent(problem, w, u, dynamics=way, regularity=lambda w: known, settings=Adaptive(**settings))
    )


def test_a_small_gradient_is_trusted_only_with_a_smaller_error():
    """At w = 0.6 and u = 1.6 the gradient is 1.2 and the bound of its error 0.8: 0.6 is allowed."""
    first = first_step(0.6, 1.6, accuracy=0.5, step_size=0.1)
    assert first.rejections == 1
    assert first.accuracy == pytest.approx(0.4 * 0.375)


def test_a_step_is_accepted_for_what_it_gains_at_least_and_not_for_what_it_may_gain():
    """From w = 3 a step of ½ leads to w = −2, where F is as large. Known to ±3.1, it might be 6.2 lower, and 5 would be
    enough: the step is shortened, and ¼ leads to the minimum."""
    first = first_step(3.0, 6.0, accuracy=3.0, step_size=0.5)
    assert (first.rejections, first.step_size) == (1, 0.25)
    assert first.upper_params.item() == 0.5


def test_the_inverse_of_a_metric_is_as_exact_for_a_small_sample_as_for_a_large_one():
    """The large one is an eigenvector, for which one step would do."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 9, dtype=torch.float64, generator=generator)
    metric = Linearised(matrix_map(a / torch.linalg.matrix_norm(a, 2)), step=0.9, penalty=1.0)
    v = torch.stack([1e20 * torch.linalg.svd(a).Vh[-1], torch.randn(9, dtype=torch.float64, generator=generator)])
    torch.testing.assert_close(metric.apply(metric.solve(v))[1], v[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", [ConjugateGradient(0, GradientDescent(0.5)), Neumann(0, GradientDescent(0.5), 0.5)])
def test_where_the_upper_loss_is_at_its_minimum_nothing_is_solved_and_nothing_is_left(way):
    problem = Bilevel(lambda w, u: ((u - 1) ** 2).sum() + 3 * w.sum(), lambda w, u: ((u - w) ** 2).sum() / 2)
    found = hypergradient(problem, torch.ones(2), torch.ones(2), strategy=way)
    assert found.gradient.tolist() == [3, 3]
    assert found.cost.residual == 0


def test_a_low_rank_inverse_without_a_ridge_is_refused_by_name():
    with pytest.raises(SolveError, match="an approximation of low rank has no inverse"):
        NystromInverse(rank=1).solve(lambda v: v, torch.ones(2), 0.0)


def test_a_single_aggregated_step_is_judged_before_it_is_taken():
    problem = Bilevel(lambda w, u: 100 * ((u - 3) ** 2).sum(), lambda w, u: ((u - w) ** 2).sum() / 2)
    w, u = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(SolveError, match="at lower step 0 is too long"):
        hypergradient(problem, w, u, strategy=Unrolled(1, Aggregated(GradientDescent(0.5))))


def test_an_aggregated_state_with_other_parameters_keeps_its_memory():
    way = Aggregated(GradientDescent(0.5))
    state = way.begin(torch.zeros(2))
    other = way.replace(state, torch.ones(2))
    assert torch.equal(way.params(other), torch.ones(2))
    assert len(other) == len(state) == 3


def test_gmres_takes_no_more_products_than_it_was_given_whatever_the_restart():
    calls = []
    a = torch.diag(torch.logspace(-3, 0, 20, dtype=torch.float64))
    product = lambda v: calls.append(1) or a @ v  # noqa: E731
    found = gmres(product, torch.ones(20, dtype=torch.float64), steps=5, tolerance=0, restart=3)
    assert found.steps == 5
    assert len(calls) == 5 + 2  # and one for the residual after each cycle


def test_one_step_for_all_coordinates_leaves_the_metric_euclidean():
    assert metric_of(ProximalGradient(lambda u: u, 2.0)) == Euclidean()
    assert metric_of(ProximalGradient(lambda u: u, torch.tensor(2.0))) == Euclidean()
    assert isinstance(metric_of(ProximalGradient(lambda u: u, torch.tensor([2.0, 3.0]))), Scaled)


def test_where_the_upper_loss_is_flat_the_bounds_hold_the_distance_alone():
    problem = Bilevel(lambda w, u: (u - 1) ** 2 / 2, lambda w, u: (u - w) ** 2 / 2)
    known = Regularity(strong_convexity=1.0, mixed_norm=1.0, upper_lipschitz=1.0)
    found = certified(problem, torch.tensor(1.5), torch.tensor(1.0), regularity=known)
    assert (found.distance, found.value_error, found.error) == (0.5, 0.125, 0.5)
