"""Solves against closed forms, adjoints against the implicit function theorem and central differences."""

import itertools

import pytest
import torch
from torch import nn

from twofold.solve import (
    Anderson,
    Implicit,
    Iterated,
    KrasnoselskiiMann,
    LinearisedALM,
    NeumannSeries,
    NormalEquations,
    OneStep,
    ProximalGradient,
    SolveError,
    TruncatedAdjoint,
    UnrolledAdjoint,
    contraction_factor,
    fixed_point,
    iterate,
    matrix_map,
    soft_threshold,
)
from twofold.solve.params import tensors

EXACT = KrasnoselskiiMann(relaxation=1.0, steps=500, tolerance=1e-12)
IMPLICIT = [
    Implicit(NeumannSeries(1000, 1e-10)),
    Implicit(NormalEquations(300, 1e-9)),
    Implicit(Iterated(KrasnoselskiiMann(1.0, 1000, 1e-10))),
    Implicit(Iterated(KrasnoselskiiMann(0.5, 1000, 1e-10))),
    Implicit(Iterated(Anderson(tolerance=1e-10))),
]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear_contraction(n=6, factor=0.8, seed=0):
    """u ← M u + b with a non-symmetric M of spectral norm `factor`; its fixed point is (I − M)⁻¹ b."""
    m = random(n, n, seed=seed)
    return m * factor / torch.linalg.matrix_norm(m, 2), random(2, n, seed=seed + 1)


def nonlinear(w):
    return lambda u: torch.tanh(u @ w.T) * 0.9 + 0.1


@pytest.mark.parametrize("solver", [EXACT, KrasnoselskiiMann(0.5, 500, 1e-12), Anderson(tolerance=1e-12)])
def test_every_solver_finds_the_fixed_point_of_a_linear_contraction(solver):
    m, b = linear_contraction()
    solution = fixed_point(lambda u: u @ m.T + b, torch.zeros_like(b), solver=solver)
    torch.testing.assert_close(solution.value, torch.linalg.solve(torch.eye(6) - m, b.T).T)
    assert solution.converged.all()
    assert solution.history.shape == (solution.steps, 2)
    assert torch.equal(solution.residual, solution.history[-1])


def test_relaxation_makes_a_rotation_settle_and_picard_does_not():
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    start = torch.tensor([[1.0, 0.0]])
    assert not iterate(lambda u: u @ quarter, start, solver=KrasnoselskiiMann(1.0, 200)).converged.item()
    relaxed = iterate(lambda u: u @ quarter, start, solver=KrasnoselskiiMann(0.5, 200))
    assert relaxed.converged.item()
    assert relaxed.value.norm() < 1e-4


def test_anderson_needs_far_fewer_steps_than_picard_near_a_factor_of_one():
    m = torch.diag(torch.linspace(0.1, 0.99, 6, dtype=torch.float64))
    count = lambda solver: iterate(lambda u: u @ m + 1, torch.zeros(1, 6, dtype=torch.float64), solver=solver).steps  # noqa: E731
    assert count(Anderson(steps=2000, tolerance=1e-8)) * 20 < count(KrasnoselskiiMann(1.0, 5000, 1e-8))


def test_a_solution_does_not_depend_on_its_neighbours_in_the_batch():
    m, b = linear_contraction()
    b = torch.cat((b, 1000 * b))
    for solver in (KrasnoselskiiMann(0.7, 300, 1e-4), Anderson(tolerance=1e-4)):
        together = iterate(lambda u: u @ m.T + b, torch.zeros_like(b), solver=solver)
        for i in range(4):
            alone = iterate(lambda u: u @ m.T + b[i : i + 1], torch.zeros(1, 6, dtype=torch.float64), solver=solver)  # noqa: B023
            torch.testing.assert_close(together.value[i : i + 1], alone.value, rtol=1e-9, atol=1e-9)


def test_tolerance_zero_takes_every_step_and_a_met_tolerance_stops():
    m, b = linear_contraction()
    assert iterate(lambda u: u @ m.T + b, b, solver=KrasnoselskiiMann(1.0, 37, 0.0)).steps == 37
    assert iterate(lambda u: u @ m.T + b, b, solver=KrasnoselskiiMann(1.0, 400, 1e-3)).steps < 60


def test_divergence_is_reported_and_not_raised():
    solution = iterate(lambda u: 3 * u + 1, torch.ones(2, 1), solver=KrasnoselskiiMann(1.0, 2000))
    assert not solution.converged.any()
    assert not solution.residual.isfinite().any()
    assert solution.steps < 2000


def test_residual_is_measured_in_the_metric_of_the_operator_and_falls_monotonically():
    a = random(10, 20)
    operator = LinearisedALM(soft_threshold, matrix_map(a), random(3, 10, seed=1))
    start = (torch.zeros(3, 20, dtype=torch.float64), torch.zeros(3, 10, dtype=torch.float64))
    history = iterate(operator, start, solver=KrasnoselskiiMann(0.5, 400, 0.0)).history
    assert all((after <= before * (1 + 1e-9)).all() for before, after in itertools.pairwise(history))


