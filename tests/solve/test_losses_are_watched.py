"""A loss that draws random numbers or changes what it reads is refused, at any step size, replayed or differenced."""

import random as python_random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twofold.solve import (
    Adam,
    Aggregated,
    Bilevel,
    CentralDifference,
    ConjugateGradient,
    FixedPointSteps,
    ForwardDifference,
    GradientDescent,
    Harmonic,
    Neumann,
    OneStepUnrolled,
    Settled,
    SolveError,
    Truncated,
    Unrolled,
    as_function,
    hypergradient,
)
from twofold.solve.unroll import replayed

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
RANDOM = "draws random numbers and is evaluated more than once"
ANY = Settled(relative=float("inf"))
REPEATING = {
    "unrolled": Unrolled(3, GradientDescent(1e-4)),
    "unrolled, one step": Unrolled(1, GradientDescent(1e-4)),
    "unrolled, tiny steps": Unrolled(3, GradientDescent(1e-9)),
    "unrolled with adam": Unrolled(3, Adam(1e-5)),
    "truncated": Truncated(4, 1, GradientDescent(1e-3)),
    "one step by differences": OneStepUnrolled(0.1, CentralDifference()),
    "neumann by differences": Neumann(1, GradientDescent(0.1), 0.01, 2, 1.0, CentralDifference(), ANY),
    "conjugate gradient": ConjugateGradient(2, GradientDescent(0.1), settled=ANY),
}


def network(*extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), *extra, nn.Linear(6, 1))


def problem_of(net, noise=lambda h: h):
    function, u = as_function(net)
    lower = lambda w, u: noise(function(u, X)).square().mean() + (w.exp() * u["0.weight"] ** 2).sum()  # noqa: E731
    quiet = lambda w, u: (u["0.weight"] ** 2).sum()  # noqa: E731
    return Bilevel(upper=quiet, lower=lower), torch.zeros(6), u


@pytest.mark.parametrize("strategy", REPEATING.values(), ids=REPEATING)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_in_the_lower_loss_is_refused_whatever_the_step(strategy, rate):
    problem, w, u = problem_of(network(nn.Dropout(rate)))
    with pytest.raises(SolveError, match=RANDOM):
        hypergradient(problem, w, u, strategy=strategy)


GENERATOR = torch.Generator().manual_seed(0)
SOURCES = {
    "torch's default generator": lambda h: h * torch.rand(1),
    "a generator handed over": lambda h: h * torch.rand(1, generator=GENERATOR),
    "a generator of a method": lambda h: h * torch.empty(1).uniform_(generator=GENERATOR),
    "python's generator": lambda h: h * python_random.random(),
    "numpy's generator": lambda h: h * float(np.random.rand()),  # noqa: NPY002
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["unrolled, tiny steps", "one step by differences"])
def test_every_generator_is_watched(source, name):
    problem, w, u = problem_of(network(), SOURCES[source])
    with pytest.raises(SolveError, match=RANDOM):
        hypergradient(problem, w, u, strategy=REPEATING[name])


def test_a_random_lower_loss_that_is_evaluated_once_gives_a_stochastic_gradient():
    problem, w, u = problem_of(network(nn.Dropout(0.5)))
    torch.manual_seed(1)
    one = hypergradient(problem, w, u, strategy=OneStepUnrolled(0.1)).gradient
    torch.manual_seed(1)
    other = hypergradient(problem, w, u, strategy=OneStepUnrolled(0.1)).gradient
    assert torch.equal(one, other)
    assert one.abs().max() > 0


def test_a_random_upper_loss_is_refused_where_it_is_evaluated_more_than_once():
    problem = Bilevel(upper=lambda w, u: (F.dropout(u, 0.5) ** 2).sum(), lower=lambda w, u: ((u - w) ** 2).sum() / 2)
    w, u = torch.ones(4), torch.zeros(4)
    hypergradient(problem, w, u, strategy=Unrolled(2, GradientDescent(0.5)))
    with pytest.raises(SolveError, match=f"the upper loss {RANDOM}"):
        hypergradient(problem, w, u, strategy=Unrolled(2, Aggregated(GradientDescent(0.5), 0.5, Harmonic(0.1))))


def test_an_operator_that_draws_random_numbers_is_refused_as_lower_level():
    steps = FixedPointSteps(lambda w: lambda u: u / 2 + w * torch.rand(1))
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=None)
    with pytest.raises(SolveError, match="a lower step draws random numbers"):
        hypergradient(problem, torch.ones(2), torch.zeros(2), strategy=Unrolled(2, steps))


