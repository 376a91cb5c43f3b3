"""Bounds that hold, are not empty, and a descent that relies on nothing else."""

from itertools import islice

import pytest
import torch
from quadratics import quadratic, random

from twofold.solve import Adam, Bilevel, FixedPointSteps, GradientDescent, Momentum
from twofold.solve.adaptive import Adaptive, Regularity, adaptive_descent, certified
from twofold.solve.params import SolveError

Q = quadratic()
VALUES = torch.linalg.eigvalsh(Q.a)
STEP = 0.9 / VALUES[-1].item()
W, ZERO = random(3, seed=3), torch.zeros(5, dtype=torch.float64)
KNOWN = Regularity(
    strong_convexity=VALUES[0].item(), mixed_norm=torch.linalg.matrix_norm(Q.b, 2).item(), upper_lipschitz=1.0
)


class Logistic:
    """Logistic regression with a weight decay exp(w_j) for each feature; held-out loss above. Its constants are known:
    the curvature of a logistic loss is at most ¼ and its third derivative at most 1 / (6 √3)."""

    def __init__(self, features=4, samples=30):
        self.x, self.y = random(samples, features), random(samples, seed=1).sign()
        self.xv, self.yv = random(20, features, seed=2), random(20, seed=3).sign()
        self.problem = Bilevel(
            upper=lambda w, u: torch.nn.functional.softplus(-self.yv * (self.xv @ u)).mean() + 0.05 * (w**2).sum(),
            lower=lambda w, u: torch.nn.functional.softplus(-self.y * (self.x @ u)).mean() + (w.exp() * u**2).sum() / 2,
        )

    def regularity(self, w, radius=10.0):
        """For ‖u‖_∞ ≤ radius: ∇²_wu f = diag(exp(w) u)."""
        largest = self.x.norm(dim=1).max().item()
        spectral = lambda x: (torch.linalg.matrix_norm(x, 2) ** 2 / len(x)).item()  # noqa: E731
        return Regularity(
            strong_convexity=w.exp().min().item(),
            mixed_norm=w.exp().max().item() * radius,
            upper_lipschitz=spectral(self.xv) / 4,
            hessian_lipschitz=spectral(self.x) * largest / (6 * 3**0.5),
            mixed_lipschitz=w.exp().max().item(),
        )

    def truth(self, w):
        """The minimum by Newton's method, the value there and its gradient by dense linear algebra."""
        u = torch.zeros(4, dtype=torch.float64)
        for _ in range(50):
            p = torch.sigmoid(-self.y * (self.x @ u))
            g = -(self.x * (self.y * p)[:, None]).mean(0) + w.exp() * u
            h = (self.x * (p * (1 - p))[:, None]).T @ self.x / len(self.x) + w.exp().diag()
            u = u - torch.linalg.solve(h, g)
        assert g.norm() < 1e-13
        leaf = u.clone().requires_grad_()
        value = self.problem.upper(w, leaf)
        (b,) = torch.autograd.grad(value, leaf)
        return u, value.item(), 0.1 * w - (w.exp() * u) * torch.linalg.solve(h, b)


LOGISTIC = Logistic()


@pytest.mark.parametrize("residual", [1e-8, 1e-2, 0.3])
@pytest.mark.parametrize("distance", [1e-6, 1e-3, 0.1, 1.0])
def test_the_bounds_hold_for_logistic_regression_wherever_the_solve_stops(distance, residual):
    for seed in range(8):
        w = random(4, seed=seed + 10)
        u, value, gradient = LOGISTIC.truth(w)
        away = random(4, seed=seed + 40)
        at = u + distance * away / away.norm()
        known = LOGISTIC.regularity(w, radius=float(at.abs().max().maximum(u.abs().max())))
        found = certified(LOGISTIC.problem, w, at, regularity=known, linear_tolerance=residual)
        assert found.distance >= (at - u).norm() * (1 - 1e-9)
        assert (found.gradient - gradient).norm() <= found.error
        assert abs(found.value - value) <= found.value_error


def test_the_bounds_are_not_empty():
    """On the quadratic the bound of the gradient is met up to the conditioning of the problem."""
    ratios = []
    for seed in range(10):
        u = Q.answer(W) + 0.1 * random(5, seed=seed)
        found = certified(Q.problem, W, u, regularity=KNOWN, linear_tolerance=1e-9)
        true = (found.gradient - Q.gradient(W)).norm().item()
        assert true <= found.error
        ratios.append(found.error / true)
    condition = (VALUES[-1] / VALUES[0]).item()
    assert min(ratios) < 3 * condition


