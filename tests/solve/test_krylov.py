"""Linear solvers and damped implicit gradients, against dense linear algebra and against the moved stationary point."""

import pytest
import torch
import torch.nn.functional as F
from quadratics import quadratic, random
from torch import nn
from torch.autograd.functional import hessian, jacobian

from twofold.solve import Bilevel, CentralDifference, ConjugateGradient, FixedPointSteps, GradientDescent, hypergradient
from twofold.solve.damped import CG, GMRES, Damped, FullHessian, GaussNewton, MinRes, NystromInverse
from twofold.solve.implicit import Settled
from twofold.solve.krylov import gmres, minres, nystrom, refined
from twofold.solve.params import SolveError

ANYWHERE = Settled(relative=float("inf"))
EYE = torch.eye(12, dtype=torch.float64)


def symmetric(values):
    """A symmetric matrix with the eigenvalues given."""
    turn = torch.linalg.qr(random(len(values), len(values), seed=4)).Q
    return turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ turn.T


INDEFINITE = symmetric([-5, -2, -1, -0.5, 0.3, 0.7, 1, 2, 3, 5, 8, 13.0])
DEFINITE = symmetric([0.1, 0.2, 0.5, 0.9, 1.3, 2, 3, 5, 8, 13, 21, 34.0])
UNSYMMETRIC = DEFINITE + 3 * random(12, 12, seed=5)


@pytest.mark.parametrize("matrix", [INDEFINITE, DEFINITE], ids=["indefinite", "definite"])
def test_minres_solves_symmetric_matrices_and_its_residual_is_the_true_one(matrix):
    b = random(12)
    found = minres(lambda x: matrix @ x, b, steps=40, tolerance=1e-9)
    torch.testing.assert_close(found.value, torch.linalg.solve(matrix, b))
    torch.testing.assert_close(found.residual, (b - matrix @ found.value).norm() / b.norm(), rtol=1e-3, atol=1e-14)
    assert found.residual < 1e-9
    assert found.steps <= 15


def test_minres_minimises_the_residual_at_every_step():
    """Over the Krylov space of k vectors, found densely."""
    b = random(12)
    for k in range(1, 10):
        space = torch.stack([torch.linalg.matrix_power(INDEFINITE, i) @ b for i in range(k)], 1)
        space = torch.linalg.qr(space).Q
        best = (INDEFINITE @ space @ torch.linalg.lstsq(INDEFINITE @ space, b[:, None]).solution - b[:, None]).norm()
        found = minres(lambda x: INDEFINITE @ x, b, steps=k, tolerance=0.0)
        torch.testing.assert_close(found.residual * b.norm(), best, rtol=1e-5, atol=1e-8)


def test_minres_on_a_singular_matrix_solves_what_can_be_solved_and_reports_what_cannot():
    matrix = symmetric([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, -8.0])
    inside = matrix @ random(12)
    assert minres(lambda x: matrix @ x, inside, steps=40, tolerance=1e-9).residual < 1e-9
    b = random(12)
    outside = (b - matrix @ torch.linalg.lstsq(matrix, b[:, None], driver="gelsd").solution[:, 0]).norm() / b.norm()
    found = minres(lambda x: matrix @ x, b, steps=9, tolerance=1e-9)
    assert found.residual > 0.9 * outside


@pytest.mark.parametrize("matrix", [INDEFINITE, DEFINITE, UNSYMMETRIC], ids=["indefinite", "definite", "unsymmetric"])
def test_gmres_solves_any_matrix(matrix):
    b = random(12)
    found = gmres(lambda x: matrix @ x, b, steps=40, tolerance=1e-9)
    torch.testing.assert_close(found.value, torch.linalg.solve(matrix, b))
    torch.testing.assert_close(found.residual, (b - matrix @ found.value).norm() / b.norm(), rtol=1e-3, atol=1e-14)
    assert found.steps <= 12


def test_gmres_with_restarts_needs_more_steps_and_gets_there():
    b = random(12)
    found = gmres(lambda x: DEFINITE @ x, b, steps=500, tolerance=1e-8, restart=6)
    torch.testing.assert_close(found.value, torch.linalg.solve(DEFINITE, b), rtol=1e-5, atol=1e-5)
    assert found.steps > 12


def test_gmres_that_gains_nothing_stops_and_says_so():
    rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    found = gmres(
        lambda x: rotation @ x, torch.tensor([1.0, 0.0], dtype=torch.float64), steps=50, tolerance=1e-6, restart=1
    )
    assert found.residual == 1.0
    assert found.steps < 50


