"""Numbers inside the methods: where they stop, what they refuse, how much of a budget they use."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from quadratics import random

from twofold.solve import (
    Adam,
    AdaptedOneStep,
    Aggregated,
    Anderson,
    Bilevel,
    Broyden,
    CentralDifference,
    Damped,
    ForwardDifference,
    GaussNewton,
    GradientDescent,
    KrasnoselskiiMann,
    Neumann,
    ProximalGradient,
    Settled,
    SolveError,
    contraction_factor,
    gmres,
    hypergradient,
    minres,
    nystrom,
    shared,
)
from twofold.solve import levels as levels_module
from twofold.solve.adaptive import Adaptive, Regularity, adaptive_descent, certified
from twofold.solve.evaluator import Evaluator
from twofold.solve.krylov import refined
from twofold.solve.linear import Euclidean, LinearMap, PrimalDual, Scaled, conjugate_gradient, matrix_map
from twofold.solve.meta import Constant, curvature
from twofold.solve.solvers import NotConverged, Solution, iterate, require_converged
from twofold.solve.unroll import replayed
from twofold.solve.watch import same_states

EPS = torch.finfo(torch.float64).eps
TURN = torch.linalg.qr(random(12, 12, seed=4)).Q
DEFINITE = (
    TURN @ torch.diag(torch.tensor([0.1, 0.2, 0.5, 0.9, 1.3, 2, 3, 5, 8, 13, 21, 34], dtype=torch.float64)) @ TURN.T
)
B = random(12)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def solved(solver: str, steps: int, tolerance: float, matrix: torch.Tensor = DEFINITE) -> Any:
    def apply(x: torch.Tensor) -> torch.Tensor:
        return matrix @ x

    if solver == "refined":
        rough = nystrom(apply, B, rank=2, ridge=1.0, generator=generator())
        return refined(apply, B, rough, steps=steps, tolerance=tolerance)
    way: Any = {"minres": minres, "gmres": gmres, "cg": conjugate_gradient}[solver]
    return way(apply, B, steps=steps, tolerance=tolerance)


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.03, 0.01, 1e-3, 1e-5])
@pytest.mark.parametrize("solver", ["minres", "gmres", "refined", "cg"])
def test_linear_solvers_stop_once_they_are_within_the_tolerance_and_no_later_than_at_half_of_it(
    solver: str, tolerance: float
) -> None:
    found = solved(solver, 40, tolerance)
    assert found.residual <= tolerance
    torch.testing.assert_close(found.residual, (B - DEFINITE @ found.value).norm() / B.norm(), rtol=1e-6, atol=1e-12)
    assert solved(solver, found.steps - 1, tolerance).residual > 0.5 * tolerance


@pytest.mark.parametrize("size", [1e-10, 1e10])
def test_linear_solvers_do_not_depend_on_the_scale_of_the_matrix(size: float) -> None:
    for solver in ("minres", "gmres"):
        found = solved(solver, 40, 1e-8, size * DEFINITE)
        assert found.residual <= 1e-8
        assert found.steps <= 14


def test_gmres_spends_its_steps_over_all_restarts_and_no_more() -> None:
    calls = []
    found = gmres(lambda x: calls.append(1) or DEFINITE @ x, B, steps=8, tolerance=0.0, restart=6)  # type: ignore[func-returns-value]
    assert found.steps == 8
    assert len(calls) == 8 + 2  # and a residual after each cycle
    assert gmres(lambda x: 2 * x, B, steps=9, tolerance=0.0).steps <= 2  # one vector holds the solution


def test_minres_on_a_singular_matrix_reaches_what_the_range_allows() -> None:
    """Eight eigenvalues are not 0, so eight steps reach it."""
    matrix = TURN @ torch.diag(torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, -8.0], dtype=torch.float64)) @ TURN.T
    residuals = [float(minres(lambda x: matrix @ x, B, steps=k, tolerance=0.0).residual) for k in range(1, 9)]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] == pytest.approx(float((TURN[:, :4].T @ B).norm() / B.norm()))


def test_nystrom_accepts_a_negative_curvature_of_the_size_of_rounding_alone() -> None:
    def of(*values: float) -> Any:
        matrix = torch.diag(torch.tensor(values, dtype=torch.float64))
        return nystrom(
            lambda x: matrix @ x, torch.zeros(3, dtype=torch.float64), rank=3, ridge=0.5, generator=generator()
        )

    torch.testing.assert_close(of(0.0, 0.0, 0.0).solve(torch.ones(3, dtype=torch.float64)), 2 * torch.ones(3).double())
    found = of(1e8, 1.0, -1e-7)
    assert (found.values >= 0).all()
    for values in [(1e8, 1.0, -1e-4), (1e-3, 1e-3, -1e-10), (1.0, 1.0, -1e-11)]:
        with pytest.raises(SolveError, match="curvature"):
            of(*values)


def test_refined_meets_a_negative_curvature_and_refuses() -> None:
    rough = nystrom(lambda x: x, B, rank=1, ridge=1.0, generator=generator())
    matrix = torch.diag(torch.tensor([1.0] * 11 + [-1.0], dtype=torch.float64))
    with pytest.raises(SolveError, match="curvature"):
        refined(lambda x: matrix @ x, B, rough, steps=20, tolerance=1e-8)


@pytest.mark.parametrize(("step", "dual_step"), [(0.2, 0.7), (0.7, 0.2), (0.3, 0.3)])
def test_the_floor_of_the_primal_dual_metric_is_its_smallest_eigenvalue(step: float, dual_step: float) -> None:
    matrix = random(3, 2, seed=2)
    metric = PrimalDual(matrix_map(matrix), step, dual_step)
    columns = [torch.cat(metric.apply((e[None, :2], e[None, 2:])), 1)[0] for e in torch.eye(5, dtype=torch.float64)]
    torch.testing.assert_close(torch.as_tensor(metric.floor), torch.linalg.eigvalsh(torch.stack(columns))[0])


def test_one_step_size_keeps_the_euclidean_metric_and_one_for_each_coordinate_does_not() -> None:
    for smoothness in (2.0, torch.tensor(2.0)):
        assert ProximalGradient(lambda u: u, smoothness).metric == Euclidean()
    metric = ProximalGradient(lambda u: u, torch.tensor([1.0, 2.0])).metric  # of steps 1 and ½
    assert isinstance(metric, Scaled)
    assert metric.apply(torch.ones(2)).tolist() == [1.0, 2.0]


def test_the_contraction_factor_is_the_mean_growth_over_the_second_half_of_the_steps() -> None:
    matrix, v, growth = torch.diag(torch.tensor([0.9, 0.1])), torch.randn(1, 2, generator=generator()), []
    for _ in range(6):
        v = v / v.norm() @ matrix
        growth.append(v.norm())
    found = contraction_factor(lambda u: u @ matrix, torch.ones(1, 2), steps=6, generator=generator())
    torch.testing.assert_close(found, torch.stack(growth[3:]).log().mean().exp())


LINE = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)
KNOWN = Regularity(strong_convexity=1.0, mixed_norm=2.0, upper_lipschitz=1.0)


def line(w: float, u: float, step: float = 0.5, **settings: Any) -> Any:
    """F = (u − 1)² / 2 and u(w) = 2 w; the adjoint is u − 1, the gradient 2 (u − 1)."""
    way = GradientDescent(step)
    return adaptive_descent(
        LINE, number(w), number(u), dynamics=way, regularity=lambda w: KNOWN, settings=Adaptive(**settings)
    )


def test_an_upper_loss_at_its_minimum_leaves_the_bounds_of_the_distance_alone() -> None:
    found = certified(LINE, number(0.0), number(1.0), regularity=KNOWN)
    assert (found.distance, found.value, found.value_error, found.error) == (1.0, 0.0, 0.5, 2.0)
    assert found.gradient == 0


def test_accuracies_tighten_by_a_factor_of_a_thousand_at_most() -> None:
    first = next(line(3.0, 1.001, accuracy=8.0, linear_accuracy=1.0, step_size=0.02))
    assert first.rejections == 1
    assert first.accuracy == pytest.approx(1e-3 * 4.999)
    assert first.linear_accuracy == pytest.approx(1e-3)


def test_bounds_that_are_wider_than_the_gain_of_a_step_tighten_the_accuracies_by_what_is_missing() -> None:
    """The lower steps stop at u = 5.625, a distance of 0.375, for both values."""
    first = next(line(3.0, 3.0, accuracy=0.5, linear_accuracy=1.0, step_size=1e-4))
    length = 2 * 4.625
    blur = 0.375**2 / 2 + (0.375 - 2e-4 * length) ** 2 / 2
    missing = 0.5 * 1e-4 * length**2 / blur
    assert first.rejections == 1
    assert first.accuracy == pytest.approx(0.5 * missing * 0.375)
    assert first.linear_accuracy == pytest.approx(0.5 * missing)


def test_the_descent_ends_where_gradient_and_bound_together_are_within_the_tolerance() -> None:
    *_, last = line(0.5, 1.05, accuracy=0.1, tolerance=0.15)
    assert last.certain
    assert last.gradient_norm + last.error <= 0.15
    assert last.step_size == 0  # none was taken


def test_a_slow_lower_level_is_followed_beyond_a_thousand_steps() -> None:
    first = next(line(3.0, 3.0, step=0.005, accuracy=1e-3, step_size=0.02))
    assert first.lower_gradients > 1500


def test_the_lower_gradient_is_looked_at_every_so_many_steps() -> None:
    """From a distance of 3 to one of 3 / 2⁶, with looks at steps 0, 3 and 6; the trial step needs less."""
    seen = []
    lower = lambda w, u: seen.append(float(u.detach())) or LINE.lower(w, u)  # type: ignore[func-returns-value,misc]  # noqa: E731
    way = adaptive_descent(
        Bilevel(LINE.upper, lower), number(3.0), number(3.0), dynamics=GradientDescent(0.5),
        regularity=lambda w: KNOWN, settings=Adaptive(accuracy=0.1, check_every=3, step_size=1e-3),
    )  # fmt: skip
    first = next(way)
    assert seen.count(3.0) == 2  # one look and one step
    assert seen.count(4.5) == 1  # one step
    assert float(first.lower_params) == pytest.approx(6 - 3 / 2**6, abs=1e-6)


def ended(*residuals: float, value: float = 1.0) -> Solution:
    history = torch.tensor(residuals, dtype=torch.float64)[:, None]
    at = torch.tensor([[value]], dtype=torch.float64)
    return Solution(at, len(residuals), history[-1], torch.zeros(1, dtype=torch.bool), history)


@pytest.mark.parametrize(
    ("factor", "remedy"),
    [(1.06, "expands"), (1.04, "does not settle"), (0.99995, "does not settle"), (0.9995, "slowly")],
)
def test_the_remedy_follows_the_factor_of_the_last_ten_steps(factor: float, remedy: str) -> None:
    before = [5.0**k for k in range(9)]
    solver = KrasnoselskiiMann(tolerance=1e-5)
    with pytest.raises(NotConverged, match=rf"about {factor:.3f} a step.*{remedy}"):
        require_converged(ended(*before, *(before[-1] * 7 * factor**k for k in range(11))), solver)


def test_the_remedy_for_too_few_digits_and_for_one_step() -> None:
    flat = ended(*[1.0] * 12)
    with pytest.raises(NotConverged, match="too few digits"):
        require_converged(flat, KrasnoselskiiMann(tolerance=9 * EPS))
    with pytest.raises(NotConverged, match="does not settle"):
        require_converged(flat, KrasnoselskiiMann(tolerance=10.5 * EPS))
    with pytest.raises(NotConverged, match=r"about 0\.500 a step"):
        require_converged(ended(1.0, 0.5), KrasnoselskiiMann())
    with pytest.raises(NotConverged, match="about nan a step"):
        require_converged(ended(1.0), KrasnoselskiiMann())
    with pytest.raises(NotConverged, match="left the finite numbers"):
        require_converged(ended(1.0, float("nan")), KrasnoselskiiMann())
    half = ended(1.0, 0.5)._replace(value=(torch.ones(1, 1), torch.full((1, 1), float("nan"))))
    with pytest.raises(NotConverged, match="left the finite numbers"):
        require_converged(half, KrasnoselskiiMann())
    require_converged(ended(1.0, 0.5), KrasnoselskiiMann(tolerance=0.0))  # nothing is judged
    with pytest.raises(NotConverged):
        require_converged(ended(1.0, 0.5), KrasnoselskiiMann(tolerance=1.0))


def test_the_message_shows_the_worst_sample() -> None:
    history = torch.tensor([[1.0, 1.0, 1.0], [0.1, 0.75, 0.2]])
    found = Solution(torch.ones(3, 1), 2, history[-1], torch.tensor([True, False, False]), history)
    with pytest.raises(NotConverged, match=r"2 of 3 samples .* up to 7\.5e-01 .* about 0\.750"):
        require_converged(found, KrasnoselskiiMann())


def test_accelerations_keep_as_many_pairs_as_they_say() -> None:
    matrix = random(6, 6, seed=8) / 6
    for memory in (1, 2, 4):
        u, kept, lengths = random(1, 6), None, []
        for _ in range(8):
            image = u @ matrix + 1
            u, kept = Anderson(memory=memory).advance(u, image, (image - u).norm(dim=1), kept)
            lengths.append(len(kept))
        assert lengths == [min(k + 1, memory + 1) for k in range(8)]
        u, pairs, lengths = random(1, 6), None, []
        for _ in range(8):
            image = u @ matrix + 1
            u, pairs = Broyden(memory=memory, growth=1e6).advance(u, image, (image - u).norm(dim=1), pairs)
            lengths.append(len(pairs.left))
        assert lengths == [k % (memory + 1) for k in range(8)]


def test_anderson_takes_a_plain_step_where_the_residual_grew_too_much() -> None:
    solver = Anderson(growth=2.0, relaxation=0.5)
    _, kept = solver.advance(number(0.0).reshape(1, 1), number(1.0).reshape(1, 1), torch.ones(1), None)
    plain, _ = solver.advance(number(5.0).reshape(1, 1), number(9.0).reshape(1, 1), torch.full((1,), 2.1), kept)
    mixed, _ = solver.advance(number(5.0).reshape(1, 1), number(9.0).reshape(1, 1), torch.full((1,), 1.9), kept)
    assert plain.item() == 7.0
    assert mixed.item() == pytest.approx(-5 / 3)  # the line through (0, 1) and (5, 4) has its root there


def test_broyden_starts_anew_where_any_residual_grew_too_much() -> None:
    start = torch.zeros(2, 1, dtype=torch.float64)
    solver = Broyden(growth=2.0)
    _, kept = solver.advance(start, start + 1, torch.ones(2), None)
    for gaps, pairs in (([1.9, 1.9], 1), ([1.0, 2.1], 0), ([2.1, 2.1], 0)):
        _, now = solver.advance(start + 3, start + 3 + torch.tensor(gaps).double()[:, None], torch.tensor(gaps), kept)
        assert len(now.left) == pairs


def test_neumann_refuses_a_factor_that_is_nearer_to_one_than_a_millionth() -> None:
    def found(mu: float, **more: Any) -> torch.Tensor:
        problem = Bilevel(lambda w, u: (u - 1) ** 2 / 2, lambda w, u: mu * (u - w) ** 2 / 2)
        way = Neumann(0, GradientDescent(0.5), step_size=1.0, tolerance=1.0, **more)
        return hypergradient(problem, number(4.0), number(4.0), strategy=way).gradient

    assert found(0.5, terms=3).item() == pytest.approx(3 * (1 - 0.5**4))  # every term is taken
    assert found(3e-6, terms=1).item() == pytest.approx(3 * 6e-6, rel=1e-4)
    with pytest.raises(SolveError, match="contraction"):
        found(5e-7, terms=1)


def test_differences_move_the_lower_parameters_by_the_cube_root_of_the_precision() -> None:
    run = Evaluator(LINE)
    for dtype in (torch.float32, torch.float64):
        at = torch.tensor(1.0, dtype=dtype)
        root = torch.finfo(dtype).eps ** (1 / 3)
        assert CentralDifference().at(run, at, at).radius == pytest.approx(root)  # type: ignore[attr-defined]
        assert ForwardDifference().at(run, at, at).radius == pytest.approx(2 * root)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("middle", "odd", "even", "slope", "accepted"),
    [
        (0.0, 0.24, 0.0, 1.0, True),
        (0.0, 0.26, 0.0, 1.0, False),
        (0.0, 0.24, 1.0, 0.0, True),
        (0.0, 0.26, 1.0, 0.0, False),
        (0.0, -0.45, -1.0, -1.0, True),
        (0.0, -0.55, -1.0, -1.0, False),
        (1e4, 900 * EPS * 1e4, 0.0, 0.0, True),
        (-1e4, 1100 * EPS * 1e4, 0.0, 0.0, False),
    ],
)
def test_three_values_of_a_loss_must_fit_a_parabola_to_a_quarter(
    middle: float, odd: float, even: float, slope: float, accepted: bool
) -> None:
    products: Any = CentralDifference().at(Evaluator(LINE), number(1.0), number(1.0))
    products.known = (middle, None)
    values = middle + even + odd + slope, middle + even - odd - slope
    if accepted:
        products._require_one_function(*values, slope)
    else:
        with pytest.raises(SolveError, match="parabola"):
            products._require_one_function(*values, slope)


def test_the_leaders_step_may_be_two_over_the_curvature_and_a_little_for_rounding() -> None:
    problem = Bilevel(lambda w, u: 5 * (u**2).sum(), lambda w, u: ((u - w) ** 2).sum() / 2)
    for step, floor, accepted in ((0.204, 1, True), (0.206, 1, False), (0.408, 2, True), (0.412, 2, False)):
        metric = Scaled(float(floor))  # the curvature is 10
        way = Aggregated(GradientDescent(0.5), mu=0.5, schedule=Constant(step), metric=lambda w, m=metric: m)
        with torch.no_grad():
            state = way.begin(torch.ones(2, dtype=torch.float64))
            if accepted:
                way.step(problem, 0, number(0.0), state)
            else:
                with pytest.raises(SolveError, match="too long"):
                    way.step(problem, 0, number(0.0), state)


def test_a_curvature_below_one_is_measured_as_it_is_with_one_gradient_a_product() -> None:
    calls = []
    scale = torch.tensor([0.125, 0.25], dtype=torch.float64)
    loss = lambda u: calls.append(1) or (scale * u**2).sum()  # type: ignore[func-returns-value]  # noqa: E731
    found = curvature(loss, torch.full((2,), 1e3, dtype=torch.float64), products=12)
    assert found == pytest.approx(0.5, rel=1e-4)
    assert len(calls) == 13


@pytest.mark.parametrize(
    ("size", "off", "accepted"), [(1.0, 9e-4, True), (1.0, 1.2e-3, False), (0.0, 9e-7, True), (0.0, 2e-6, False)]
)
def test_a_gauss_newton_loss_may_differ_by_a_thousandth_or_a_millionth(size: float, off: float, accepted: bool) -> None:
    problem = Bilevel(lambda w, u: (u - 1) ** 2, lambda w, u: (u - w) ** 2 / 2 + size)
    split = GaussNewton(lambda w, u: u, lambda w, y: (y - w) ** 2 / 2 + size + off)
    way = Damped(0, GradientDescent(0.1), curvature=split)
    if accepted:
        found = hypergradient(problem, number(4.0), number(4.0), strategy=way)
        assert found.gradient.item() == pytest.approx(6.0)
    else:
        with pytest.raises(SolveError, match="another problem"):
            hypergradient(problem, number(4.0), number(4.0), strategy=way)


@pytest.mark.parametrize("k", [0, 4])
def test_an_adapted_step_is_differentiated_with_the_moments_of_its_number(k: int) -> None:
    problem = Bilevel(
        lambda w, u: ((u - 1) ** 2).sum(), lambda w, u: ((u - w) ** 2 * torch.tensor([1.0, 3.0])).sum() / 2
    )
    w, u = torch.tensor([2.0, -1.0]).double(), torch.tensor([0.5, 0.25]).double()
    moments = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.5, 0.1]).double()
    adam = Adam(0.1, (0.8, 0.95), epsilon=0.1)
    found = hypergradient(problem, w, u, strategy=AdaptedOneStep(adam, k, moments))
    leaf = w.clone().requires_grad_()
    moved = adam.params(adam.step(problem, k, leaf, (u, *moments)))
    (expected,) = torch.autograd.grad(problem.upper(leaf, moved), leaf)
    torch.testing.assert_close(found.lower_params, moved.detach())
    torch.testing.assert_close(found.gradient, expected, rtol=1e-5, atol=1e-7)


def test_the_mean_over_two_equal_processes_is_the_problem_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a reduction adds as much again, as a second process with the same part would."""
    monkeypatch.setattr(levels_module.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(levels_module.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(levels_module.distributed, "all_reduce", lambda joined, group: joined.mul_(2))
    problem = Bilevel(lambda w, u: ((u[0] - 1) ** 2).sum(), lambda w, u: ((u[0] - w * u[1]) ** 2).sum() / 2 + u[1] ** 2)
    w, u = random(3, seed=1).requires_grad_(), (random(3, seed=2).requires_grad_(), number(0.5).requires_grad_())
    both = shared(problem)
    for one, other in ((both.upper, problem.upper), (both.lower, problem.lower)):
        torch.testing.assert_close(one(w, u), other(w, u))  # type: ignore[misc]
    for found, expected in zip(
        torch.autograd.grad(both.lower(w, u), (w, *u), create_graph=True),  # type: ignore[misc]
        torch.autograd.grad(problem.lower(w, u), (w, *u), create_graph=True),  # type: ignore[misc]
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    assert shared(Bilevel(problem.upper, None)).lower is None


def test_a_second_generator_counts_too() -> None:
    one, other = torch.zeros(1), torch.ones(1)
    assert not same_states([one, one], [one, other])
    assert not same_states([one, one], [other, one])


def test_a_replayed_step_may_differ_by_rounding_and_stand_still() -> None:
    def gradient(noise: float, move: float, start: float = 8.0) -> float:
        calls = iter(range(1, 100))
        w = number(1.0).requires_grad_()
        end = replayed(lambda k, w, u: u + move * w * (1 + noise * next(calls)), w, number(start), steps=3)
        return float(torch.autograd.grad(end, w)[0])

    assert gradient(0.0, 0.0) == 0.0
    assert gradient(1e-10, 1.0) == pytest.approx(3.0)
    assert gradient(1e-10, 1e3) == pytest.approx(3e3)
    with pytest.raises(SolveError, match="replayed"):
        gradient(1e-6, 1.0)
    with pytest.raises(SolveError, match="replayed"):
        gradient(1e-3, 1.0, start=1e6)  # changes are compared, not states


def test_settled_lower_levels_are_measured_by_their_strong_convexity() -> None:
    problem = Bilevel(lambda w, u: (u - 1) ** 2, lambda w, u: (u - w) ** 2)  # a gradient of 2 (u − w)
    way = Neumann(0, GradientDescent(0.1), 0.4, settled=Settled(relative=0.0, absolute=0.25, strong_convexity=2.0))
    found = hypergradient(problem, number(4.0), number(4.2), strategy=way)
    assert found.cost.lower_distance == pytest.approx(0.2)
    with pytest.raises(SolveError, match="not settled"):
        hypergradient(problem, number(4.0), number(4.3), strategy=way)


def test_solves_stop_at_the_sum_of_both_tolerances() -> None:
    for relative, absolute, bound in ((0.5, 0.0, 0.5), (0.25, 0.5, 0.25 + 0.5 / 4)):
        solver = KrasnoselskiiMann(1.0, steps=50, tolerance=relative, absolute=absolute)
        found = iterate(lambda u: 4.0 - u / 2, torch.tensor([[4.0]]), solver=solver)
        assert found.residual.item() <= bound * 4 * 2
        assert found.converged.item()


def test_a_linear_map_keeps_its_norm() -> None:
    half = LinearMap(lambda x: x / 2, lambda y: y / 2, 0.5)
    assert PrimalDual(half, 1.0, 1.0).floor == 0.5


def test_iterations_of_the_descent_are_numbered() -> None:
    steps = list(islice(line(3.0, 6.0, accuracy=1e-3, step_size=0.02), 3))
    assert [s.number for s in steps] == [0, 1, 2]