def test_the_bound_falls_with_the_distance_and_the_residual():
    u = Q.answer(W)
    errors = [
        certified(Q.problem, W, u + d * random(5, seed=1), regularity=KNOWN, linear_tolerance=d).error
        for d in (1e-1, 1e-3, 1e-5)
    ]
    assert errors[0] > 50 * errors[1] > 2000 * errors[2]


def test_a_regularity_that_the_solve_contradicts_is_refused():
    with pytest.raises(SolveError, match="not as regular as claimed"):
        certified(Q.problem, W, ZERO, regularity=Regularity(10.0, KNOWN.mixed_norm, 1.0))
    with pytest.raises(SolveError, match="not as regular as claimed"):
        certified(Q.problem, W, ZERO, regularity=Regularity(KNOWN.strong_convexity, 1e-3, 1.0))
    with pytest.raises(SolveError, match="strong_convexity"):
        Regularity(0.0, 1.0, 1.0)
    with pytest.raises(SolveError, match="conjugate gradients left"):
        certified(Q.problem, W, ZERO, regularity=KNOWN, linear_tolerance=1e-9, iterations=1)


@pytest.mark.parametrize("dynamics", [GradientDescent(STEP), Momentum(STEP / 2, 0.6), Adam(0.01)], ids=type)
def test_the_descent_reaches_the_known_optimum_and_knows_it(dynamics):
    tolerance = 1e-2 if isinstance(dynamics, Adam) else 1e-6
    way = adaptive_descent(
        Q.problem, W, ZERO, dynamics=dynamics, regularity=lambda w: KNOWN, settings=Adaptive(tolerance=tolerance)
    )
    *_, last = way
    assert last.certain
    assert Q.gradient(last.upper_params).norm() <= tolerance
    torch.testing.assert_close(last.upper_params, Q.optimum(), rtol=2 * tolerance, atol=2 * tolerance)


def test_every_step_lowers_the_true_upper_loss_though_no_value_is_exact():
    settings = Adaptive(accuracy=0.5, linear_accuracy=0.5, tolerance=1e-3, step_size=200.0)
    before = LOGISTIC.truth(torch.zeros(4, dtype=torch.float64))[1]
    steps = list(run_logistic(settings))
    for step in steps[:-1]:
        value = LOGISTIC.truth(step.upper_params)[1]
        assert value < before
        assert abs(step.value - value) <= step.value_error
        before = value
    assert LOGISTIC.truth(steps[-1].upper_params)[2].norm() <= 1e-3
    assert steps[-1].certain
    assert max(step.rejections for step in steps) > 0


def run_logistic(settings):
    w, u = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    largest = torch.linalg.eigvalsh(LOGISTIC.x.T @ LOGISTIC.x / 30)[-1].item() / 4
    return adaptive_descent(
        LOGISTIC.problem,
        w,
        u,
        dynamics=GradientDescent(1.0 / (largest + 3)),
        regularity=lambda w: LOGISTIC.regularity(w, radius=3.0),
        settings=settings,
    )


def test_accuracies_follow_the_need_and_adaptive_ones_cost_less_than_tight_ones():
    def cost(settings):
        *steps, last = adaptive_descent(
            Q.problem, W, ZERO, dynamics=GradientDescent(STEP), regularity=lambda w: KNOWN, settings=settings
        )
        assert last.certain
        return last.lower_gradients, [step.accuracy for step in steps]

    loose, accuracies = cost(Adaptive(tolerance=1e-4))
    tight, _ = cost(Adaptive(tolerance=1e-4, accuracy=1e-8, linear_accuracy=1e-8, grow=1.0))
    assert loose < 0.4 * tight
    assert accuracies[-1] < accuracies[0] / 10


