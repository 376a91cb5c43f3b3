"""Every strategy against closed forms, central differences, TorchOpt and higher."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twofold.solve import (
    Adam,
    AdamW,
    Anderson,
    Bilevel,
    CentralDifference,
    ConjugateGradient,
    Exact,
    FirstOrder,
    FixedPointSteps,
    GradientDescent,
    Implicit,
    KrasnoselskiiMann,
    Momentum,
    Neumann,
    NeumannSeries,
    NotConverged,
    OneStepUnrolled,
    ProximalGradient,
    RMSprop,
    Settled,
    SolveError,
    ThroughFixedPoint,
    Truncated,
    TruncatedAdjoint,
    Unrolled,
    as_function,
    hypergradient,
)
from twofold.solve.evaluator import Evaluator
from twofold.solve.params import minus, norm, tensors
from twofold.solve.unroll import replayed


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic(n=5, m=3):
    """lower = ½ uᵀA u − uᵀB w, so u(w) = A⁻¹B w; upper = ½‖u − c‖² + ½‖w‖²: the gradient is BᵀA⁻¹(u(w) − c) + w."""
    root = random(n, n)
    a = root @ root.T / n + torch.eye(n, dtype=torch.float64)
    b, c = random(n, m, seed=1), random(n, seed=2)
    problem = Bilevel(
        upper=lambda w, u: ((u - c) ** 2).sum() / 2 + (w**2).sum() / 2,
        lower=lambda w, u: u @ a @ u / 2 - u @ b @ w,
    )
    w = random(m, seed=3)
    solution = torch.linalg.solve(a, b @ w)
    step = 1 / torch.linalg.eigvalsh(a)[-1].item()
    return problem, w, solution, b.T @ torch.linalg.solve(a, solution - c) + w, step


def ridge(features=6):
    """A weight decay exp(w_j) for every feature: u(w) = (XᵀX/n + diag(exp w))⁻¹ Xᵀy/n, differentiated by autograd."""
    x, y, xv, yv = random(40, features), random(40, seed=1), random(30, features, seed=2), random(30, seed=3)
    problem = Bilevel(
        upper=lambda w, u: ((xv @ u - yv) ** 2).mean() / 2,
        lower=lambda w, u: ((x @ u - y) ** 2).mean() / 2 + (w.exp() * u**2).sum() / 2,
    )
    w = (random(features, seed=4) * 0.3).requires_grad_()
    solution = torch.linalg.solve(x.T @ x / 40 + w.exp().diag(), x.T @ y / 40)
    (gradient,) = torch.autograd.grad(problem.upper(w, solution), w)
    return problem, w.detach(), solution.detach(), gradient, 0.3


def central(problem, w, start, strategy, h=1e-5):
    """The gradient of the value that the strategy itself reports, by central differences."""
    value = lambda v: hypergradient(problem, v, start, strategy=strategy).value.item()  # noqa: E731
    units = torch.eye(w.numel(), dtype=w.dtype).reshape(-1, *w.shape)
    return torch.tensor([(value(w + h * e) - value(w - h * e)) / (2 * h) for e in units], dtype=w.dtype).reshape(
        w.shape
    )


def small_net():
    """Data reweighting with a two-layer net: the lower level trains it, the upper level weighs the samples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    function, parameters = as_function(net)
    x, t, xv, tv = random(12, 4), torch.arange(12) % 3, random(9, 4, seed=1), torch.arange(9) % 3
    problem = Bilevel(
        upper=lambda w, u: F.cross_entropy(function(u, xv), tv) + 0.01 * (w**2).sum(),
        lower=lambda w, u: (F.cross_entropy(function(u, x), t, reduction="none") * w.sigmoid()).mean(),
    )
    return problem, random(12, seed=5), parameters


