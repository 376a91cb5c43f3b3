"""What `fixed_point` calls converged is a fixed point, all samples together; everything else raises or is data."""

import pytest
import torch

from twofold.solve import (
    AdjointError,
    Anderson,
    Implicit,
    KrasnoselskiiMann,
    NeumannSeries,
    NormalEquations,
    NotConverged,
    SolveError,
    UnrolledAdjoint,
    fixed_point,
    iterate,
)
from twofold.solve.adjoint_equation import solve_adjoint
from twofold.solve.params import norm

PICARD = KrasnoselskiiMann(1.0)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def residual(operator, u):
    return float((operator(u) - u).norm() / u.norm())


def test_rows_that_feed_each_other_converge_to_their_common_fixed_point():
    chain = lambda u: torch.stack([0.5 * u[0] + 0.5 * u[1], 0.5 * u[1] + 1])  # noqa: E731
    for solver in (PICARD, KrasnoselskiiMann(0.5), Anderson()):
        found = fixed_point(chain, torch.zeros(2), solver=solver)
        torch.testing.assert_close(found.value, torch.tensor([2.0, 2.0]), rtol=1e-3, atol=1e-3)
        assert found.converged.all()


def test_an_implicit_graph_network_on_a_ring_reaches_every_node():
    """Each node mixes its neighbours' states with an input that one node alone has."""
    nodes, width = 100, 4
    ring = torch.eye(nodes, dtype=torch.float64).roll(1, 0) / 2 + torch.eye(nodes, dtype=torch.float64).roll(-1, 0) / 2
    weight = random(width, width)
    weight = 0.95 * weight / torch.linalg.matrix_norm(weight, 2)
    inputs = torch.zeros(nodes, width, dtype=torch.float64)
    inputs[0] = 1.0
    layer = lambda u: ring @ u @ weight + inputs  # noqa: E731
    system = torch.eye(nodes * width, dtype=torch.float64) - torch.kron(ring, weight.T.contiguous())
    truth = torch.linalg.solve(system, inputs.flatten()).reshape(nodes, width)
    found = fixed_point(layer, torch.zeros_like(inputs), solver=KrasnoselskiiMann(1.0, 2000, 1e-8))
    assert float((found.value - truth).norm() / truth.norm()) < 1e-5


def test_a_linear_system_over_the_rows_with_half_of_its_right_side_zero_is_solved():
    a = random(50, 50)
    a = 0.9 * a / torch.linalg.eigvals(a).abs().max()
    b = random(50, seed=1)
    b[25:] = 0
    found = fixed_point(lambda u: a @ u + b, torch.zeros_like(b), solver=KrasnoselskiiMann(1.0, 1000, 1e-8))
    truth = torch.linalg.solve(torch.eye(50, dtype=torch.float64) - a, b)
    assert float((found.value - truth).norm() / truth.norm()) < 1e-5


def test_the_residual_that_is_reported_is_that_of_the_value_that_is_returned():
    a = random(6, 6)
    a = 0.8 * a / torch.linalg.matrix_norm(a, 2)
    operator = lambda u: u @ a + 1  # noqa: E731
    for solver in (PICARD, KrasnoselskiiMann(0.4), Anderson(), KrasnoselskiiMann(1.0, 7)):
        found = iterate(operator, random(3, 6, seed=1), solver=solver)
        torch.testing.assert_close(found.residual, norm(operator(found.value) - found.value, per_sample=True))
        assert torch.equal(found.converged, found.residual <= 1e-5 * norm(found.value, per_sample=True) + 1e-10)


def test_the_tolerance_is_relative_to_the_solution_however_small_that_is():
    for offset in (1e-6, 1.0, 1e6):
        start = torch.zeros(1, 1, dtype=torch.float64)
        found = fixed_point(lambda u: u / 2 + offset, start, solver=PICARD)  # noqa: B023
        assert found.value.item() == pytest.approx(2 * offset, rel=2e-4)


