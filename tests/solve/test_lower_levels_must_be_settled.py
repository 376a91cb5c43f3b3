"""Implicit gradients hold at a minimum of the lower loss: the distance to it is measured, reported and limited."""

import pytest
import torch
import torch.nn.functional as F

from twofold.solve import (
    Bilevel,
    CentralDifference,
    ConjugateGradient,
    GradientDescent,
    Momentum,
    Neumann,
    Settled,
    SolveError,
    Unrolled,
    hypergradient,
    lower_solution,
)
from twofold.solve.params import norm

ANY = Settled(relative=float("inf"))


def two_curvatures(small=1e-3):
    """Curvatures 1 and 1e-3: after 100 steps of gradient descent ‖∇f‖ is 2e-3, and the second coordinate a tenth of
    where it goes."""
    scales = torch.tensor([1.0, small], dtype=torch.float64)
    lower = lambda w, u: (scales * (u - w) ** 2).sum() / 2  # noqa: E731
    return Bilevel(upper=lambda w, u: ((u - 1) ** 2).sum(), lower=lower)


W, ZERO = torch.full((2,), 2.0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
WAYS = {
    "conjugate gradient": lambda steps, **s: ConjugateGradient(steps, GradientDescent(1.0), **s),
    "conjugate gradient by differences": lambda steps, **s: ConjugateGradient(
        steps, GradientDescent(1.0), cross=CentralDifference(), **s
    ),
    "neumann": lambda steps, **s: Neumann(steps, GradientDescent(1.0), 0.9, 9000, **s),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_of_the_wrong_sign_at_an_unsettled_lower_level_is_refused(way):
    with pytest.raises(SolveError, match=r"not settled after 100 steps.*at least about 1\.8e\+00 away"):
        hypergradient(two_curvatures(), W, ZERO, strategy=WAYS[way](100))


@pytest.mark.parametrize("way", WAYS)
def test_settled_by_more_steps_the_gradient_is_right(way):
    found = hypergradient(two_curvatures(1e-2), W, ZERO, strategy=WAYS[way](700))
    torch.testing.assert_close(found.gradient, torch.full_like(W, 2.0), rtol=1e-2, atol=0)
    assert found.cost.lower_distance < 0.05 * 2.9


def test_the_facts_name_the_gradients_norm_and_the_distance():
    start = torch.tensor([2.0, 1.9], dtype=torch.float64)
    cost = hypergradient(two_curvatures(), W, start, strategy=WAYS["conjugate gradient"](0)).cost
    assert cost.lower_gradient == pytest.approx(1e-4)
    assert cost.lower_distance == pytest.approx(0.1, rel=1e-6)


def test_with_the_strong_convexity_constant_the_distance_is_a_bound():
    start = torch.tensor([2.001, 1.99], dtype=torch.float64)
    known = Settled(strong_convexity=1e-3, relative=1.0)
    cost = hypergradient(two_curvatures(), W, start, strategy=WAYS["conjugate gradient"](0, settled=known)).cost
    assert cost.lower_distance == pytest.approx(float(norm(torch.tensor([1e-3, 1e-5]))) / 1e-3, rel=1e-4)
    assert cost.lower_distance >= (start - W).norm()
    strict = Settled(strong_convexity=1e-3)
    with pytest.raises(SolveError, match=r"puts its stationary point at most 1\.0e\+00 away"):
        hypergradient(two_curvatures(), W, start, strategy=WAYS["conjugate gradient"](0, settled=strict))


def test_who_accepts_an_unsettled_lower_level_gets_the_gradient_and_its_norm_without_a_further_product():
    way = WAYS["conjugate gradient"](100, settled=ANY)
    found = hypergradient(two_curvatures(), W, ZERO, strategy=way)
    assert found.gradient[1].item() == pytest.approx(2 * (2 * (1 - 0.999**100) - 1), rel=1e-3)
    assert found.cost.lower_gradient == pytest.approx(1e-3 * 2 * 0.999**100, rel=1e-6)
    assert found.cost.lower_distance is None
    measured = hypergradient(two_curvatures(), W, W, strategy=WAYS["conjugate gradient"](0)).cost
    assert measured.products <= found.cost.products


def test_the_distance_is_a_lower_bound_that_more_products_sharpen():
    curvatures = torch.logspace(-3, 0, 12, dtype=torch.float64)
    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lambda w, u: (curvatures * (u - w) ** 2).sum() / 2)
    w, start = torch.ones(12, dtype=torch.float64), torch.linspace(1.1, 0.9, 12, dtype=torch.float64)
    truth, last = float((start - w).norm()), 0.0
    for products in (1, 2, 4, 8, 12):
        settled = Settled(relative=1.0, products=products)
        way = ConjugateGradient(0, GradientDescent(1.0), settled=settled, tolerance=1e-6)
        found = hypergradient(problem, w, start, strategy=way).cost.lower_distance
        assert last <= found <= truth * (1 + 1e-6)
        last = found
    assert last > 0.6 * truth  # it stops where a tenth of the gradient is left


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_minimum_up_to_rounding_is_settled_however_flat_the_loss_is_elsewhere(dtype, shift):
    """Fewer samples than parameters: a plane of minima, and a gradient that is rounding in the flat directions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 30, dtype=dtype, generator=generator)
    y = torch.randn(10, dtype=dtype, generator=generator) + shift
    problem = Bilevel(
        upper=lambda w, u: ((x[:5] @ u) ** 2).mean(),
        lower=lambda w, u: ((x @ u - y * w) ** 2).mean() / 2,
    )
    w = torch.ones((), dtype=dtype)
    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    found = hypergradient(problem, w, best, strategy=ConjugateGradient(0, GradientDescent(0.1), tolerance=1e-3))
    assert found.cost.lower_gradient < 1e-4
    torch.testing.assert_close(found.gradient, 2 * (y[:5] ** 2).mean(), rtol=5e-3, atol=0)


def test_a_minimum_at_zero_is_settled_by_the_absolute_distance():
    problem = Bilevel(upper=lambda w, u: ((u - 1) ** 2).sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2)
    w, near = torch.zeros(3, dtype=torch.float64), torch.full((3,), 1e-9, dtype=torch.float64)
    way = ConjugateGradient(0, GradientDescent(0.5))
    torch.testing.assert_close(hypergradient(problem, w, near, strategy=way).gradient, torch.full_like(w, -2.0))
    with pytest.raises(SolveError, match="not settled"):
        hypergradient(problem, w, 100 * near, strategy=way)


def test_a_point_from_which_the_lower_loss_curves_downwards_is_refused():
    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lambda w, u: (w * u).cos().sum())
    with pytest.raises(SolveError, match="curves downwards along its own gradient"):
        hypergradient(problem, torch.ones(2), torch.full((2,), 0.3), strategy=WAYS["conjugate gradient"](0))


@pytest.mark.parametrize("dynamics", [GradientDescent(0.5), Momentum(0.1)])
def test_logistic_regression_with_one_weight_decay_a_coordinate_is_right_or_refused(dynamics):
    """Ten classes, 300 decays: after ten steps refused; trained long, the gradient is that of finite differences."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 30, generator=generator, dtype=torch.float64)
    t = (x @ torch.randn(30, 10, generator=generator, dtype=torch.float64)).argmax(1)
    problem = Bilevel(
        upper=lambda w, u: F.cross_entropy(x[60:] @ u, t[60:]),
        lower=lambda w, u: F.cross_entropy(x[:60] @ u, t[:60]) + (w.exp() * u**2).sum() / 2,
    )
    w, start = torch.full((30, 10), -3.0, dtype=torch.float64), torch.zeros(30, 10, dtype=torch.float64)
    with pytest.raises(SolveError, match="not settled"):
        hypergradient(problem, w, start, strategy=ConjugateGradient(10, dynamics))
    long = lambda w: lower_solution(problem, w, start, dynamics=Momentum(0.5, 0.9), steps=500)  # noqa: E731
    minimum = long(w)
    found = hypergradient(problem, w, minimum, strategy=ConjugateGradient(0, dynamics, tolerance=1e-8)).gradient
    direction = torch.randn(30, 10, generator=generator, dtype=torch.float64)
    value = lambda w: problem.upper(w, long(w)).item()  # noqa: E731
    central = (value(w + 1e-4 * direction) - value(w - 1e-4 * direction)) / 2e-4
    assert float((found * direction).sum()) == pytest.approx(central, rel=1e-3)


def test_conjugate_gradients_stop_at_the_tolerance_they_were_given_and_not_at_ten_times_it():
    """Eight curvatures and one upper direction in all of them: each iteration leaves a known residual."""
    curvatures = torch.logspace(-2, 0, 8, dtype=torch.float64)
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lambda w, u: (curvatures * u**2).sum() / 2 - (w * u).sum())
    w = torch.ones(8, dtype=torch.float64)
    for tolerance in (0.3, 1e-2, 1e-6):
        for iterations in range(1, 9):
            way = ConjugateGradient(0, GradientDescent(1.0), iterations, tolerance)
            left = ConjugateGradient(0, GradientDescent(1.0), iterations, 1e9)
            residual = hypergradient(problem, w, w / curvatures, strategy=left).cost.residual
            if residual > tolerance:
                with pytest.raises(SolveError, match="stalled at a relative residual"):
                    hypergradient(problem, w, w / curvatures, strategy=way)
            else:
                found = hypergradient(problem, w, w / curvatures, strategy=way)
                assert found.cost.residual <= tolerance
                assert norm(found.gradient - 1 / curvatures) <= 100 * tolerance * 8**0.5