ANY = Settled(relative=float("inf"))
PROBLEMS = {"quadratic": quadratic, "ridge": ridge}
AT_REST = {
    "unrolled": lambda s: Unrolled(600, GradientDescent(s)),
    "unrolled with kept states": lambda s: Unrolled(600, GradientDescent(s), keep_every=24),
    "unrolled momentum": lambda s: Unrolled(600, Momentum(s / 4, 0.8)),
    "truncated": lambda s: Truncated(1200, 600, GradientDescent(s)),
    "neumann": lambda s: Neumann(600, GradientDescent(s), s, terms=1000, tolerance=1e-9),
    "neumann by differences": lambda s: Neumann(600, GradientDescent(s), s, 1000, 1e-7, CentralDifference()),
    "conjugate gradient": lambda s: ConjugateGradient(600, GradientDescent(s), tolerance=1e-10),
    "conjugate gradient by differences": lambda s: ConjugateGradient(
        600, GradientDescent(s), tolerance=1e-7, cross=CentralDifference()
    ),
    "conjugate gradient after momentum": lambda s: ConjugateGradient(600, Momentum(s / 4, 0.8), tolerance=1e-10),
}


@pytest.mark.parametrize("strategy", AT_REST)
@pytest.mark.parametrize("name", PROBLEMS)
def test_strategies_that_reach_the_minimum_give_the_analytic_hypergradient(name, strategy):
    problem, w, solution, gradient, step = PROBLEMS[name]()
    found = hypergradient(problem, w, torch.zeros_like(solution), strategy=AT_REST[strategy](step))
    loose = 1e-5 if "differences" in strategy else 1e-7
    torch.testing.assert_close(found.lower_params, solution, rtol=loose, atol=loose)
    torch.testing.assert_close(found.gradient, gradient, rtol=loose, atol=loose)
    torch.testing.assert_close(found.value, problem.upper(w, solution), rtol=loose, atol=loose)


@pytest.mark.parametrize("name", PROBLEMS)
def test_implicit_strategies_trust_the_minimum_they_are_given(name):
    problem, w, solution, gradient, step = PROBLEMS[name]()
    for strategy in (
        Neumann(0, GradientDescent(step), step, terms=1000, tolerance=1e-9),
        ConjugateGradient(0, GradientDescent(step), tolerance=1e-10),
    ):
        torch.testing.assert_close(hypergradient(problem, w, solution, strategy=strategy).gradient, gradient)


EXACT_FOR_THEIR_STEPS = {
    "one step": OneStepUnrolled(0.1),
    "gradient descent": Unrolled(7, GradientDescent(0.1)),
    "kept states": Unrolled(7, GradientDescent(0.1), keep_every=3),
    "momentum": Unrolled(7, Momentum(0.1, 0.9), keep_every=2),
    "adam": Unrolled(7, Adam(0.05)),
    "adamw": Unrolled(5, AdamW(0.05, weight_decay=0.3)),
    "rmsprop": Unrolled(5, RMSprop(0.02, decay=0.8)),
    "zero steps": Unrolled(0, GradientDescent(0.1)),
}


@pytest.mark.parametrize("name", EXACT_FOR_THEIR_STEPS)
def test_unrolled_strategies_are_the_exact_derivative_of_the_value_they_report(name):
    problem, w, parameters = small_net()
    strategy = EXACT_FOR_THEIR_STEPS[name]
    found = hypergradient(problem, w, parameters, strategy=strategy)
    torch.testing.assert_close(found.gradient, central(problem, w, parameters, strategy), rtol=1e-6, atol=1e-9)