def test_a_fixed_point_at_zero_is_accepted_by_the_absolute_tolerance_and_by_it_alone():
    found = fixed_point(lambda u: u / 2, torch.ones(1, 1), solver=KrasnoselskiiMann(1.0, absolute=1e-6))
    assert 0 < found.residual.item() <= 1e-6
    with pytest.raises(NotConverged):
        fixed_point(lambda u: u / 2, torch.ones(1, 1), solver=KrasnoselskiiMann(1.0, 50, absolute=0.0))


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (lambda u: 3 * u + 1, "left the finite numbers|T expands there"),
        (lambda u: 3.2 * u * (1 - u), "does not settle|expands|settles slowly"),
        (lambda u: -u + 1, "does not settle"),
        (lambda u: 0.999 * u + 1, "settles slowly: take more steps"),
    ],
)
@pytest.mark.parametrize("steps", [60, 61])
def test_a_solve_that_misses_its_tolerance_raises_with_the_outcome_and_what_to_do(operator, reason, steps):
    solver = KrasnoselskiiMann(1.0, steps)
    with pytest.raises(NotConverged, match=reason) as raised:
        fixed_point(operator, torch.full((2, 1), 0.3), solver=solver)
    assert not raised.value.solution.converged.any()
    data = fixed_point(operator, torch.full((2, 1), 0.3), solver=solver, throw=False)
    assert not data.converged.any()
    assert torch.equal(data.value, raised.value.solution.value)


def test_a_tolerance_below_the_precision_of_the_numbers_is_named_as_such():
    a = random(50, 50).float()
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)
    with pytest.raises(NotConverged, match=r"torch.float32 has too few digits"):
        fixed_point(lambda u: u @ a + 1, torch.zeros(1, 50), solver=KrasnoselskiiMann(0.7, 400, 1e-12))


def test_one_sample_that_fails_is_counted():
    factor = torch.tensor([[0.5], [1.5], [0.5]])
    with pytest.raises(NotConverged, match="1 of 3 samples"):
        fixed_point(lambda u: factor * u + 1, torch.zeros(3, 1), solver=KrasnoselskiiMann(1.0, 40))


def test_without_a_tolerance_nothing_is_judged_unless_it_left_the_finite_numbers():
    three = KrasnoselskiiMann(1.0, 3, 0.0)
    assert fixed_point(lambda u: 3 * u, torch.ones(1, 1), solver=three).value.item() == 27
    with pytest.raises(NotConverged, match="left the finite numbers"):
        fixed_point(lambda u: u * 1e30, torch.ones(1, 1), solver=three)


@pytest.mark.parametrize("linear", [NeumannSeries(), NormalEquations()])
@pytest.mark.parametrize(
    "operator", [lambda a: lambda u: 3 * u + a, lambda a: lambda u: 3.2 * a * u * (1 - u)], ids=["3u + 1", "logistic"]
)
def test_no_implicit_gradient_is_given_at_a_point_that_is_no_fixed_point(operator, linear):
    a = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    start = torch.full((1, 1), 0.3, dtype=torch.float64)
    solver = KrasnoselskiiMann(1.0, 41)
    found = fixed_point(operator(a), start, solver=solver, adjoint=Implicit(linear), throw=False)
    with pytest.raises(AdjointError, match="no fixed point"):
        found.value.sum().backward()


def test_an_implicit_gradient_at_an_unconverged_point_is_given_to_who_accepts_it():
    a = torch.ones(1, 1, requires_grad=True)
    few = KrasnoselskiiMann(1.0, 3, 1e-9)
    accept = Implicit(require_converged=False)
    found = fixed_point(lambda u: (u + a / u) / 2, torch.full((1, 1), 9.0), solver=few, adjoint=accept, throw=False)
    found.value.sum().backward()
    assert a.grad.isfinite().all()
    with pytest.raises(NotConverged):
        fixed_point(lambda u: (u + a / u) / 2, torch.full((1, 1), 9.0), solver=few, adjoint=accept)


def test_the_adjoint_equation_is_solved_to_the_tolerance_that_was_asked_for_in_every_sample():
    rates = torch.tensor([[0.9], [0.2], [0.2], [0.2]], dtype=torch.float64)
    g = torch.ones(4, 1, dtype=torch.float64)
    for tolerance in (1e-2, 1e-6):
        for linear in (NeumannSeries(500, tolerance), NormalEquations(500, tolerance)):
            v = solve_adjoint(linear, lambda u: rates * u, torch.zeros_like(g), g)
            left = (rates * v + g - v).abs() / v.abs().clamp_min(1)
            assert left.max() <= tolerance


