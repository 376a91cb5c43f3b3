"""What would be a wrong number is an error that says why and what to do: the cases of docs/solve.md, page by page."""

from itertools import islice

import pytest
import torch
from torch import nn

from twofold.solve import (
    Adam,
    Aggregated,
    Bilevel,
    CentralDifference,
    ConjugateGradient,
    Constant,
    FirstOrder,
    FixedPointSteps,
    Geometric,
    GradientDescent,
    Harmonic,
    KrasnoselskiiMann,
    Momentum,
    Neumann,
    OneStepUnrolled,
    Settled,
    SolveError,
    ThroughFixedPoint,
    Truncated,
    Unrolled,
    aggregated_step,
    as_function,
    hypergradient,
    lower_solution,
    rounds,
)
from twofold.solve.meta import curvature
from twofold.solve.params import dot, gradient, norm, over, rebuild, tensors

ANY = Settled(relative=float("inf"))
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
DIFFERENTIATING = {
    "one step": OneStepUnrolled(0.1),
    "one step by differences": OneStepUnrolled(0.1, CentralDifference()),
    "unrolled": Unrolled(3, GradientDescent(0.1)),
    "unrolled with graphs": Unrolled(3, GradientDescent(0.1), graph_bytes=float("inf")),
    "truncated": Truncated(3, 1, GradientDescent(0.1)),
    "aggregated": Unrolled(3, Aggregated(GradientDescent(0.1), 0.5, Harmonic(0.01))),
    "neumann": Neumann(1, GradientDescent(0.1), 0.1, 2, 1.0, settled=ANY),
    "conjugate gradient": ConjugateGradient(1, GradientDescent(0.1), settled=ANY),
    "conjugate gradient by differences": ConjugateGradient(
        1, GradientDescent(0.1), tolerance=1e-2, cross=CentralDifference(), settled=ANY
    ),
}


def sgd(params):
    return torch.optim.SGD(params, 0.1)


def plain():
    return Bilevel(upper=lambda w, u: ((u - 1) ** 2).sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2)


# A loss that does not see a variable


def network():
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    return net, *as_function(net)


@pytest.mark.parametrize("strategy", DIFFERENTIATING.values(), ids=DIFFERENTIATING)
class TestDisconnected:
    def test_an_upper_loss_that_calls_the_network_itself_is_refused(self, strategy):
        net, function, u = network()
        lower = lambda w, u: function(u, X).square().mean() + (w.exp() * u["weight"] ** 2).sum()  # noqa: E731
        problem = Bilevel(upper=lambda w, u: net(X).square().mean(), lower=lower)
        with pytest.raises(SolveError, match=r"the upper loss does not depend on the (lower )?parameters.*as_function"):
            hypergradient(problem, torch.zeros(3), u, strategy=strategy)

    def test_an_upper_loss_that_detaches_the_lower_parameters_is_refused(self, strategy):
        problem = Bilevel(upper=lambda w, u: (u.detach() * w).sum(), lower=plain().lower)
        with pytest.raises(SolveError, match=r"the upper loss does not depend on the (lower )?parameters"):
            hypergradient(problem, torch.ones(3), torch.zeros(3), strategy=strategy)

    def test_a_lower_loss_that_calls_the_network_itself_is_refused(self, strategy):
        net, function, u = network()
        problem = Bilevel(upper=lambda w, u: function(u, X).square().mean(), lower=lambda w, u: (w * net(X)).sum())
        with pytest.raises(SolveError, match=r"the lower loss does not depend on the (lower )?parameters"):
            hypergradient(problem, torch.ones(()), u, strategy=strategy)

    def test_a_lower_loss_that_detaches_the_upper_parameters_is_refused(self, strategy):
        problem = Bilevel(upper=plain().upper, lower=lambda w, u: ((u - w.detach()) ** 2).sum() / 2)
        with pytest.raises(SolveError, match=r"depend.? on the upper parameters.*FirstOrder"):
            hypergradient(problem, torch.ones(3), torch.zeros(3), strategy=strategy)