def test_a_state_may_be_a_tree_of_parameters_seen_as_one_point():
    start = {"a": torch.zeros(3), "b": (torch.zeros(()), torch.zeros(2, 2))}
    step = lambda u: {"a": u["a"] / 2 + 1, "b": (u["b"][0] / 2, u["b"][1] / 2 - 1)}  # noqa: E731
    for solver in (KrasnoselskiiMann(1.0), Anderson()):
        solution = fixed_point(step, start, solver=solver, per_sample=False)
        assert solution.converged.item()
        torch.testing.assert_close(solution.value["b"][1], torch.full((2, 2), -2.0), rtol=1e-3, atol=1e-3)
    with pytest.raises(SolveError, match="per_sample=False"):
        fixed_point(step, start)


@pytest.mark.parametrize(
    "adjoint", [*IMPLICIT, UnrolledAdjoint(), UnrolledAdjoint(checkpointed=True), TruncatedAdjoint(200)]
)
def test_adjoints_equal_the_implicit_function_theorem_on_a_linear_contraction(adjoint):
    m, b = linear_contraction()
    m, b = m.requires_grad_(), b.requires_grad_()
    weight = random(2, 6, seed=3)
    solution = fixed_point(lambda u: u @ m.T + b, torch.zeros(2, 6, dtype=torch.float64), solver=EXACT, adjoint=adjoint)
    found = torch.autograd.grad((solution.value * weight).sum(), (m, b))
    closed = torch.linalg.solve(torch.eye(6) - m, b.T).T
    expected = torch.autograd.grad((closed * weight).sum(), (m, b))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("adjoint", IMPLICIT)