def test_solvers_take_trees_and_zero():
    def apply(x):
        moved = INDEFINITE @ torch.cat([x["a"].flatten(), x["b"][0]])
        return {"a": moved[:8].reshape(2, 4), "b": (moved[8:],)}

    flat = random(12)
    b = {"a": flat[:8].reshape(2, 4), "b": (flat[8:],)}
    truth = torch.linalg.solve(INDEFINITE, flat)
    for found in (minres(apply, b, steps=40, tolerance=1e-9), gmres(apply, b, steps=40, tolerance=1e-9)):
        torch.testing.assert_close(found.value["b"][0], truth[8:])
    for solver in (minres, gmres):
        found = solver(lambda x: INDEFINITE @ x, torch.zeros(12, dtype=torch.float64), steps=9, tolerance=1e-6)
        assert found.residual == 0
        assert not found.value.any()


def test_a_full_rank_nystrom_approximation_is_the_matrix_itself():
    found = nystrom(lambda x: DEFINITE @ x, random(12), rank=12, ridge=0.1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.basis.T @ torch.diag(found.values) @ found.basis, DEFINITE, rtol=1e-6, atol=1e-6)
    b = random(12)
    torch.testing.assert_close(found.solve(b), torch.linalg.solve(DEFINITE + 0.1 * EYE, b), rtol=1e-6, atol=1e-6)


def test_a_low_rank_matrix_is_found_with_its_rank_and_a_nystrom_approximation_never_exceeds_the_matrix():
    low = symmetric([0] * 8 + [1, 10, 20, 30.0])
    found = nystrom(lambda x: low @ x, random(12), rank=5, ridge=1e-3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.basis.T @ torch.diag(found.values) @ found.basis, low, rtol=1e-6, atol=1e-6)
    part = nystrom(lambda x: DEFINITE @ x, random(12), rank=4, ridge=1e-3, generator=torch.Generator().manual_seed(0))
    rest = DEFINITE - part.basis.T @ torch.diag(part.values) @ part.basis
    assert torch.linalg.eigvalsh(rest)[0] > -1e-8


def test_a_nystrom_preconditioner_saves_steps():
    matrix = symmetric([1] * 7 + [1e2, 1e3, 1e4, 1e5, 1e6])
    apply = lambda x: matrix @ x  # noqa: E731
    b, draw = random(12), torch.Generator().manual_seed(0)
    good = refined(apply, b, nystrom(apply, b, rank=6, ridge=1.0, generator=draw), steps=50, tolerance=1e-8)
    poor = refined(apply, b, nystrom(apply, b, rank=1, ridge=1.0, generator=draw), steps=50, tolerance=1e-8)
    assert good.residual < 1e-8
    assert good.steps < poor.steps


Q = quadratic()
STEP = 0.9 / torch.linalg.eigvalsh(Q.a)[-1].item()
W, ZERO = random(3, seed=3), torch.zeros(5, dtype=torch.float64)
REACH = 300, GradientDescent(STEP)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("linear", [CG(tolerance=1e-9), MinRes(tolerance=1e-9), GMRES(tolerance=1e-9)], ids=type)
def test_every_solver_gives_the_closed_form_with_and_without_a_ridge(linear, ridge):
    found = hypergradient(Q.problem, W, ZERO, strategy=Damped(*REACH, linear, ridge=ridge))
    u = Q.answer(W)
    expected = W + Q.b.T @ torch.linalg.solve(Q.a + ridge * torch.eye(5, dtype=torch.float64), u - Q.c)
    torch.testing.assert_close(found.gradient, expected)
    torch.testing.assert_close(found.lower_params, u)
    assert found.cost.residual < 1e-9