def test_a_lower_level_that_does_not_see_w_is_refused_even_where_the_upper_loss_does():
    problem = Bilevel(upper=lambda w, u: ((u - w) ** 2).sum(), lower=lambda w, u: (u**2).sum())
    for strategy in (
        Unrolled(3, GradientDescent(0.1)),
        OneStepUnrolled(0.1),
        ConjugateGradient(99, GradientDescent(0.1)),
    ):
        with pytest.raises(SolveError, match="FirstOrder"):
            hypergradient(problem, torch.ones(3), torch.ones(3), strategy=strategy)
    found = hypergradient(problem, torch.ones(3), torch.zeros(3), strategy=FirstOrder())
    assert found.gradient.tolist() == [2, 2, 2]


def test_a_loss_that_sees_some_tensors_of_a_tree_is_right_and_zero_for_the_others():
    problem = Bilevel(
        upper=lambda w, u: (u["a"] ** 2).sum(), lower=lambda w, u: ((u["a"] - w[0]) ** 2).sum() / 2 + u["b"].sum() * 0
    )
    w, u = (torch.ones(2), torch.ones(2)), {"a": torch.zeros(2), "b": torch.zeros(2)}
    found = hypergradient(problem, w, u, strategy=Unrolled(60, GradientDescent(0.5))).gradient
    torch.testing.assert_close(found, (torch.full((2,), 2.0), torch.zeros(2)))


@pytest.mark.parametrize("strategy", DIFFERENTIATING.values(), ids=DIFFERENTIATING)
def test_an_upper_tensor_that_one_of_the_losses_ignores_is_legal_for_every_strategy(strategy):
    """The lower loss sees w[0] alone, the upper one w[1]: neither is a mistake."""
    problem = Bilevel(
        upper=lambda w, u: ((u - 1) ** 2).sum() + 3 * w[1].sum(), lower=lambda w, u: ((u - w[0]) ** 2).sum() / 2
    )
    found = hypergradient(problem, (torch.ones(2), torch.ones(2)), torch.zeros(2), strategy=strategy).gradient
    assert (found[0] != 0).all()
    torch.testing.assert_close(found[1], torch.full((2,), 3.0))


def test_an_upper_tensor_that_only_the_upper_loss_or_only_the_operator_sees_is_legal():
    upper = lambda w, u: (u**2).sum() + 3 * w[1].sum()  # noqa: E731
    steps = FixedPointSteps(lambda w: lambda u: u / 2 + w[0])
    way = ThroughFixedPoint(steps, KrasnoselskiiMann(1.0, tolerance=1e-6), per_sample=False)
    w = torch.ones(2), torch.ones(2)
    found = hypergradient(Bilevel(upper, None), w, torch.zeros(2), strategy=way).gradient
    torch.testing.assert_close(found, (torch.full((2,), 8.0), torch.full((2,), 3.0)), rtol=1e-4, atol=0)
    found = hypergradient(Bilevel(upper, None), w, torch.ones(2), strategy=Truncated(3, 0, steps)).gradient
    torch.testing.assert_close(found, (torch.zeros(2), torch.full((2,), 3.0)))


@pytest.mark.parametrize("strategy", [Truncated(3, 0, GradientDescent(0.1)), Unrolled(0, GradientDescent(0.1))])
def test_no_differentiated_step_and_an_upper_loss_that_does_not_see_w_are_refused(strategy):
    with pytest.raises(SolveError, match="no lower step is differentiated, so the gradient is identically zero"):
        hypergradient(plain(), torch.ones(3), torch.zeros(3), strategy=strategy)


def test_the_lower_level_alone_can_be_followed_without_a_gradient():
    found = lower_solution(plain(), torch.ones(3), torch.zeros(3), dynamics=GradientDescent(0.5), steps=2)
    assert found.tolist() == [0.75, 0.75, 0.75]


# Aggregation with a stiff upper loss