@pytest.mark.parametrize("rate", [1e-2, 1e-6])
def test_a_replay_compares_what_a_step_changed_and_not_where_it_ended(rate):
    """A data loader inside the loss: no generator moves, and for a small step the states hardly differ."""
    batches = iter(range(1000))
    lower = lambda w, u: ((u * w - 1 - 0.01 * next(batches)) ** 2).sum()  # noqa: E731
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lower)
    w, u = torch.ones(3, dtype=torch.float64), torch.full((3,), 100.0, dtype=torch.float64)
    with pytest.raises(SolveError, match="another result when it was replayed"):
        hypergradient(problem, w, u, strategy=Unrolled(3, GradientDescent(rate)))


@pytest.mark.parametrize(("share", "accepted"), [(1e-9, True), (1e-7, False)])
def test_a_replayed_step_may_differ_by_the_root_of_the_precision_and_no_more(share, accepted):
    """1.5e-8 of what the step changes, in float64: kernels with and without a graph may round differently."""
    wobble = iter([0.0] * 4 + [share] * 4)

    def step(k, w, u):
        return u - 1e-2 * w * (u + next(wobble))

    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    u = replayed(step, w, torch.ones((), dtype=torch.float64), steps=4)
    if accepted:
        assert torch.autograd.grad(u, w)[0].isfinite()
    else:
        with pytest.raises(SolveError, match="another result when it was replayed"):
            torch.autograd.grad(u, w)


def test_a_data_loader_under_central_differences_is_noticed():
    batches = torch.Generator().manual_seed(0)
    data = [torch.randn(8, 5, generator=batches) for _ in range(50)]
    turn = iter(data)
    lower = lambda w, u: ((next(turn) @ u - 1) ** 2).mean() + (w.exp() * u**2).sum()  # noqa: E731
    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lower)
    with pytest.raises(SolveError, match="data loader"):
        hypergradient(problem, torch.zeros(5), torch.ones(5), strategy=OneStepUnrolled(0.1, CentralDifference()))


class Running(nn.Module):
    """A layer of somebody's own, with a running mean as a buffer."""

    def __init__(self, *, replace):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.replace = replace

    def forward(self, x):
        fresh = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if self.replace:
            self.mean = fresh
        else:
            self.mean.copy_(fresh)
        return x - self.mean


STATEFUL = {
    "spectral norm": lambda: network(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))),
    "a buffer written in place": lambda: network(Running(replace=False)),
    "a buffer replaced": lambda: network(Running(replace=True)),
}


@pytest.mark.parametrize("kind", STATEFUL)
@pytest.mark.parametrize("name", ["unrolled, tiny steps", "one step by differences", "conjugate gradient"])
def test_a_module_that_changes_its_buffers_is_refused_by_the_name_of_the_buffer(kind, name):
    problem, w, u = problem_of(STATEFUL[kind]())
    with pytest.raises(SolveError, match=r"the lower loss changes '(mean|_u|_v)' of \w+ while it is evaluated"):
        hypergradient(problem, w, u, strategy=REPEATING[name])


def test_a_buffer_that_the_upper_loss_changes_is_refused_too():
    layer = Running(replace=False)
    problem = Bilevel(upper=lambda w, u: (layer(u[None]) ** 2).sum(), lower=lambda w, u: ((u - w) ** 2).sum())
    with pytest.raises(SolveError, match="the upper loss changes 'mean' of Running"):
        hypergradient(problem, torch.ones(6), torch.ones(6), strategy=Unrolled(1, GradientDescent(0.1)))


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nn.InstanceNorm1d])
@pytest.mark.parametrize("hidden", [True, False])
def test_normalisation_that_tracks_statistics_is_refused_and_the_remedy_works(make, hidden):
    def build(**settings):
        net = network(nn.Unflatten(1, (2, 3)), make(2, **settings), nn.Flatten())
        function, u = as_function(net)
        if hidden:
            function = lambda u, x: torch.func.functional_call(net, u, (x,))  # noqa: E731
        lower = lambda w, u: function(u, X).square().mean() + (w.exp() * u["0.weight"] ** 2).sum()  # noqa: E731
        return Bilevel(upper=lambda w, u: function(u, -X).square().mean(), lower=lower), torch.zeros(6), u

    problem, w, u = build(track_running_stats=True)
    name = make.__name__.rstrip("1d")
    with pytest.raises(SolveError, match=rf"{name}.* in training mode.*track_running_stats=False"):
        hypergradient(problem, w, u, strategy=Unrolled(2, GradientDescent(0.01)))
    problem, w, u = build(track_running_stats=False)
    assert hypergradient(problem, w, u, strategy=Unrolled(2, GradientDescent(0.01))).gradient.abs().max() > 0