def test_replaying_equals_plain_autograd_through_the_same_steps():
    problem, w, parameters = small_net()
    for dynamics in (GradientDescent(0.3), Momentum(0.3), Adam(0.02)):
        leaf, state = w.clone().requires_grad_(), dynamics.begin(parameters)
        for k in range(9):
            state = dynamics.step(problem, k, leaf, state)
        value = problem.upper(leaf, dynamics.params(state))
        (expected,) = torch.autograd.grad(value, leaf)
        for keep_every, together in ((1, 1), (2, 1), (4, 1), (20, 1), (1, 2), (6, 3), (5, 2), (1, 20)):
            found = hypergradient(problem, w, parameters, strategy=Unrolled(9, dynamics, keep_every, together))
            torch.testing.assert_close(found.gradient, expected, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(found.value, value.detach(), rtol=1e-12, atol=0)
        for graph_bytes in (2000, 20000, float("inf")):
            way = Unrolled(9, dynamics, graph_bytes=graph_bytes)
            torch.testing.assert_close(hypergradient(problem, w, parameters, strategy=way).gradient, expected)


def test_dynamics_take_the_steps_of_torch_optimisers():
    problem, w, parameters = small_net()
    for dynamics, make in (
        (GradientDescent(0.3), lambda p: torch.optim.SGD(p, 0.3)),
        (Momentum(0.3, 0.8), lambda p: torch.optim.SGD(p, 0.3, momentum=0.8)),
        (Adam(0.02), lambda p: torch.optim.Adam(p, 0.02)),
        (AdamW(0.02, weight_decay=0.3), lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.3)),
        (RMSprop(0.02, decay=0.9), lambda p: torch.optim.RMSprop(p, 0.02, alpha=0.9)),
    ):
        theirs = {k: p.clone().requires_grad_() for k, p in parameters.items()}
        optimizer = make(list(theirs.values()))
        for _ in range(10):
            optimizer.zero_grad()
            problem.lower(w, theirs).backward()
            optimizer.step()
        ours = hypergradient(problem, w, parameters, strategy=FirstOrder(10, dynamics)).lower_params
        for one, other in zip(tensors(ours), tensors(theirs), strict=True):
            # Epsilon is inside the root here and outside there; the gradients are about 1e-3.
            close = 1e-12 if isinstance(dynamics, (GradientDescent, Momentum)) else 1e-5
            torch.testing.assert_close(one, other.detach(), rtol=close, atol=close)


def test_unrolled_agrees_with_torchopt_and_higher():
    problem, w, parameters = small_net()
    steps, rate = 12, 0.4
    ours = hypergradient(problem, w, parameters, strategy=Unrolled(steps, GradientDescent(rate))).gradient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import higher
        import torchopt
    net = nn.ParameterDict({k.replace(".", "_"): nn.Parameter(p.clone()) for k, p in parameters.items()})
    named = lambda module: {k: module[k.replace(".", "_")] for k in parameters}  # noqa: E731

    leaf = w.clone().requires_grad_()
    state = torchopt.MetaSGD(net, lr=rate)
    for _ in range(steps):
        state.step(problem.lower(leaf, named(net)))
    torch.testing.assert_close(torch.autograd.grad(problem.upper(leaf, named(net)), leaf)[0], ours)

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k.replace(".", "_"): nn.Parameter(p.clone()) for k, p in parameters.items()})

        def forward(self, w, loss):
            return loss(w, named(self.p))

    holder, leaf = Holder(), w.clone().requires_grad_()
    with higher.innerloop_ctx(holder, torch.optim.SGD(holder.parameters(), rate)) as (fast, optimizer):
        for _ in range(steps):
            optimizer.step(fast(leaf, problem.lower))
        torch.testing.assert_close(torch.autograd.grad(fast(leaf, problem.upper), leaf)[0], ours)


def test_one_unrolled_step_exactly_equals_its_central_difference_within_a_thousandth():
    problem, w, parameters = small_net()
    exact = hypergradient(problem, w, parameters, strategy=OneStepUnrolled(0.1)).gradient
    unrolled = hypergradient(problem, w, parameters, strategy=Unrolled(1, GradientDescent(0.1))).gradient
    torch.testing.assert_close(exact, unrolled, rtol=1e-12, atol=1e-14)
    single = lambda t: {k: p.float() for k, p in t.items()} if isinstance(t, dict) else t.float()  # noqa: E731
    for convert in (lambda t: t, single):
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(convert(w).dtype)
        function, _ = as_function(net)
        x, t = convert(random(12, 4)), torch.arange(12) % 3
        searched = Bilevel(  # a search for loss weights: the upper loss does not see w
            upper=lambda w, u: F.cross_entropy(function(u, x.flip(0)), t),  # noqa: B023
            lower=lambda w, u: (F.cross_entropy(function(u, x), t, reduction="none") * w.sigmoid()).mean(),  # noqa: B023
        )
        one = hypergradient(searched, convert(w), convert(parameters), strategy=OneStepUnrolled(0.1))
        other = hypergradient(
            searched, convert(w), convert(parameters), strategy=OneStepUnrolled(0.1, CentralDifference())
        )
        assert norm(minus(one.gradient, other.gradient)) <= 1e-3 * norm(one.gradient)
        assert other.cost.lower_evaluations == 3  # the step, and two gradients in w
        assert (one.cost.lower_evaluations, one.cost.products) == (1, 1)