def stiff(k=100.0):
    return Bilevel(upper=lambda w, u: k * ((u - 3) ** 2).sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2)


def test_an_aggregated_step_longer_than_the_upper_loss_allows_is_refused_with_the_schedule_that_works():
    w, u = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    default = Unrolled(50, Aggregated(GradientDescent(0.5)))
    with pytest.raises(SolveError, match=r"changes by at least 2\.0e\+02 times.*below 1\.0e-02.*Harmonic\(5\.0e-03\)"):
        hypergradient(stiff(), w, u, strategy=default)
    advised = Unrolled(400, Aggregated(GradientDescent(0.5), schedule=Harmonic(5e-3)))
    found = hypergradient(stiff(), w, u, strategy=advised)
    assert found.lower_params.item() == pytest.approx(1.0, abs=0.02)
    assert found.gradient.item() == pytest.approx(-400, rel=0.02)


@pytest.mark.parametrize(("schedule", "legal"), [(0.0099, True), (0.0104, False)])
def test_the_limit_of_a_leaders_step_is_two_over_the_curvature(schedule, legal):
    w, u = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    strategy = Unrolled(5, Aggregated(GradientDescent(0.5), schedule=Constant(schedule)))
    if legal:
        assert hypergradient(stiff(), w, u, strategy=strategy).lower_params.abs().item() < 10
    else:
        with pytest.raises(SolveError, match="too long"):
            hypergradient(stiff(), w, u, strategy=strategy)


def test_a_metric_with_a_large_floor_allows_a_longer_step():
    from twofold.solve import Scaled

    w, u = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    dynamics = Aggregated(GradientDescent(0.5), schedule=Constant(0.5), metric=lambda w: Scaled(200.0))
    assert hypergradient(stiff(), w, u, strategy=Unrolled(5, dynamics)).value.isfinite()


def test_a_curvature_that_shows_only_on_the_way_is_noticed():
    """At the start the upper loss is flat; the lower level carries the iterate to where it is steep."""
    problem = Bilevel(
        upper=lambda w, u: (u.clamp_min(5.0) ** 4).sum() + u.sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2
    )
    w, u = torch.full((1,), 9.0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(SolveError, match=r"at lower step \d+ is too long"):
        hypergradient(problem, w, u, strategy=Unrolled(50, Aggregated(GradientDescent(0.5), schedule=Constant(0.3))))


def test_curvature_is_the_largest_eigenvalue_even_where_the_gradient_does_not_point_there():
    scales = torch.tensor([1.0, 50.0, 3.0], dtype=torch.float64)
    loss = lambda u: (scales * (u - 1) ** 2).sum() / 2  # noqa: E731
    at = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)  # the steep coordinate is at its minimum
    assert curvature(loss, at) == pytest.approx(50, rel=0.02)
    assert curvature(loss, torch.ones(3, dtype=torch.float64)) == pytest.approx(50, rel=0.02)


def test_curvature_is_measured_over_a_distance_that_the_size_of_the_state_allows():
    """In float32 a state of 1e4 moves by 1e-3 or not at all."""
    loss = lambda u: (u**2).sum() / 2  # noqa: E731
    for size in (1e-4, 1.0, 1e4):
        assert curvature(loss, torch.full((3,), size)) == pytest.approx(1, rel=0.05)


def test_schedules_are_what_their_formulas_say():
    for k in (0, 1, 7):
        assert Harmonic(0.6)(k) == 0.6 / (k + 1)
        assert Geometric(0.6, 0.5)(k) == 0.6 * 0.5**k
        assert Constant(0.6)(k) == 0.6


# NaN and infinity are named where they arise


def test_a_norm_at_zero_is_named_in_the_round_it_happens():
    at = torch.ones(3)
    lower = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lambda w, u: (u - w).norm())
    for strategy in (Unrolled(1, GradientDescent(0.5)), OneStepUnrolled(0.5)):
        with pytest.raises(SolveError, match=r"the hypergradient in upper_params is not finite.*is there a norm"):
            hypergradient(lower, at, at, strategy=strategy)