def test_nystrom_gives_it_directly_at_full_rank_and_by_refinement_at_a_low_one():
    expected = W + Q.b.T @ torch.linalg.solve(Q.a + 0.7 * torch.eye(5, dtype=torch.float64), Q.answer(W) - Q.c)
    for linear in (NystromInverse(5, iterations=0, tolerance=1e-6), NystromInverse(2, tolerance=1e-9)):
        found = hypergradient(Q.problem, W, ZERO, strategy=Damped(*REACH, linear, ridge=0.7))
        torch.testing.assert_close(found.gradient, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(SolveError, match="NystromInverse left"):
        hypergradient(Q.problem, W, ZERO, strategy=Damped(*REACH, NystromInverse(1, iterations=0), ridge=0.1))
    with pytest.raises(SolveError, match="ridge > 0"):
        hypergradient(Q.problem, W, ZERO, strategy=Damped(*REACH, NystromInverse(2)))


def test_products_by_differences_go_with_gmres():
    way = Damped(*REACH, GMRES(tolerance=1e-6), cross=CentralDifference())
    found = hypergradient(Q.problem, W, ZERO, strategy=way)
    torch.testing.assert_close(found.gradient, Q.gradient(W), rtol=1e-5, atol=1e-5)


class Net:
    """Sample weights of a small network with weight decay: upper parameters w `(samples,)`, lower ones flat `(22,)`."""

    shapes = ((4, 2), (4,), (2, 4), (2,))

    def __init__(self, decay=0.05):
        self.x, self.t = random(10, 2), torch.arange(10) % 2
        self.xv, self.tv = random(8, 2, seed=1), torch.arange(8) % 2
        self.decay, self.w = decay, random(10, seed=5)
        self.problem = Bilevel(
            upper=lambda w, u: F.cross_entropy(self.logits(u, self.xv), self.tv) + 0.01 * (w**2).sum(),
            lower=lambda w, u: self.fit(w, self.logits(u, self.x)) + self.rest(w, u),
        )

    def logits(self, u, x):
        a, b, c, d = (p.reshape(s) for p, s in zip(u.split([8, 4, 8, 2]), self.shapes, strict=True))
        return (x @ a.T + b).tanh() @ c.T + d

    def fit(self, w, logits):
        return (F.cross_entropy(logits, self.t, reduction="none") * w.sigmoid()).mean()

    def rest(self, w, u):
        return self.decay * (u**2).sum() / 2

    def gauss_newton(self):
        return GaussNewton(lambda w, u: self.logits(u, self.x), self.fit, self.rest)

    def stationary(self, w, u, steps=60):
        """Newton's method: to the next stationary point, whatever its kind."""
        for _ in range(steps):
            g, h = jacobian(lambda v: self.problem.lower(w, v), u), hessian(lambda v: self.problem.lower(w, v), u)
            u = u - torch.linalg.solve(h, g)
        assert jacobian(lambda v: self.problem.lower(w, v), u).norm() < 1e-12
        return u

    def trained(self, steps):
        way = GradientDescent(0.5)
        u = 0.5 * random(22, seed=6)
        for k in range(steps):
            u = way.step(self.problem, k, self.w, u).detach()
        return u

    def moved_gradient(self, u, directions, h=1e-5):
        """The first entries of d/dw upper(w, u(w)) by central differences of the stationary point itself."""
        found = []
        for e in torch.eye(10, dtype=torch.float64)[:directions]:
            ends = [self.problem.upper(w, self.stationary(w, u, 3)) for w in (self.w + h * e, self.w - h * e)]
            found.append((ends[0] - ends[1]) / (2 * h))
        return torch.stack(found)


@pytest.mark.parametrize("seed", [20, 23])
def test_at_a_saddle_of_a_network_minres_and_gmres_are_exact(seed):
    net = Net(decay=0.01)
    u = 0.5 * random(22, seed=seed)
    for _ in range(20):  # Newton's method with short steps runs into saddle points
        g = jacobian(lambda v: net.problem.lower(net.w, v), u)
        h = hessian(lambda v: net.problem.lower(net.w, v), u)
        step = torch.linalg.solve(h, g)
        u = u - step * min(1.0, 1.0 / float(step.norm()))
    assert g.norm() < 1e-12
    assert torch.linalg.eigvalsh(h)[0] < -0.05
    truth = net.moved_gradient(u, 3)
    for linear in (MinRes(tolerance=1e-9), GMRES(tolerance=1e-9)):
        found = hypergradient(net.problem, net.w, u, strategy=Damped(0, GradientDescent(0.1), linear))
        torch.testing.assert_close(found.gradient[:3], truth, rtol=1e-4, atol=1e-7)
    if seed == 23:  # here the negative direction turns up in the search space of conjugate gradients
        with pytest.raises(SolveError, match="curvature"):
            hypergradient(net.problem, net.w, u, strategy=ConjugateGradient(0, GradientDescent(0.1)))


def test_in_the_middle_of_training_gauss_newton_works_where_conjugate_gradients_are_refused():
    """And its direction agrees with the hypergradient of the settled network better than leaving the response out."""
    net = Net()
    u = net.trained(12)
    with pytest.raises(SolveError, match="curvature"):
        hypergradient(net.problem, net.w, u, strategy=ConjugateGradient(0, GradientDescent(0.5)))
    with pytest.raises(SolveError, match="not settled after"):
        hypergradient(net.problem, net.w, u, strategy=Damped(0, GradientDescent(0.5), curvature=net.gauss_newton()))
    way = Damped(0, GradientDescent(0.5), curvature=net.gauss_newton(), settled=ANYWHERE)
    early = hypergradient(net.problem, net.w, u, strategy=way).gradient
    rest = net.stationary(net.w, net.trained(1500))
    truth = net.moved_gradient(rest, 10)
    direct = 0.02 * net.w
    cosine = F.cosine_similarity(early - direct, truth - direct, dim=0)
    assert cosine > 0.5


def test_the_gauss_newton_product_is_the_dense_one_and_never_indefinite():
    net = Net()
    u = net.trained(5)
    seen = []

    class Spy(CG):
        def solve(self, apply, b, ridge):
            seen.append(torch.stack([apply(e) for e in torch.eye(22, dtype=torch.float64)]))
            return super().solve(apply, b, ridge)

    hypergradient(
        net.problem, net.w, u, strategy=Damped(0, GradientDescent(0.1), Spy(), net.gauss_newton(), settled=ANYWHERE)
    )
    j = jacobian(lambda v: net.logits(v, net.x), u).reshape(20, 22)
    inner = hessian(lambda y: net.fit(net.w, y), net.logits(u, net.x)).reshape(20, 20)
    dense = j.T @ inner @ j + net.decay * torch.eye(22, dtype=torch.float64)
    torch.testing.assert_close(seen[0], dense)
    assert torch.linalg.eigvalsh(hessian(lambda v: net.problem.lower(net.w, v), u))[0] < -0.01
    assert torch.linalg.eigvalsh(dense)[0] > 0


def test_for_a_linear_model_gauss_newton_is_the_hessian():
    x, y = random(20, 5), random(20, seed=1)
    fit = lambda w, out: ((out - y) ** 2 * w.exp()[0]).mean()  # noqa: E731
    rest = lambda w, u: (w[1:].exp() * u[:2] ** 2).sum()  # noqa: E731
    lower = lambda w, u: fit(w, x @ u) + rest(w, u)  # noqa: E731
    problem = Bilevel(lambda w, u: ((u - 1) ** 2).sum(), lower)
    one, other = (
        hypergradient(problem, W, ZERO, strategy=Damped(300, GradientDescent(0.1), CG(tolerance=1e-9), curvature))
        for curvature in (FullHessian(), GaussNewton(lambda w, u: x @ u, fit, rest))
    )
    torch.testing.assert_close(one.gradient, other.gradient)


def test_a_gauss_newton_matrix_of_another_problem_is_refused():
    net = Net()
    wrong = GaussNewton(lambda w, u: net.logits(u, net.x), net.fit)  # without the weight decay
    way = Damped(0, GradientDescent(0.1), curvature=wrong, settled=ANYWHERE)
    with pytest.raises(SolveError, match="another problem"):
        hypergradient(net.problem, net.w, net.trained(5), strategy=way)


def test_a_stalled_solve_and_settings_without_sense_are_refused():
    with pytest.raises(SolveError, match="MinRes left a relative residual"):
        hypergradient(Q.problem, W, ZERO, strategy=Damped(*REACH, MinRes(iterations=2)))
    with pytest.raises(SolveError, match="ridge"):
        Damped(*REACH, ridge=-1.0)
    with pytest.raises(SolveError, match="FixedPointSteps"):
        hypergradient(Q.problem, W, ZERO, strategy=Damped(1, FixedPointSteps(lambda w: lambda u: u / 2)))
    with pytest.raises(SolveError, match="rank"):
        nystrom(lambda x: x, W, rank=4, ridge=1.0, generator=torch.Generator())
    with pytest.raises(SolveError, match="restart"):
        gmres(lambda x: x, W, steps=4, tolerance=1e-3, restart=0)


def test_the_network_of_a_user_needs_no_more_than_its_outputs_and_its_loss():
    """A module, cross-entropy, weight decay in float32: settled a little, then Gauss-Newton with Nyström."""
    from twofold.solve import as_function

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    function, start = as_function(net)
    x, t, xv, tv = torch.randn(24, 6), torch.arange(24) % 3, torch.randn(15, 6), torch.arange(15) % 3
    fit = lambda w, y: (F.cross_entropy(y, t, reduction="none") * w.sigmoid()).mean()  # noqa: E731
    decay = lambda w, u: 1e-3 * sum((p**2).sum() for p in u.values())  # noqa: E731
    problem = Bilevel(
        lambda w, u: F.cross_entropy(function(u, xv), tv), lambda w, u: fit(w, function(u, x)) + decay(w, u)
    )
    product = GaussNewton(lambda w, u: function(u, x), fit, decay)
    w = torch.zeros(24)
    way = Damped(100, GradientDescent(0.3), NystromInverse(20, tolerance=1e-3), product, 1e-2, settled=ANYWHERE)
    dense = Damped(100, GradientDescent(0.3), CG(500, tolerance=1e-5), product, 1e-2, settled=ANYWHERE)
    one, other = (hypergradient(problem, w, start, strategy=s).gradient for s in (way, dense))
    torch.testing.assert_close(one, other, rtol=0.02, atol=1e-5)
