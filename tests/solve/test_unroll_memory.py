"""What a replayed solve holds: states, and the activations of one group of steps."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from twofold.solve import Bilevel, GradientDescent, Unrolled, as_function, hypergradient
from twofold.solve.params import tensors

torch.manual_seed(0)
X = torch.randn(8, 2, 16, 16)
NET = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, 2, 3, padding=1))
FUNCTION, START = as_function(NET)
STATE = sum(t.numel() * t.element_size() for t in tensors(START))
WEIGHTS = torch.zeros(8)


def fit(w: Tensor, u: dict[str, Tensor]) -> Tensor:
    return ((FUNCTION(u, X) - X).square().mean((1, 2, 3)) * w.sigmoid()).mean()


PROBLEM = Bilevel(upper=lambda w, u: (FUNCTION(u, X) + X).square().mean(), lower=fit)
DESCENT = GradientDescent(0.1)


def peak(strategy: Unrolled) -> int:
    """Bytes of tensors held at once beyond those held before: every allocation and release, as torch records them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        hypergradient(PROBLEM, WEIGHTS, START, strategy=strategy)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What torch allocates once, on first use, counts for nobody."""
    peak(Unrolled(2, DESCENT))


def test_each_further_step_costs_its_state_and_no_activation() -> None:
    assert peak(Unrolled(32, DESCENT)) - peak(Unrolled(8, DESCENT)) == pytest.approx(24 * STATE, rel=0.1)


def test_states_kept_at_the_root_of_their_number_cost_their_root() -> None:
    growth = peak(Unrolled(36, DESCENT, keep_every=6)) - peak(Unrolled(9, DESCENT, keep_every=3))
    assert growth == pytest.approx(6 * STATE, rel=0.4)  # 6 + 6 states against 3 + 3


def test_sixty_four_steps_hold_an_eighth_of_what_plain_unrolling_holds_at_most() -> None:
    plain = peak(Unrolled(64, DESCENT, together=64))  # one group is a plain graph of all steps
    assert peak(Unrolled(64, DESCENT)) < plain / 8
    assert peak(Unrolled(64, DESCENT, together=4)) < plain / 8


def test_memory_that_may_be_spent_saves_replays_and_is_not_exceeded() -> None:
    least, plain = peak(Unrolled(32, DESCENT)), peak(Unrolled(32, DESCENT, graph_bytes=float("inf")))
    reference = hypergradient(PROBLEM, WEIGHTS, START, strategy=Unrolled(32, DESCENT))
    evaluations = [reference.cost.lower_evaluations]
    for share in (0.25, 0.5, 2.0):
        strategy = Unrolled(32, DESCENT, graph_bytes=share * plain)
        found = hypergradient(PROBLEM, WEIGHTS, START, strategy=strategy)
        torch.testing.assert_close(found.gradient, reference.gradient, rtol=1e-5, atol=1e-9)
        assert peak(strategy) <= least + share * plain
        evaluations.append(found.cost.lower_evaluations)
    assert evaluations[0] == 64  # each step once, and once replayed
    assert evaluations == sorted(evaluations, reverse=True)
    assert evaluations[-1] == 32 + 2  # nothing replayed; two steps to measure
    unlimited = hypergradient(PROBLEM, WEIGHTS, START, strategy=Unrolled(32, DESCENT, graph_bytes=float("inf")))
    assert unlimited.cost.lower_evaluations == 32
    torch.testing.assert_close(unlimited.gradient, reference.gradient, rtol=1e-5, atol=1e-9)