def test_a_kink_of_the_upper_loss_is_named_with_the_loss_that_has_it():
    root = Bilevel(upper=lambda w, u: ((u - w) ** 2).sum().sqrt(), lower=lambda w, u: ((u - w) ** 2).sum() / 2)
    at, descent = torch.ones(3), GradientDescent(0.5)
    for strategy in (Unrolled(1, descent), OneStepUnrolled(0.5), ConjugateGradient(0, descent)):
        with pytest.raises(SolveError, match=r"upper loss's gradient in lower_params is not finite.*is there a norm"):
            hypergradient(root, at, at, strategy=strategy)
    with pytest.raises(SolveError, match="the hypergradient in upper_params is not finite"):
        hypergradient(root, at, at, strategy=FirstOrder())


def test_a_root_at_zero_in_the_lower_loss_is_named_with_its_step():
    problem = Bilevel(upper=lambda w, u: (u["a"] ** 2).sum(), lower=lambda w, u: (w * u["a"].abs().sqrt()).sum())
    u = {"a": torch.tensor([1.0, 0.0])}
    with pytest.raises(SolveError, match=r"after lower step 0 lower_params\['a'\] is not finite \(nan at 1 of 2"):
        hypergradient(problem, torch.ones(2), u, strategy=Unrolled(3, GradientDescent(0.1)))
    with pytest.raises(SolveError, match=r"lower loss's gradient in lower_params\['a'\] is not finite"):
        hypergradient(problem, torch.ones(2), u, strategy=OneStepUnrolled(0.1))


def test_nan_in_a_tensor_that_the_upper_loss_ignores_is_named():
    lower = lambda w, u: ((u["seen"] - w) ** 2).sum() / 2 + u["ignored"].abs().sqrt().sum()  # noqa: E731
    problem = Bilevel(upper=lambda w, u: (u["seen"] ** 2).sum(), lower=lower)
    u = {"seen": torch.zeros(2), "ignored": torch.zeros(2)}
    for strategy in (Unrolled(2, GradientDescent(0.1)), FirstOrder(2, GradientDescent(0.1))):
        with pytest.raises(SolveError, match=r"\['ignored'\] is not finite"):
            hypergradient(problem, torch.ones(2), u, strategy=strategy)


@pytest.mark.parametrize("dynamics", [GradientDescent(9.0), Momentum(9.0)])
def test_divergence_is_named_with_the_step_and_the_growth(dynamics):
    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lambda w, u: (w * u**2).sum())
    with pytest.raises(SolveError, match=r"diverged: its parameters had grown to a norm of \d\.\de\+\d+.*step \d+"):
        hypergradient(problem, torch.ones(3), torch.ones(3), strategy=Unrolled(99, dynamics))


def test_an_infinite_upper_loss_at_finite_parameters_is_named():
    problem = Bilevel(upper=lambda w, u: (u * 1e30).exp().sum(), lower=plain().lower)
    with pytest.raises(SolveError, match="the value of the upper loss is not finite"):
        hypergradient(problem, torch.ones(3), torch.ones(3), strategy=Unrolled(1, GradientDescent(0.5)))