def test_truncation_bias_shrinks_at_least_like_the_contraction_factor():
    problem, w, solution, gradient, step = quadratic()
    hessian = torch.autograd.functional.hessian(lambda u: problem.lower(w, u), solution)
    factor = 1 - step * torch.linalg.eigvalsh(hessian)[0]

    def bias(last):
        found = hypergradient(problem, w, solution, strategy=Truncated(40, last, GradientDescent(step)))
        return norm(found.gradient - gradient)

    assert 0 < bias(12) < factor**4 * bias(8) * 1.05 < factor**8 * bias(4) * 1.1
    assert bias(4) > 1e-2


def test_trees_of_tuples_and_dicts_serve_on_both_levels():
    lower = lambda w, u: ((u["a"] - w[0]) ** 2).sum() / 2 + ((u["b"][0] - w[1]["x"] * w[0].sum()) ** 2).sum() / 2  # noqa: E731
    problem = Bilevel(upper=lambda w, u: (u["a"] ** 2).sum() / 2 + u["b"][0].sum(), lower=lower)
    w = (random(3), {"x": random(2, seed=1)})
    start = {"a": torch.zeros(3, dtype=torch.float64), "b": (torch.zeros(2, dtype=torch.float64),)}
    expected = (w[0] + w[1]["x"].sum(), {"x": w[0].sum().expand(2)})
    for strategy in (
        Unrolled(80, GradientDescent(0.5)),
        Neumann(80, GradientDescent(0.5), 0.5, tolerance=1e-10),
        ConjugateGradient(80, GradientDescent(0.5), tolerance=1e-8),
    ):
        found = hypergradient(problem, w, start, strategy=strategy).gradient
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1]["x"], expected[1]["x"])


def test_a_lower_level_may_be_an_operator_instead_of_a_loss():
    """T(u; w) = a proximal-gradient step on ½(u − w)², whose fixed point is w: the same hypergradient as the loss's."""
    make = lambda w: ProximalGradient(lambda u: u - w, smoothness=1.0, fraction=0.25)  # noqa: E731
    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=None)
    w = random(1, 4)
    found = hypergradient(problem, w, torch.zeros_like(w), strategy=Unrolled(60, FixedPointSteps(make)))
    torch.testing.assert_close(found.gradient, 2 * w)
    with pytest.raises(SolveError, match="FixedPointSteps does not come to rest at one"):
        hypergradient(problem, w, w, strategy=Neumann(5, FixedPointSteps(make), 0.5))
    with pytest.raises(SolveError, match="lower=None"):
        hypergradient(problem, w, w, strategy=Unrolled(5, GradientDescent(0.5)))


@pytest.mark.parametrize("solver", [KrasnoselskiiMann(1.0, 500, 1e-12), Anderson(tolerance=1e-12)])
def test_the_implicit_gradient_of_a_lower_operator_is_that_of_its_fixed_point(solver):
    """T(u; w) = tanh(u A) / 2 + w: against unrolling until nothing moves, and against a phantom gradient's bias."""
    a, c = random(4, 4) / 4, random(3, 4, seed=2)
    make = lambda w: lambda u: torch.tanh(u @ a) / 2 + w  # noqa: E731
    problem = Bilevel(upper=lambda w, u: ((u - c) ** 2).sum() + (w**2).sum(), lower=None)
    w, start = random(3, 4, seed=1), torch.zeros(3, 4, dtype=torch.float64)
    steps = FixedPointSteps(make)
    way = ThroughFixedPoint(steps, solver, Implicit(NeumannSeries(500, 1e-12)))
    found = hypergradient(problem, w, start, strategy=way)
    expected = hypergradient(problem, w, start, strategy=Unrolled(80, steps))
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.lower_params, expected.lower_params, rtol=1e-9, atol=1e-9)
    phantom = ThroughFixedPoint(steps, solver, TruncatedAdjoint(1))
    bias = norm(hypergradient(problem, w, start, strategy=phantom).gradient - expected.gradient)
    assert 1e-2 < bias / norm(expected.gradient) < 0.5