@pytest.mark.parametrize(("call", "name"), [(F.batch_norm, "BatchNorm"), (F.instance_norm, "InstanceNorm")])
def test_functional_normalisation_that_writes_statistics_is_refused(call, name):
    mean, variance, flag = torch.zeros(3), torch.ones(3), "training" if name == "BatchNorm" else "use_input_stats"
    lower = lambda w, u: (w * call(u.reshape(2, 3, 2), mean, variance, **{flag: True}) ** 2).sum()  # noqa: E731
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lower)
    with pytest.raises(SolveError, match=f"{name} in training mode"):
        hypergradient(problem, torch.ones(()), torch.randn(12), strategy=OneStepUnrolled(0.1))
    assert mean.tolist() == [0, 0, 0]


MEAN, VARIANCE = torch.zeros(3), torch.ones(3)
POSITIONAL = {
    "batch_norm, training": (lambda x: F.batch_norm(x, MEAN, VARIANCE, None, None, True), False),
    "batch_norm, evaluation": (lambda x: F.batch_norm(x, MEAN, VARIANCE, None, None, False, 0.1), True),
    "batch_norm, by default": (lambda x: F.batch_norm(x, MEAN, VARIANCE), True),
    "batch_norm without statistics": (lambda x: F.batch_norm(x, None, None, None, None, True), True),
    "instance_norm, by default": (lambda x: F.instance_norm(x, MEAN, VARIANCE), False),
    "torch.batch_norm, training": (
        lambda x: torch.batch_norm(x, None, None, MEAN, VARIANCE, True, 0.1, 1e-5, False),
        False,
    ),
    "torch.batch_norm, evaluation": (
        lambda x: torch.batch_norm(x, None, None, MEAN, VARIANCE, False, 0.1, 1e-5, False),
        True,
    ),
    "torch.instance_norm, training": (
        lambda x: torch.instance_norm(x, None, None, MEAN, VARIANCE, True, 0.1, 1e-5, False),
        False,
    ),
}


@pytest.mark.parametrize("name", POSITIONAL)
def test_functional_normalisation_is_understood_without_the_names_of_its_arguments(name):
    call, legal = POSITIONAL[name]
    lower = lambda w, u: (w * (call(u.reshape(2, 3, 2)) - 1) ** 3).sum()  # noqa: E731
    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lower)
    u = torch.randn(12, generator=torch.Generator().manual_seed(0))
    if legal:
        hypergradient(problem, torch.ones(()), u, strategy=OneStepUnrolled(0.1))
        return
    with pytest.raises(SolveError, match="Norm in training mode"):
        hypergradient(problem, torch.ones(()), u, strategy=OneStepUnrolled(0.1))


@pytest.mark.parametrize("draws_at", [1, 2])
def test_a_loss_that_begins_to_draw_later_is_refused_at_once(draws_at):
    calls = iter(range(9))

    def lower(w, u):
        return ((u - w) ** 2).sum() + (torch.rand(()) if next(calls) == draws_at else 0.0)

    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lower)
    cross = ForwardDifference() if draws_at == 1 else CentralDifference()  # the last evaluation of each
    with pytest.raises(SolveError, match="draws random numbers"):
        hypergradient(problem, torch.ones(2), torch.zeros(2), strategy=OneStepUnrolled(0.1, cross))


def test_a_loss_that_writes_into_its_arguments_is_refused():
    def lower(w, u):
        w.data.mul_(2)
        with torch.no_grad():
            w.mul_(1.0)
        return (w * u**2).sum()

    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lower)
    with pytest.raises(SolveError, match="the lower loss changes the upper parameters in place"):
        hypergradient(problem, torch.ones(2), torch.ones(2), strategy=OneStepUnrolled(0.1))


def test_a_module_may_keep_a_note_of_its_last_output():
    class Noting(nn.Module):
        def forward(self, x):
            self.last = x.detach()
            return x

    problem, w, u = problem_of(network(Noting()))
    for _ in range(2):
        hypergradient(problem, w, u, strategy=Unrolled(2, GradientDescent(0.01)))


def test_hooks_are_removed_even_where_the_loss_fails():
    from torch.nn.modules import module

    before = len(module._global_forward_pre_hooks), len(module._global_forward_hooks)

    def broken(w, u):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hypergradient(Bilevel(broken, broken), torch.ones(1), torch.ones(1), strategy=OneStepUnrolled(0.1))
    assert (len(module._global_forward_pre_hooks), len(module._global_forward_hooks)) == before