def test_a_second_derivative_that_is_not_finite_is_named():
    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lambda w, u: (w.abs().sqrt() * u).sum())
    with pytest.raises(SolveError, match=r"the hypergradient in upper_params is not finite"):
        hypergradient(problem, torch.zeros(2), torch.ones(2), strategy=Unrolled(2, GradientDescent(0.1)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_starts_that_are_not_finite_are_named(bad):
    one, wrong = torch.ones(2), {"x": torch.tensor([1.0, bad])}
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lambda w, u: u.sum())
    with pytest.raises(SolveError, match=r"upper_params\['x'\] is not finite"):
        hypergradient(problem, wrong, one, strategy=OneStepUnrolled(0.1))
    with pytest.raises(SolveError, match=r"lower_params\['x'\] is not finite"):
        hypergradient(problem, one, wrong, strategy=OneStepUnrolled(0.1))


def test_an_upper_step_that_leaves_the_finite_numbers_is_named_in_its_round():
    problem = Bilevel(upper=lambda w, u: (u * 1e30).sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2)
    loop = rounds(
        problem,
        torch.ones(2),
        torch.zeros(2),
        strategy=Unrolled(5, GradientDescent(0.5)),
        optimizer=lambda p: torch.optim.SGD(p, 1e20),
    )
    with pytest.raises(SolveError, match=r"upper_params is not finite.*after round 0: take a smaller upper step"):
        next(loop)


# The order in which a dict was filled never matters


def test_arithmetic_matches_the_entries_of_dicts_by_their_keys():
    one = {"a": torch.tensor([1.0]), "b": torch.tensor([10.0])}
    other = {"b": torch.tensor([10.0]), "a": torch.tensor([1.0])}
    assert dot(one, other).item() == 101
    assert norm(over(torch.sub, one, other)).item() == 0
    assert list(rebuild(other, tensors(one))) == ["b", "a"]
    assert rebuild(other, tensors(one))["b"].item() == 10
    mixed = {1: torch.ones(1), "1": torch.zeros(1)}
    assert dot(mixed, dict(reversed(mixed.items()))).item() == 1


def test_a_projection_may_return_its_keys_in_any_order():
    w = {"a": torch.tensor([1.0]), "b": torch.tensor([5.0])}
    lower = lambda w, u: ((u - w["a"] * w["b"]) ** 2).sum() / 2  # noqa: E731
    problem = Bilevel(upper=lambda w, u: (u**2).sum() * 0 + u.sum() * 1e-6, lower=lower)
    swap = lambda w: {"b": w["b"], "a": w["a"]}  # noqa: E731
    way = Unrolled(2, GradientDescent(0.5))
    first = next(rounds(problem, w, torch.zeros(1), strategy=way, optimizer=sgd, project=swap))
    assert first.upper_params["a"].item() == pytest.approx(1, abs=1e-3)
    assert first.upper_params["b"].item() == pytest.approx(5, abs=1e-3)


@pytest.mark.parametrize("project", [lambda w: {"a": w["a"]}, lambda w: w["a"], lambda w: {**w, "c": w["a"]}])
def test_a_projection_of_another_structure_is_refused(project):
    w = {"a": torch.ones(1), "b": torch.ones(1)}
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lambda w, u: ((u - w["a"] * w["b"]) ** 2).sum())
    loop = rounds(problem, w, torch.ones(1), strategy=OneStepUnrolled(0.1), optimizer=sgd, project=project)
    with pytest.raises(SolveError, match=r"expected a dict with the keys \['a', 'b'\], got"):
        next(loop)


@pytest.mark.parametrize("other", [(torch.ones(1),), [torch.ones(1)] * 3, torch.ones(1), {"a": torch.ones(1)}])
def test_trees_of_another_structure_are_refused(other):
    with pytest.raises(SolveError, match="expected a tuple of 2, got a"):
        over(torch.add, (torch.ones(1), torch.ones(1)), other)
    with pytest.raises(SolveError, match="expected a tensor, as in the tree beside it, got a tuple"):
        over(torch.add, torch.ones(1), (torch.ones(1),))


# Parameters that are no parameters


def test_frozen_parameters_stay_frozen():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    function, u = as_function(net)
    assert list(u) == ["1.weight", "1.bias"]
    torch.testing.assert_close(function(u, X), net(X))
    before = net[0].weight.clone()
    lower = lambda w, u: (function(u, X) - w).square().mean()  # noqa: E731
    problem = Bilevel(upper=lambda w, u: function(u, X).square().mean(), lower=lower)
    found = hypergradient(problem, torch.ones(()), u, strategy=Unrolled(3, GradientDescent(0.1)))
    assert set(found.lower_params) == {"1.weight", "1.bias"}
    assert torch.equal(net[0].weight, before)
    with pytest.raises(SolveError, match=r"Sequential has no parameter that requires a gradient; call .requires_grad_"):
        as_function(net.requires_grad_(False))