def test_conjugate_gradients_restart_where_rounding_has_misled_them():
    """In float32 the residual that the recursion tracks falls below the tolerance before the true one does."""
    curvatures = torch.logspace(-3.5, 0, 60)
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lambda w, u: (curvatures * u**2).sum() / 2 - (w * u).sum())
    w = torch.ones(60)
    way = ConjugateGradient(0, GradientDescent(1.0), 600, 1e-5, settled=ANY)
    found = hypergradient(problem, w, w / curvatures, strategy=way)
    assert found.cost.residual <= 1e-5
    torch.testing.assert_close(found.gradient, 1 / curvatures, rtol=5e-3, atol=0)


@pytest.mark.parametrize(("iterations", "enough"), [(100, True), (12, True), (11, False), (8, False), (6, False)])
def test_conjugate_gradients_begin_anew_within_their_iterations_where_the_recursion_was_wrong(iterations, enough):
    """Six curvatures take six iterations. The first six products are of another matrix, so the first pass is a per cent
    off when its residual is evaluated, and a second one puts that right if there are iterations left."""
    curvatures, calls = torch.linspace(0.1, 1, 6, dtype=torch.float64), iter(range(999))
    product = lambda v: curvatures * v * (1.01 if next(calls) < 6 else 1.0)  # noqa: E731
    way = ConjugateGradient(0, GradientDescent(1.0), iterations, 1e-6)
    b = torch.ones(6, dtype=torch.float64)
    if enough:
        v, residual = way.inverse(product, b)
        assert residual <= 1e-6
        torch.testing.assert_close(v, 1 / curvatures, rtol=1e-5, atol=0)
    else:
        with pytest.raises(SolveError, match=rf"stalled at a relative residual of .* after {iterations} iterations"):
            way.inverse(product, b)


