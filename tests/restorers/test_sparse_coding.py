from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twofold.contracts import ImageError
from twofold.restorers.sparse_coding import LearnedALM, Orthogonal, PatchCoding, SparseModel, joined, patches_of
from twofold.solve import (
    Euclidean,
    KrasnoselskiiMann,
    LinearisedADMM,
    Operator,
    ProximalGradient,
    State,
    matrix_map,
    stretch,
)
from twofold.solve.linear import metric_norm
from twofold.solve.params import minus, norm


def dictionary(m: int = 12, n: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(m, n, generator=generator, dtype=torch.float64), dim=0)


def signals(A: Tensor, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(count, A.shape[1], generator=generator).double()
    codes = codes * (torch.rand(codes.shape, generator=generator) < 0.15)
    return codes @ A.mT + 0.1 * torch.randn(count, A.shape[0], generator=generator).double()


def scrambled(coder: LearnedALM) -> LearnedALM:
    """As training may leave it: everything but the model is moved."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        coder.log_scale += 0.2 * torch.randn(coder.log_scale.shape, generator=generator).double()
        coder.log_error_scale += 0.4
        coder.raw_amount -= 0.7
    return coder


def iterated(T: Operator, u: State, steps: int) -> State:
    with torch.no_grad():
        for _ in range(steps):
            u = T(u)
    return u


@pytest.mark.parametrize(("curvature", "slack"), [(4.0, 1e-4), (math.inf, 3e-2)])  # a linear program ends slowly
def test_every_method_with_a_guarantee_comes_to_the_same_objective(curvature: float, slack: float) -> None:
    model = SparseModel(dictionary(), weights=0.3, curvature=curvature)
    A, x = model.dictionary, signals(model.dictionary)
    zero = x.new_zeros(len(x), A.shape[1])
    admm = LinearisedADMM(model.prox_code, model.prox_error, matrix_map(A), x)
    coders = LearnedALM(model), scrambled(LearnedALM(model))
    codes = [coder.code(iterated(coder.operator(x), coder.start(x), 700)) for coder in coders]
    codes.append(iterated(admm, (zero, 0 * x, 0 * x), 700)[0])
    if math.isfinite(curvature):
        smoothness = curvature * torch.linalg.matrix_norm(A, 2) ** 2
        ista = ProximalGradient(lambda z: -model.descent(z, x), smoothness, prox=model.prox_code)
        codes.append(iterated(ista, zero, 700))
    found = [model.objective(code, x) for code in codes]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=slack, atol=0)


def test_every_solution_lies_in_the_ball_onto_which_training_projects() -> None:
    model = SparseModel(dictionary(), weights=0.3)
    x = signals(model.dictionary)
    for coder in (LearnedALM(model), scrambled(LearnedALM(model)), LearnedALM(model, whitened=False)):
        T = coder.operator(x)
        u = iterated(T, coder.start(x), 3000)
        assert norm(minus(T(u), u)) < 1e-2
        length = metric_norm(T.metric, u, per_sample=True)  # type: ignore[attr-defined]
        assert (length <= coder.radius(x)).all()


def test_the_prox_of_huber_minimises_what_it_should() -> None:
    model = SparseModel(dictionary(), curvature=3.0)
    grid = torch.linspace(-4, 4, 160_001, dtype=torch.float64)
    huber = torch.where(grid.abs() < 1 / 3, 1.5 * grid**2, grid.abs() - 1 / 6)
    for v in (-2.0, -0.3, 0.1, 0.9, 3.0):
        best = grid[(0.7 * huber + (grid - v) ** 2 / 2).argmin()]
        assert model.prox_error(torch.tensor(v, dtype=torch.float64), 0.7).item() == pytest.approx(
            best.item(), abs=1e-4
        )


def test_the_learned_operator_is_non_expansive_in_its_metric_and_not_in_the_euclidean_norm() -> None:
    coder = scrambled(LearnedALM(SparseModel(dictionary(), weights=0.3)))
    x = signals(dictionary(), 400)
    generator = torch.Generator().manual_seed(3)
    start = coder.start(x)

    def draw() -> tuple[Tensor, ...]:
        return tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in start)

    T = coder.operator(x)
    with torch.no_grad():
        p, q = draw(), draw()
        assert stretch(T, p, q).max() <= 1
        near = tuple(a + 1e-3 * b for a, b in zip(p, q, strict=True))
        euclidean = []
        for _ in range(15):  # towards the directions that grow
            assert stretch(T, p, near).max() <= 1 + 1e-9
            euclidean.append(stretch(T, p, near, metric=Euclidean()).max())
            p, near = T(p), T(near)
        assert max(euclidean) > 1.02


def test_the_closed_form_of_the_metric_inverts_it() -> None:
    coder = scrambled(LearnedALM(SparseModel(dictionary(), weights=0.3)))
    metric = coder.operator(signals(dictionary())).metric  # type: ignore[attr-defined]
    first = metric.blocks[0]
    assert isinstance(first, Orthogonal)
    v = torch.randn(3, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(first.apply(first.solve(v)), v, rtol=1e-8, atol=1e-8)
    gram = torch.stack([first.apply(row[None])[0] for row in torch.eye(36, dtype=torch.float64)])
    assert float(torch.linalg.eigvalsh(gram)[0].detach()) == pytest.approx(float(first.floor), rel=1e-6)


def test_patches_are_put_back_where_they_were() -> None:
    images = torch.rand(2, 1, 12, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(joined(patches_of(images, 4), 4, (2, 1, 12, 8)), images)
    with pytest.raises(ImageError, match="multiples of 4"):
        patches_of(torch.zeros(1, 1, 10, 8), 4)


def test_coding_removes_salt_and_pepper() -> None:
    """Smooth patches in a cosine basis: outliers fit no few atoms, so they are left out of the picture."""
    grid = torch.arange(8.0)
    waves = torch.cos(math.pi * (grid[:, None] + 0.5) * grid[None] / 8)
    basis = torch.nn.functional.normalize(torch.einsum("ia,jb->ijab", waves, waves).reshape(64, 64), dim=0)
    down, right = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 3, 32), indexing="ij")
    clean = (0.5 + 0.3 * torch.sin(down) * torch.cos(right))[None, None]
    generator = torch.Generator().manual_seed(0)
    degraded = torch.where(torch.rand(clean.shape, generator=generator) < 0.1, 1.0, clean)
    restorer = PatchCoding(LearnedALM(SparseModel(basis, weights=1.0)))
    restorer.solver = KrasnoselskiiMann(relaxation=1.0, steps=150, tolerance=1e-4)
    with torch.no_grad():
        restored = restorer(degraded)
    assert (restored.image - clean).square().mean() < 0.05 * (degraded - clean).square().mean()
    assert restored.report.residual.max() < 0.05 * restored.report.history[0].max()