def test_a_lower_level_that_is_solved_exactly_is_no_reason_to_ask_for_the_impossible():
    a = torch.diag(torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64))
    b = random(4, 4)

    class Direct(GradientDescent):
        def step(self, problem, k, upper, state):
            return torch.linalg.solve(a, b @ upper)

    problem = Bilevel(lambda w, u: ((u - 1) ** 2).sum() / 2 + (w**2).sum() / 2, lambda w, u: u @ a @ u / 2 - u @ b @ w)
    known = Regularity(1.0, torch.linalg.matrix_norm(b, 2).item(), 1.0)
    w = random(4, seed=1)
    way = adaptive_descent(
        problem, w, 0 * w, dynamics=Direct(1.0), regularity=lambda w: known, settings=Adaptive(1.0, 1.0, tolerance=1e-5)
    )
    *_, last = way
    assert last.certain


def test_what_cannot_be_reached_is_refused():
    problem = Bilevel(lambda w, u: ((u - 1) ** 2).sum(), lambda w, u: ((u - w) ** 2).sum() / 2)
    w = torch.ones(3)
    known = Regularity(strong_convexity=1.0, mixed_norm=1.0, upper_lipschitz=2.0)
    way = adaptive_descent(
        problem, 2 * w, w, dynamics=GradientDescent(0.3), regularity=lambda w: known, settings=Adaptive(accuracy=1e-12)
    )
    with pytest.raises(SolveError, match="float64"):
        list(way)
    way = adaptive_descent(
        problem, w, 2 * w, dynamics=FixedPointSteps(lambda w: lambda u: u), regularity=lambda w: known
    )
    with pytest.raises(SolveError, match="does not come to rest"):
        next(way)


def test_the_bounds_are_their_formulas():
    known = Regularity(0.5, 2.0, 3.0, hessian_lipschitz=5.0, mixed_lipschitz=7.0, direct_lipschitz=11.0)
    wrong_adjoint = (5.0 * 0.1 * 0.3 + 3.0 * 0.1 + 0.01) / 0.5
    assert known.error(0.1, 0.3, 0.01) == pytest.approx(11.0 * 0.1 + 7.0 * 0.1 * 0.3 + 2.0 * wrong_adjoint)
    assert known.value_error(0.1, 0.3, 0.01) == pytest.approx((3.0 + 5.0 * 0.3) * 0.1**2 / 2 + 0.01 * 0.1)


def line(**settings):
    """F = (u − 1)² / 2 and u(w) = 2 w, with lower steps that halve the distance: all can be followed by hand."""
    problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)
    known = Regularity(strong_convexity=1.0, mixed_norm=2.0, upper_lipschitz=1.0)
    w = torch.tensor(3.0, dtype=torch.float64)
    return adaptive_descent(
        problem, w, w, dynamics=GradientDescent(0.5), regularity=lambda w: known, settings=Adaptive(**settings)
    )


def test_a_step_that_succeeds_at_once_loosens_both_accuracies_and_lengthens_the_next():
    settings = {"accuracy": 1e-3, "linear_accuracy": 1e-4, "step_size": 0.02, "grow": 1.5, "lengthen": 1.25}
    steps = list(islice(line(**settings), 5))
    assert [s.number for s in steps] == [0, 1, 2, 3, 4]
    assert [s.rejections for s in steps] == [0] * 5
    assert not any(s.certain for s in steps)
    for k, s in enumerate(steps):
        assert s.step_size == pytest.approx(0.02 * 1.25**k)
        assert s.accuracy == pytest.approx(1e-3 * 1.5**k)
        assert s.linear_accuracy == pytest.approx(1e-4 * 1.5**k)


def test_a_step_that_is_too_long_is_shortened_and_the_accuracies_are_left():
    """The curvature in w is 4, so steps above ½ raise the loss and those near it lower it too little."""
    first = next(line(accuracy=1e-3, linear_accuracy=1e-4, step_size=8.0, shorten=0.25))
    assert (first.step_size, first.rejections) == (0.125, 3)
    assert (first.accuracy, first.linear_accuracy) == (1e-3, 1e-4)


def test_a_direction_that_is_too_inaccurate_tightens_both_accuracies_by_what_is_missing():
    """At w = 3 and u = 3 the gradient is 4 and the bound of its error 2 · 3. Half of 4 is allowed: a factor of 1/3 is
    missing, and half of that is taken, of the distance 3 that was there."""
    first = next(line(accuracy=4.0, linear_accuracy=1.0, step_size=0.02, shrink=0.5))
    assert first.rejections == 1
    assert first.accuracy == pytest.approx(3.0 / 6)
    assert first.linear_accuracy == pytest.approx(1.0 / 6)