def test_an_adjoint_solver_that_stops_at_twice_its_tolerance_is_refused():
    class Sloppy:
        tolerance = 1e-3

        def solve(self, transposed, forward, g, per_sample):
            return 2 * g + 6e-3  # of v / 2 + g − v, 3e-3 is left, 1.5e-3 of v

    with pytest.raises(AdjointError, match=r"stalled at a residual of 1\.5e-03"):
        solve_adjoint(Sloppy(), lambda u: u / 2, torch.zeros(1, 1), torch.ones(1, 1))


def test_an_operator_may_fill_its_dicts_in_any_order():
    start = {"a": torch.zeros(1, 2), "b": torch.ones(1, 2)}
    forward = lambda u: {"a": u["a"] / 2 + u["b"], "b": u["b"] / 3}  # noqa: E731
    backward = lambda u: {"b": u["b"] / 3, "a": u["a"] / 2 + u["b"]}  # noqa: E731
    for solver in (KrasnoselskiiMann(1.0, 60, 1e-6, 1e-6), Anderson(absolute=1e-5)):
        one, other = (fixed_point(o, start, solver=solver, adjoint=UnrolledAdjoint()) for o in (forward, backward))
        assert torch.equal(one.value["a"], other.value["a"])
        assert torch.equal(one.value["b"], other.value["b"])


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ((), "start holds no tensors"),
        (torch.zeros(2, 2, dtype=torch.int64), r"start is torch.int64.*\.float\(\)"),
        ({"x": torch.zeros(2, 2, dtype=torch.complex64)}, r"start\['x'\] is complex.*view_as_real"),
        (torch.full((1, 1), float("nan")), "start is not finite"),
        ((torch.zeros(2, 1), torch.zeros(3, 1)), r"share their number of samples, got \(2, 1\), \(3, 1\)"),
        ((torch.zeros(2, 1), torch.zeros(())), r"share their number of samples, got \(2, 1\), \(\)"),
        (torch.zeros(()), r"share their number of samples, got \(\); or per_sample=False"),
    ],
)
def test_states_that_cannot_be_solved_for_are_refused_by_name(start, reason):
    with pytest.raises(SolveError, match=reason):
        fixed_point(lambda u: u, start)


def test_an_operator_that_changes_the_shape_of_its_state_is_refused():
    with pytest.raises(SolveError, match=r"returns shape \(2, 2\) for a state of shape \(2, 1\)"):
        fixed_point(lambda u: u / 2 + torch.ones(1, 2), torch.zeros(2, 1))


@pytest.mark.parametrize("make", [KrasnoselskiiMann, Anderson])
@pytest.mark.parametrize("setting", [{"steps": 0}, {"tolerance": -1.0}, {"absolute": float("nan")}])
def test_a_solver_without_steps_or_with_a_negative_tolerance_is_refused(make, setting):
    with pytest.raises(SolveError, match="at least one step and tolerances of 0 or more"):
        make(**setting)


@pytest.mark.parametrize(("grown_by", "plain"), [(0.5, False), (1.9, False), (2.1, True)])
def test_anderson_takes_a_plain_step_where_the_residual_has_more_than_doubled(grown_by, plain):
    solver, residual = Anderson(), torch.tensor([1.0])
    _, memory = solver.advance(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), residual, None)
    u, image = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.5, 0.2]])
    taken, _ = solver.advance(u, image, grown_by * residual, memory)
    assert torch.equal(taken, image) is plain


def test_the_value_of_an_implicit_solve_is_the_same_with_and_without_a_graph():
    operator = lambda u: u / 2 + torch.ones(1, 1, requires_grad=True)  # noqa: E731
    with torch.no_grad():
        without = fixed_point(operator, torch.zeros(1, 1))
    assert torch.equal(fixed_point(operator, torch.zeros(1, 1)).value, without.value)