@pytest.mark.parametrize("tree", [(), {}, [], {"a": ()}])
def test_empty_trees_are_refused(tree):
    for w, u, name in ((tree, torch.ones(1), "upper"), (torch.ones(1), tree, "lower")):
        with pytest.raises(SolveError, match=f"{name}_params holds no tensors"):
            hypergradient(plain(), w, u, strategy=OneStepUnrolled(0.1))


def test_integer_and_complex_tensors_are_refused_by_name():
    whole, imaginary = {"n": torch.arange(3)}, (torch.ones(3, dtype=torch.complex64),)
    for bad, reason in (
        (whole, r"_params\['n'\] is torch.int64, expected floating-point.*\.float\(\)"),
        (imaginary, r"_params\[0\] is complex \(torch.complex64\).*view_as_real"),
    ):
        for w, u in ((bad, torch.ones(3)), (torch.ones(3), bad)):
            with pytest.raises(SolveError, match=reason):
                hypergradient(plain(), w, u, strategy=Unrolled(2, GradientDescent(0.1)))
    with pytest.raises(SolveError, match=r"upper_params\['n'\] is torch.int64"):
        next(rounds(plain(), whole, torch.ones(3), strategy=OneStepUnrolled(0.1), optimizer=sgd))


# Arguments in the wrong place


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: Unrolled(GradientDescent(0.4), 20),
            r"write Unrolled\(20, GradientDescent\(step_size=0\.4\), \.\.\.\)",
        ),
        (lambda: Truncated(GradientDescent(0.4), 20, 3), r"write Truncated\(3, GradientDescent"),
        (lambda: ConjugateGradient(GradientDescent(0.4), 20), r"write ConjugateGradient\(20, "),
        (lambda: Neumann(GradientDescent(0.4), 20, 0.1), r"write Neumann\(20, "),
        (lambda: FirstOrder(GradientDescent(0.4), 20), r"write FirstOrder\(20, "),
        (lambda: Unrolled(20, torch.optim.SGD), r"cannot differentiate torch\.optim\.SGD.*GradientDescent\(step\)"),
        (lambda: Unrolled(20, torch.optim.Adam([torch.ones(1, requires_grad=True)])), r"torch\.optim\.Adam.*in place"),
        (lambda: Unrolled(20, GradientDescent), r"got the class GradientDescent as dynamics; make one"),
        (lambda: Unrolled(20, 0.1), "expects dynamics, as GradientDescent"),
        (lambda: Unrolled(20.0, GradientDescent(0.1)), r"a number of lower steps, 0 or more, got 20\.0"),
        (lambda: Unrolled(True, GradientDescent(0.1)), "a number of lower steps, 0 or more, got True"),
        (lambda: Unrolled(-1, GradientDescent(0.1)), "a number of lower steps, 0 or more, got -1"),
        (lambda: GradientDescent(0.0), r"step_size must lie in \(0, inf\), got 0\.0"),
        (lambda: Momentum(-1.0), "step_size must lie in"),
        (lambda: Adam(float("nan")), "step_size must lie in"),
        (lambda: GradientDescent("0.1"), "expected a number as step_size, got a str"),
        (lambda: OneStepUnrolled(GradientDescent(0.1)), "expected a number as step_size, got a GradientDescent"),
        (lambda: Neumann(5, GradientDescent(0.1), -0.1), "step_size must lie in"),
        (lambda: FirstOrder(3), "given no dynamics"),
        (
            lambda: hypergradient(plain(), X, X, strategy=Unrolled(3, GradientDescent(0.1), graph_bytes=-1)),
            "expected graph_bytes of 0 or more, got -1",
        ),
    ],
)
def test_settings_in_the_wrong_place_get_one_clear_line(make, reason):
    with pytest.raises(SolveError, match=reason) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("problem", "strategy", "reason"),
    [
        (plain(), Unrolled, r"expected a strategy, as Unrolled\(20, GradientDescent\(0\.1\)\), got Unrolled"),
        (plain(), GradientDescent(0.1), "expected a strategy.*got GradientDescent"),
        ((plain().upper, plain().lower), OneStepUnrolled(0.1), r"expected a Bilevel.* got a tuple"),
        (
            Bilevel(lambda w, u: 1.0, plain().lower),
            OneStepUnrolled(0.1),
            "scalar tensor from the upper loss, got a float",
        ),
        (Bilevel(lambda w, u: u, plain().lower), OneStepUnrolled(0.1), r"the upper loss, got shape \(3,\); add \.mean"),
        (Bilevel(plain().upper, lambda w, u: u - w), OneStepUnrolled(0.1), r"the lower loss, got shape \(3,\)"),
        (Bilevel(plain().upper, None), OneStepUnrolled(0.1), "lower=None"),
    ],
)
def test_problems_and_strategies_that_are_none_are_refused(problem, strategy, reason):
    with pytest.raises(SolveError, match=reason):
        hypergradient(problem, torch.ones(3), torch.ones(3), strategy=strategy)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS evaluates the loss many times a step"),
        (
            torch.optim.Adam([torch.ones(1, requires_grad=True)]),
            r"got an optimizer \(Adam\) that already has.*lambda params",
        ),
        (0.1, "expected a function that makes an optimizer, got a float"),
        (lambda p: None, "returned a NoneType"),
    ],
)
def test_optimizers_that_cannot_serve_the_upper_level_are_refused(optimizer, reason):
    loop = rounds(plain(), torch.ones(3), torch.zeros(3), strategy=OneStepUnrolled(0.1), optimizer=optimizer)
    with pytest.raises(SolveError, match=reason):
        next(loop)