def test_a_pass_of_one_iteration_counts_as_one():
    calls = iter(range(99))
    product = lambda v: v * (1.01 if next(calls) == 0 else 1.0)  # noqa: E731
    _, residual = ConjugateGradient(0, GradientDescent(1.0), 2, 1e-6).inverse(product, torch.ones(2))
    assert residual <= 1e-6


def test_conjugate_gradients_do_not_begin_anew_where_that_does_not_help():
    """Every product is of another matrix than the last: no pass halves what the one before left."""
    calls = iter(range(999))
    product = lambda v: v * (1.0 if next(calls) % 2 else 2.0)  # noqa: E731
    with pytest.raises(SolveError, match="stalled"):
        ConjugateGradient(0, GradientDescent(1.0), 500, 1e-6).inverse(product, torch.ones(2))
    assert next(calls) < 12


def test_a_tolerance_of_one_takes_every_iteration_and_accepts_what_is_left():
    way = ConjugateGradient(0, GradientDescent(1.0), 5, 1.0)
    found = hypergradient(two_curvatures(), W, W, strategy=way)
    torch.testing.assert_close(found.gradient, torch.full_like(W, 2.0))


def test_the_remainder_of_neumanns_series_is_held_to_its_tolerance():
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2)
    w = torch.ones(3, dtype=torch.float64)
    for terms in range(1, 20):  # each leaves half of the last
        way = Neumann(0, GradientDescent(0.5), 0.5, terms, 1e-3)
        if terms < 10:
            with pytest.raises(SolveError, match="take more terms"):
                hypergradient(problem, w, w, strategy=way)
        else:
            found = hypergradient(problem, w, w, strategy=way)
            assert found.cost.residual == 0.5**10
            torch.testing.assert_close(found.gradient, torch.full_like(w, 1 - 0.5**11))


@pytest.mark.parametrize(
    "setting", [{"relative": -1.0}, {"absolute": float("nan")}, {"products": 0}, {"strong_convexity": 0.0}]
)
def test_limits_without_meaning_are_refused(setting):
    with pytest.raises(SolveError, match=r"relative ≥ 0|must be positive"):
        Settled(**setting)


def test_unrolling_asks_for_no_minimum():
    found = hypergradient(two_curvatures(), W, ZERO, strategy=Unrolled(100, GradientDescent(1.0)))
    assert found.cost.lower_distance is None
