from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twofold.contracts import ImageError
from twofold.restorers.sparse_coding import (
    DLADMM,
    ISTA,
    LADMM,
    LISTA,
    Coder,
    LearnedALM,
    Orthogonal,
    PatchCoding,
    SparseModel,
    joined,
    learn_dictionary,
    patches_of,
)
from twofold.solve import Euclidean, KrasnoselskiiMann, stretch


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


def last(coder: Coder, x: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        *_, code = coder.codes(x, steps)
    return code


@pytest.mark.parametrize(("curvature", "slack"), [(4.0, 1e-4), (math.inf, 3e-2)])  # a linear program ends slowly
def test_every_method_with_a_guarantee_comes_to_the_same_objective(curvature: float, slack: float) -> None:
    model = SparseModel(dictionary(), weights=0.3, curvature=curvature)
    x = signals(model.dictionary)
    methods: list[Coder] = [LADMM(model, 1.0), LearnedALM(model), scrambled(LearnedALM(model))]
    if math.isfinite(curvature):
        methods += [ISTA(model), ISTA(model, accelerated=True)]
    found = [model.objective(last(method, x, 700), x) for method in methods]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=slack, atol=0)


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


@pytest.mark.parametrize("make", [LISTA, DLADMM])
def test_an_unrolled_net_ends_after_its_layers_and_learns(make: Callable[..., LISTA | DLADMM]) -> None:
    model = SparseModel(dictionary().float(), weights=0.3, curvature=4.0)
    x = signals(dictionary()).float()
    net = make(model, layers=3)
    assert len(list(net.codes(x, 10))) == 3
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    objective = []
    for _ in range(40):
        *_, code = net.codes(x, 3)
        loss = model.objective(code, x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.append(loss.item())
    assert objective[-1] < objective[0]


def test_patches_are_put_back_where_they_were() -> None:
    images = torch.rand(2, 1, 12, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(joined(patches_of(images, 4), 4, (2, 1, 12, 8)), images)
    with pytest.raises(ImageError, match="multiples of 4"):
        patches_of(torch.zeros(1, 1, 10, 8), 4)


def test_a_learned_dictionary_explains_its_patches_better_than_patches_do() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(9, 12, generator=generator), dim=0)
    codes = torch.randn(800, 12, generator=generator) * (torch.rand(800, 12, generator=generator) < 0.2)
    rows = codes @ truth.mT
    rows = rows[rows.abs().sum(1) > 0]

    def cost(dictionary: Tensor) -> float:
        model = SparseModel(dictionary, weights=0.1, curvature=0.5)
        return float(model.objective(last(ISTA(model, accelerated=True), rows, 60), rows).mean())

    learned = learn_dictionary(rows, 12, batch=64, passes=3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(learned.norm(dim=0), torch.ones(12))
    untaught = torch.nn.functional.normalize(rows[:12].mT, dim=0)
    assert cost(learned) < 0.5 * cost(truth) + 0.5 * cost(untaught)


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