def test_implicit_adjoint_equals_a_long_unroll_to_six_digits_on_a_nonlinear_contraction(adjoint):
    def grad_of(how):
        w = (random(5, 5) * 0.3).requires_grad_()
        value = fixed_point(nonlinear(w), torch.zeros(3, 5, dtype=torch.float64), solver=EXACT, adjoint=how).value
        return torch.autograd.grad((value**2).sum(), w)[0]

    torch.testing.assert_close(grad_of(adjoint), grad_of(UnrolledAdjoint()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("adjoint", [IMPLICIT[0], IMPLICIT[1], UnrolledAdjoint(), UnrolledAdjoint(checkpointed=True)])
def test_adjoints_agree_with_central_differences(adjoint):
    def solve(w):
        return fixed_point(nonlinear(w), torch.zeros(2, 4, dtype=torch.float64), solver=EXACT, adjoint=adjoint).value

    assert torch.autograd.gradcheck(solve, (random(4, 4) * 0.3).requires_grad_(), atol=1e-6)


def test_checkpointed_unrolling_is_bit_identical_to_unrolling_and_keeps_the_metric():
    def grad_of(adjoint):
        w = (random(5, 5) * 0.3).requires_grad_()
        return torch.autograd.grad(
            fixed_point(nonlinear(w), torch.zeros(3, 5, dtype=torch.float64), adjoint=adjoint).value.sum(), w
        )[0]

    assert torch.equal(grad_of(UnrolledAdjoint()), grad_of(UnrolledAdjoint(checkpointed=True)))


def test_truncation_leaves_the_bias_that_the_contraction_factor_predicts():
    m, b = torch.diag(torch.tensor([0.5, 0.5], dtype=torch.float64)), random(1, 2).requires_grad_()
    for last in (1, 3, 6):
        value = fixed_point(
            lambda u: u @ m + b, torch.zeros(1, 2, dtype=torch.float64), solver=EXACT, adjoint=TruncatedAdjoint(last)
        ).value
        (grad,) = torch.autograd.grad(value.sum(), b)
        torch.testing.assert_close(grad, torch.full_like(grad, 2 * (1 - 0.5**last)))
    one = fixed_point(
        lambda u: u @ m + b, torch.zeros(1, 2, dtype=torch.float64), solver=EXACT, adjoint=OneStep()
    ).value
    torch.testing.assert_close(torch.autograd.grad(one.sum(), b)[0], torch.ones_like(b))


def test_implicit_adjoint_works_on_tuples_with_a_metric_and_matches_unrolling():
    a, y = random(4, 6), random(2, 4, seed=1)

    def grad_of(adjoint):
        weight = torch.full((6,), 0.1, dtype=torch.float64, requires_grad=True)
        # A strongly convex term makes the primal part contract: ½‖u‖² + Σ weight |u|.
        prox = lambda v, t: soft_threshold(v, t * weight) / (1 + t)  # noqa: E731
        operator = LinearisedALM(prox, matrix_map(a), y, penalty=0.5)
        start = (torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64))
        value = fixed_point(operator, start, solver=KrasnoselskiiMann(1.0, 5000, 1e-13), adjoint=adjoint).value
        return torch.autograd.grad((value[0] ** 2).sum() + value[1].sum(), weight)[0]

    torch.testing.assert_close(
        grad_of(Implicit(NormalEquations(500, 1e-9))), grad_of(UnrolledAdjoint()), rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(
        grad_of(Implicit(NeumannSeries(5000, 1e-9))), grad_of(UnrolledAdjoint()), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("linear", [NeumannSeries(50), NormalEquations(50), Iterated(KrasnoselskiiMann(0.5, 50))])
def test_an_adjoint_that_stalls_raises_with_the_estimated_factor(linear):
    half = torch.tensor([[0.5, 0.0], [0.0, 1.0]], dtype=torch.float64)  # keeps the second coordinate: no contraction
    b = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = fixed_point(
        lambda u: u @ half + b, torch.zeros(1, 2, dtype=torch.float64), solver=EXACT, adjoint=Implicit(linear)
    ).value
    with pytest.raises(SolveError, match=r"factor of about 1\.000|not positive definite"):
        value.sum().backward()


def test_a_cotangent_that_never_meets_the_expansive_direction_is_answered():
    half = torch.tensor([[0.5, 0.0], [0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = fixed_point(lambda u: u @ half + b, torch.zeros(1, 2, dtype=torch.float64), solver=EXACT).value
    torch.testing.assert_close(torch.autograd.grad(value[:, 0].sum(), b)[0][0, 0].item(), 2.0, rtol=1e-4, atol=1e-4)


def test_a_tiny_cotangent_gets_the_same_relative_precision():
    m, b = linear_contraction()
    b = b.requires_grad_()
    value = fixed_point(
        lambda u: u @ m.T + b, torch.zeros(2, 6, dtype=torch.float64), solver=EXACT, adjoint=IMPLICIT[0]
    ).value
    large = torch.autograd.grad(value.sum(), b, retain_graph=True)[0]
    tiny = torch.autograd.grad(1e-9 * value.sum(), b)[0]
    torch.testing.assert_close(1e9 * tiny, large)


def test_modules_serve_as_operators_and_their_weights_receive_gradients():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    with torch.no_grad():
        net[0].weight.mul_(0.3)
    value = fixed_point(net, torch.zeros(2, 4, dtype=torch.float64), solver=EXACT, adjoint=IMPLICIT[0]).value
    value.sum().backward()
    implicit = net[0].weight.grad.clone()
    net.zero_grad()
    fixed_point(
        net, torch.zeros(2, 4, dtype=torch.float64), solver=EXACT, adjoint=UnrolledAdjoint()
    ).value.sum().backward()
    torch.testing.assert_close(implicit, net[0].weight.grad, rtol=1e-6, atol=1e-8)


def test_outside_grad_mode_nothing_is_recorded():
    m, b = linear_contraction()
    with torch.no_grad():
        for adjoint in (
            Implicit(),
            UnrolledAdjoint(),
            UnrolledAdjoint(checkpointed=True),
            TruncatedAdjoint(2),
            OneStep(),
        ):
            value = fixed_point(lambda u: u @ m.T + b, b, adjoint=adjoint).value
            assert not any(t.requires_grad for t in tensors(value))


def test_contraction_factor_is_the_spectral_radius_even_for_complex_eigenvalues():
    for matrix in (random(5, 5), torch.tensor([[0.0, -0.7], [0.7, 0.0]], dtype=torch.float64)):
        expected = torch.linalg.eigvals(matrix).abs().max()
        found = contraction_factor(lambda u: u @ matrix, torch.zeros(1, len(matrix), dtype=torch.float64), steps=400)  # noqa: B023
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_contractions_converge_at_the_predicted_factor():
    h = torch.linspace(0.2, 2.0, 8, dtype=torch.float64)
    operator = ProximalGradient(lambda u: h * u - 1, smoothness=2.0, fraction=0.5)
    solution = iterate(operator, torch.zeros(1, 8, dtype=torch.float64), solver=KrasnoselskiiMann(1.0, 200, 0.0))
    measured = (solution.history[-1] / solution.history[-51]) ** (1 / 50)
    predicted = contraction_factor(operator, solution.value)
    torch.testing.assert_close(measured[0], predicted, rtol=0.05, atol=0)
    assert predicted.item() == pytest.approx(0.9, rel=0.05)


@pytest.mark.parametrize(
    ("make", "value"), [(KrasnoselskiiMann, 0.0), (KrasnoselskiiMann, 1.2), (Anderson, 0.0), (TruncatedAdjoint, 0)]
)
def test_settings_that_make_no_sense_are_refused(make, value):
    with pytest.raises(SolveError, match=r"relaxation|at least one"):
        make(value)


def test_second_derivatives_through_an_implicit_adjoint_are_refused():
    b = torch.ones(1, 2, requires_grad=True)
    value = fixed_point(lambda u: u / 2 + b**2, torch.zeros(1, 2)).value
    with pytest.raises(SolveError, match="differentiated again"):
        torch.autograd.grad(value.sum(), b, create_graph=True)