def test_a_lower_operator_without_a_fixed_point_or_without_w_is_refused():
    problem, one = Bilevel(upper=lambda w, u: (u**2).sum(), lower=None), torch.ones(2, 1)
    with pytest.raises(NotConverged):
        hypergradient(problem, one, one, strategy=ThroughFixedPoint(FixedPointSteps(lambda w: lambda u: 2 * u + w)))
    with pytest.raises(SolveError, match="no step of the lower level depends on the upper parameters"):
        hypergradient(problem, one, one, strategy=ThroughFixedPoint(FixedPointSteps(lambda w: lambda u: u / 2 + 1)))
    with pytest.raises(SolveError, match=r"expected FixedPointSteps.*got a GradientDescent"):
        ThroughFixedPoint(GradientDescent(0.1))


def test_adamw_with_decay_is_refused_by_implicit_strategies_and_without_is_not():
    problem, w, solution, gradient, _ = ridge()
    with pytest.raises(SolveError, match="AdamW does not come to rest at one"):
        hypergradient(problem, w, solution, strategy=ConjugateGradient(0, AdamW(0.1)))
    found = hypergradient(problem, w, solution, strategy=ConjugateGradient(0, AdamW(0.1, weight_decay=0.0)))
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-3, atol=1e-4)


# What is refused, and why.


def loss_weight_search():
    """The upper loss judges u alone; w weighs the lower losses: what a search for a loss looks like."""
    return Bilevel(
        upper=lambda w, u: ((u - 1) ** 2).sum(),
        lower=lambda w, u: w[0] * (u**2).sum() + w[1] * ((u - 2) ** 2).sum(),
    )


def test_a_first_order_search_for_loss_weights_is_refused_because_it_would_never_move():
    w, u = torch.tensor([1.0, 1.0]), torch.ones(3)
    with pytest.raises(SolveError, match=r"identically zero.*OneStepUnrolled"):
        hypergradient(loss_weight_search(), w, u, strategy=FirstOrder())
    moved = hypergradient(loss_weight_search(), w, 0 * u, strategy=OneStepUnrolled(0.1)).gradient
    assert moved.abs().max() > 0.1


def test_first_order_is_the_partial_derivative_and_unrolled_over_zero_steps():
    problem, w, parameters = small_net()
    first = hypergradient(problem, w, parameters, strategy=FirstOrder()).gradient
    torch.testing.assert_close(first, 0.02 * w)
    none = hypergradient(problem, w, parameters, strategy=Unrolled(0, GradientDescent(0.1))).gradient
    torch.testing.assert_close(first, none)


def counter_example():
    """The lower level sees y₁ alone, so its minimisers are a line, and the upper loss picks the point on it."""
    return Bilevel(
        upper=lambda x, y: (x - y[1]) ** 2 / 2 + (y[0] - 1) ** 2 / 2,
        lower=lambda x, y: y[0] ** 2 / 2 - x * y[0],
    )


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (Neumann(50, GradientDescent(0.5), 0.5), "no contraction"),
        (Neumann(50, GradientDescent(0.5), 0.5, tolerance=1.0), "no contraction"),
        (ConjugateGradient(50, GradientDescent(0.5)), r"not positive definite|stalled"),
    ],
)
def test_implicit_strategies_refuse_a_lower_level_without_a_unique_minimum(strategy, reason):
    with pytest.raises(SolveError, match=reason):
        hypergradient(counter_example(), torch.tensor(2.0), torch.zeros(2), strategy=strategy)