# What the rest relies on


@pytest.mark.parametrize("dynamics", [Adam(0.05), Aggregated(GradientDescent(0.1), 0.3, Harmonic(0.2))])
def test_truncation_numbers_its_steps_as_the_whole_solve_does(dynamics):
    """Adam's bias correction and a schedule depend on the number of the step."""
    problem = Bilevel(
        upper=lambda w, u: ((u - 2) ** 2).sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2 + (u**4).sum() / 8
    )
    w, start, early, last = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 4, 3
    found = hypergradient(problem, w, start, strategy=Truncated(early + last, last, dynamics))
    state = dynamics.begin(start)
    with torch.no_grad():
        for k in range(early):
            state = dynamics.step(problem, k, w, state)
    leaf = w.clone().requires_grad_()
    for k in range(early, early + last):
        state = dynamics.step(problem, k, leaf, state)
    expected = torch.autograd.grad(problem.upper(leaf, dynamics.params(state)), leaf)[0]
    torch.testing.assert_close(found.gradient, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.lower_params, dynamics.params(state).detach(), rtol=1e-12, atol=0)


def test_a_loss_without_any_of_its_parameters_has_no_gradient():
    with pytest.raises(SolveError, match="does not depend on the parameters"):
        gradient(lambda u: torch.ones((), requires_grad=True) * 2, torch.ones(3))
    with pytest.raises(SolveError, match="the upper loss does not depend"):
        aggregated_step(lambda u: u / 2, lambda u: torch.ones(()), torch.ones(3), mu=0.5, step=0.1)


def test_an_operator_that_does_not_hold_the_upper_parameters_is_refused():
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=None)
    with pytest.raises(SolveError, match="no step of the lower level depends on the upper parameters"):
        hypergradient(
            problem, torch.ones(2), torch.ones(2), strategy=Unrolled(3, FixedPointSteps(lambda w: lambda u: u / 2))
        )


def test_rounds_go_on_as_long_as_all_is_finite():
    loop = rounds(plain(), torch.full((3,), 4.0), torch.zeros(3), strategy=DIFFERENTIATING["unrolled"], optimizer=sgd)
    assert [r.number for r in islice(loop, 3)] == [0, 1, 2]
