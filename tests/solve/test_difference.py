"""The forward difference against a closed form, and its price."""

import pytest
import torch

from twofold.solve import (
    Bilevel,
    CentralDifference,
    ForwardDifference,
    GradientDescent,
    Neumann,
    OneStepUnrolled,
    SolveError,
    hypergradient,
)

# One step on (u − w²)² / 2 from u: u' = u − s (u − w²), and d/dw (u')² / 2 = u' · 2 s w.
PROBLEM = Bilevel(upper=lambda w, u: (u**2).sum() / 2, lower=lambda w, u: ((u - w**2) ** 2).sum() / 2)
W, U = torch.tensor([1.5, -0.5], dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)


def test_one_unrolled_step_has_the_gradient_of_the_closed_form():
    found = hypergradient(PROBLEM, W, U, strategy=OneStepUnrolled(0.1, ForwardDifference()))
    moved = U - 0.1 * (U - W**2)
    torch.testing.assert_close(found.gradient, moved * 2 * 0.1 * W, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(found.lower_params, moved)


def test_it_takes_one_lower_gradient_less_than_the_central_difference():
    forward, central = (
        hypergradient(PROBLEM, W, U, strategy=OneStepUnrolled(0.1, cross)).cost.lower_evaluations
        for cross in (ForwardDifference(), CentralDifference())
    )
    assert (forward, central) == (2, 3)


def test_implicit_strategies_are_refused():
    strategy = Neumann(0, GradientDescent(0.5), 0.5, cross=ForwardDifference())
    with pytest.raises(SolveError, match="one unrolled step"):
        hypergradient(PROBLEM, W, U, strategy=strategy)


@pytest.mark.parametrize("cross", [ForwardDifference(), CentralDifference()], ids=lambda c: type(c).__name__)
def test_losses_that_do_not_see_a_level_are_refused(cross):
    way = OneStepUnrolled(0.1, cross)
    without_w = Bilevel(PROBLEM.upper, lambda w, u: (u**2).sum())
    with pytest.raises(SolveError, match="does not depend on the upper parameters"):
        hypergradient(without_w, W, U, strategy=way)
    without_u = Bilevel(PROBLEM.upper, lambda w, u: (w**2).sum())
    with pytest.raises(SolveError, match="the lower loss does not depend on the lower parameters"):
        hypergradient(without_u, W, U, strategy=way)


def test_a_radius_is_how_far_the_lower_parameters_are_moved():
    """On a cubic the forward difference errs in proportion to the radius: by ε ∂_w ∂²_u f / 2 along the direction."""
    cubic = Bilevel(lambda w, u: u.sum(), lambda w, u: (w * u**3).sum())
    w, u = torch.tensor([2.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    found = hypergradient(cubic, w, u, strategy=OneStepUnrolled(1.0, ForwardDifference(radius=0.1)))
    torch.testing.assert_close(found.gradient, -torch.tensor([(3.1**3 - 27) / 0.1], dtype=torch.float64))


def drifting(slope, drift):
    """A lower loss of known slope whose value grows by `drift` at every evaluation, as with a data loader."""
    calls = iter(range(99))
    return Bilevel(PROBLEM.upper, lambda w, u: (slope * w * u).sum() + 1.0 + drift * next(calls))


@pytest.mark.parametrize(
    ("slope", "drift", "legal"),
    [
        (1.0, 0.0, True),
        (1.0, 1.9e-3, True),
        (1.0, 2.1e-3, False),
        (1.0, -1.9e-3, True),
        (1.0, -2.1e-3, False),
        (0.0, 1.6e-12, True),
        (0.0, 2.2e-12, False),
    ],
)
def test_three_values_may_leave_their_parabola_by_a_quarter_of_their_change_and_rounding(slope, drift, legal):
    """The values at u, ahead and behind are moved by 0, d and 2 d. So half their difference is d / 2 away from the
    known slope s = 1e-3, and their mean 3 d / 2 from the middle: legal where d / 2 ≤ (s + 3 d / 2) / 4 + 1e3 roundings.
    """
    w, u = torch.ones(1, dtype=torch.float64), torch.full((1,), 2.0, dtype=torch.float64)
    way = OneStepUnrolled(0.1, CentralDifference(radius=1e-3))
    if legal:
        hypergradient(drifting(slope, drift), w, u, strategy=way)
        return
    with pytest.raises(SolveError, match="fit no parabola"):
        hypergradient(drifting(slope, drift), w, u, strategy=way)