def test_neumann_refuses_a_step_beyond_the_curvature_and_a_remainder_it_was_not_allowed():
    problem, w, solution, _, step = quadratic()
    with pytest.raises(SolveError, match=r"estimated factor 1\.\d+, must be below 1"):
        hypergradient(problem, w, solution, strategy=Neumann(0, GradientDescent(step), 3 * step))
    with pytest.raises(SolveError, match="take more terms"):
        hypergradient(problem, w, solution, strategy=Neumann(0, GradientDescent(step), step, terms=3, tolerance=1e-9))
    accepted = hypergradient(problem, w, solution, strategy=Neumann(0, GradientDescent(step), step, 3, tolerance=1.0))
    assert 0 < accepted.cost.residual < 1
    same = hypergradient(problem, w, solution, strategy=Truncated(4, 4, GradientDescent(step)))
    torch.testing.assert_close(accepted.gradient, same.gradient)  # three terms and the first: four steps at the minimum


def test_conjugate_gradients_refuse_a_saddle():
    problem = Bilevel(upper=lambda w, u: u.sum() * w, lower=lambda w, u: (u[0] ** 2 - u[1] ** 2) / 2 + w * u[1])
    at_rest = torch.tensor([0.0, 1.0])
    with pytest.raises(SolveError, match="not positive definite"):
        hypergradient(problem, torch.tensor(1.0), at_rest, strategy=ConjugateGradient(0, GradientDescent(0.1)))


class Batched(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.layer(x))


@pytest.mark.parametrize("strategy", [OneStepUnrolled(0.1), Unrolled(3, GradientDescent(0.1)), FirstOrder()])
def test_batch_norm_in_training_mode_is_refused_even_when_the_losses_hide_it(strategy):
    net, x = Batched(), torch.randn(8, 3)
    parameters = {k: p.detach() for k, p in net.named_parameters()}
    loss = lambda w, u: w * torch.func.functional_call(net, u, (x,)).square().mean()  # noqa: E731
    with pytest.raises(SolveError, match=r"BatchNorm in training mode.*running statistics"):
        hypergradient(Bilevel(loss, loss), torch.tensor(1.0), parameters, strategy=strategy)
    net.eval()
    hypergradient(Bilevel(loss, loss), torch.tensor(1.0), parameters, strategy=strategy)


def test_dropout_in_a_replayed_lower_loss_is_noticed():
    problem = Bilevel(upper=lambda w, u: u.sum(), lower=lambda w, u: (F.dropout(u * w, 0.5) ** 2).sum())
    with pytest.raises(SolveError, match="draws random numbers and is evaluated more than once"):
        hypergradient(problem, torch.ones(200), torch.ones(200), strategy=Unrolled(4, GradientDescent(0.1)))


@pytest.mark.parametrize("strategy", [Unrolled(99, GradientDescent(9.0)), ConjugateGradient(99, GradientDescent(9.0))])
def test_a_lower_level_that_diverges_is_named_as_such(strategy):
    problem = Bilevel(upper=lambda w, u: (u**2).sum(), lower=lambda w, u: (w * u**2).sum())
    with pytest.raises(SolveError, match="diverged"):
        hypergradient(problem, torch.ones(3), torch.ones(3), strategy=strategy)


def test_second_derivatives_of_a_replay_are_refused():
    w = torch.tensor(2.0, requires_grad=True)
    u = replayed(lambda k, w, u: w * u, w, torch.tensor(1.0), steps=3)
    with pytest.raises(SolveError, match="differentiated again"):
        torch.autograd.grad(u, w, create_graph=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Truncated(3, 4, GradientDescent(0.1)),
        lambda: hypergradient(loss_weight_search(), torch.ones(2), torch.ones(1), strategy=FirstOrder(3)),
        lambda: replayed(lambda k, w, u: u, torch.ones(1), torch.ones(1), steps=2, keep_every=0),
    ],
)
def test_settings_without_meaning_are_refused(make):
    with pytest.raises(SolveError):
        make()


# What it costs, and what it leaves alone.


@pytest.mark.parametrize(
    ("strategy", "lower", "upper", "products"),
    [
        (FirstOrder(5, GradientDescent(0.1)), 5, 1, 0),
        (OneStepUnrolled(0.1), 1, 1, 1),
        (OneStepUnrolled(0.1, CentralDifference()), 3, 1, 0),
        (Unrolled(6, GradientDescent(0.1)), 12, 1, 6),
        (Unrolled(6, GradientDescent(0.1), keep_every=3), 16, 1, 6),
        (Unrolled(12, GradientDescent(0.1), keep_every=4, together=2), 30, 1, 12),  # all twice, every other group again
        (Unrolled(12, GradientDescent(0.1), keep_every=3, together=2), 30, 1, 12),
        (Unrolled(12, GradientDescent(0.1), keep_every=2, together=4), 24, 1, 12),
        (Truncated(6, 2, GradientDescent(0.1)), 8, 1, 2),
        (Neumann(6, GradientDescent(0.1), 0.1, 4, 1.0, settled=ANY), 7, 1, 5),
        (Neumann(6, GradientDescent(0.1), 0.1, 4, 1.0, CentralDifference(), settled=ANY), 6 + 1 + 2 * 4 + 2, 1, 0),
    ],
)
def test_the_reported_cost_is_what_was_evaluated(strategy, lower, upper, products):
    problem, w, parameters = small_net()
    counts = {"lower": 0, "upper": 0}

    def counted(name, loss):
        def wrapped(*args):
            counts[name] += 1
            return loss(*args)

        return wrapped

    watched = Bilevel(counted("upper", problem.upper), counted("lower", problem.lower))
    cost = hypergradient(watched, w, parameters, strategy=strategy).cost
    assert counts == {"lower": lower, "upper": upper}
    assert (cost.lower_evaluations, cost.upper_evaluations, cost.products) == (lower, upper, products)


def test_nothing_given_is_changed_and_nothing_returned_holds_a_graph():
    problem, w, parameters = small_net()
    before = (w.clone(), {k: p.clone() for k, p in parameters.items()})
    implicit = Neumann(3, GradientDescent(0.1), 0.1, 3, 1.0, settled=ANY)
    for strategy in (OneStepUnrolled(0.1), Unrolled(4, Adam()), implicit):
        found = hypergradient(problem, w, parameters, strategy=strategy)
        assert not any(t.requires_grad for t in tensors(found[:3]))
    assert torch.equal(w, before[0])
    assert all(torch.equal(parameters[k], before[1][k]) for k in parameters)


def test_it_works_inside_no_grad_and_on_parameters_that_ask_for_gradients():
    problem, w, solution, gradient, step = quadratic()
    leaf = w.clone().requires_grad_()
    with torch.no_grad():
        found = hypergradient(problem, leaf, solution, strategy=Unrolled(300, GradientDescent(step)))
    torch.testing.assert_close(found.gradient, gradient)
    assert leaf.grad is None


def test_adam_unrolls_through_gradients_that_are_exactly_zero():
    problem = Bilevel(upper=lambda w, u: (u**2).sum() * w.sum(), lower=lambda w, u: (w * u**2).sum())
    found = hypergradient(problem, torch.ones(3), torch.tensor([0.0, 1.0, 2.0]), strategy=Unrolled(5, Adam(0.1)))
    assert found.gradient.isfinite().all()


def test_exact_products_are_the_hessian_and_the_mixed_derivative():

    problem, w, solution, _, _ = ridge()
    v = random(6, seed=9)
    hessian = torch.autograd.functional.hessian(lambda u: problem.lower(w, u), solution)
    jacobian = torch.autograd.functional.jacobian(
        lambda w: torch.autograd.grad(problem.lower(w, s := solution.clone().requires_grad_()), s, create_graph=True)[
            0
        ],
        w,
    )
    for cross, tolerance in ((Exact(), 1e-10), (CentralDifference(), 1e-6)):
        products = cross.at(Evaluator(problem), w, solution)
        torch.testing.assert_close(products.hessian(v), hessian @ v, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(products.mixed(v)[0], jacobian.T @ v, rtol=tolerance, atol=tolerance)
