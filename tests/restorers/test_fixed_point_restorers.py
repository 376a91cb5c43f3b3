from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from twofold.contracts import ImageError
from twofold.nets.denoiser import NonExpansiveDenoiser
from twofold.nets.fourier import Circular
from twofold.restorers.fixed_point import (
    Deconvolution,
    FixedPointRestorer,
    RainLayers,
    RidgeDenoiser,
    SplitDeconvolution,
    SumProx,
    neighbours,
    neighbours_adjoint,
    starting_as_identity,
    steady,
)
from twofold.solve import Compose, Euclidean, KrasnoselskiiMann, stretch
from twofold.solve.linear import metric_norm
from twofold.solve.params import tensors


def ridge(channels: int = 1, *, keep_mean: bool = True) -> RidgeDenoiser:
    torch.manual_seed(0)
    net = RidgeDenoiser(channels=channels, filters=6, size=3, layers=2, keep_mean=keep_mean)
    for bend in net.log_bends:
        bend.data += 1.5
    return net


def photos(channels: int = 1) -> Tensor:
    coarse = torch.rand(2, channels, 5, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (20, 17), mode="bilinear")


KERNEL = torch.tensor([[[[0.0, 0.1, 0.2], [0.1, 0.3, 0.1], [0.2, 0.0, 0.0]]]])


def restorers() -> dict[str, tuple[FixedPointRestorer, Tensor, Tensor | None]]:
    stack = starting_as_identity(NonExpansiveDenoiser(guidance=0, width=4, layers=3))
    return {
        "deconvolution": (Deconvolution(ridge()), photos(), KERNEL),
        "deconvolution in colour": (Deconvolution(ridge()), photos(3), KERNEL),
        "deconvolution with a stack": (Deconvolution(stack), photos(), KERNEL),
        "ADMM and a denoiser": (SplitDeconvolution(ridge(), fraction=0.7), photos(), KERNEL),
        "ADMM and a denoiser, in colour": (SplitDeconvolution(ridge()), photos(3), KERNEL),
        "rain": (RainLayers(ridge(3), ridge(3, keep_mean=False)), photos(3), None),
    }


@pytest.mark.parametrize("name", restorers())
def test_the_operator_never_expands_whatever_the_weights(name: str) -> None:
    restorer, observed, kernel = restorers()[name]
    for p in restorer.parameters():
        p.data += 0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        problem = restorer.problem(observed, kernel)
        generator = torch.Generator().manual_seed(2)

        def near() -> object:
            moved = [t + torch.randn(t.shape, generator=generator) for t in tensors(problem.start)]
            return moved[0] if len(moved) == 1 else tuple(moved)

        for _ in range(20):
            assert stretch(problem.operator, near(), near()).max() <= 1 + 1e-5


@pytest.mark.parametrize("name", restorers())
def test_the_residual_falls_at_every_step_and_the_picture_has_the_shape_of_the_observed(name: str) -> None:
    restorer, observed, kernel = restorers()[name]
    restorer.solver = KrasnoselskiiMann(relaxation=1.0, steps=25, tolerance=0.0)
    with torch.no_grad():
        restored = restorer(observed, kernel=kernel)
    assert restored.image.shape == observed.shape
    history = restored.report.history
    assert (history[1:] <= history[:-1] * (1 + 1e-4) + 1e-6).all()
    assert (history[-1] < 0.5 * history[0]).all()


class Checkerboard(nn.Module):
    """An isometry that moves slow waves to fast ones and back."""

    def forward(self, x: Tensor) -> Tensor:
        down, across = torch.arange(x.shape[-2]), torch.arange(x.shape[-1])
        return x * (1 - 2 * ((down[:, None] + across) % 2))


def test_a_network_is_non_expansive_in_the_metric_of_the_admm_only_between_its_roots() -> None:
    """Composed as it is, a 1-Lipschitz net expands in G; in the Euclidean norm the whole operator expands."""
    observed = photos()[:, :, :, :16].double()
    checkerboard = Checkerboard()
    restorer = SplitDeconvolution(checkerboard, fraction=0.9, border=Circular()).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        problem = restorer.problem(observed, KERNEL.double())
        denoise, numeric = problem.operator.parts  # type: ignore[attr-defined]
        metric = problem.operator.metric  # type: ignore[attr-defined]
        naive = lambda u: (checkerboard(u[0]), u[1], u[2])  # noqa: E731
        p = tuple(torch.randn(t.shape, generator=generator).double() for t in problem.start)
        slow = (p[0] + 1.0, p[1], p[2])
        fast = (p[0] + checkerboard(torch.ones_like(p[0])), p[1], p[2])
        torch.testing.assert_close(stretch(naive, p, fast, metric=metric), torch.full((2,), 10.0).double().sqrt())
        for q in (slow, fast):
            assert stretch(denoise, p, q, metric=metric).max() <= 1 + 1e-9
            assert stretch(problem.operator, p, q).max() <= 1 + 1e-9
        euclidean = []
        for _ in range(20):
            q = tuple(t + torch.randn(t.shape, generator=generator).double() for t in p)
            euclidean.append(float(stretch(problem.operator, p, q, metric=Euclidean()).max()))
        assert max(euclidean) > 1.05
    with pytest.raises(Exception, match="different metrics"):
        Compose((lambda u: u, numeric))


def test_without_a_network_the_admm_finds_the_minimum_of_total_variation() -> None:
    """No neighbour of the solution has a lower objective, and the constraint D x + E = 0 is met."""
    observed = photos()[:1, :, :, :16].double()
    kernel = torch.tensor([[[[0.2, 0.5, 0.3]]]], dtype=torch.float64)
    restorer = SplitDeconvolution(nn.Identity(), penalty=0.05, threshold=0.02, border=Circular()).double()
    restorer.solver = KrasnoselskiiMann(relaxation=1.0, steps=4000, tolerance=1e-10)
    with torch.no_grad():
        restored = restorer(observed, kernel=kernel)
        x, E, multiplier = restored.report.value

        def objective(x: Tensor) -> float:
            blurred = sum(kernel[0, 0, 0, j] * x.roll(j - 1, -1) for j in range(3))
            return float(0.5 * (blurred - observed).square().sum() + 0.02 * neighbours(x).abs().sum())

        torch.testing.assert_close(neighbours(x), -E, atol=1e-6, rtol=0)
        assert multiplier.abs().max() <= 0.02 + 1e-9
        generator = torch.Generator().manual_seed(0)
        for scale in (1e-1, 1e-2, 1e-3):
            moved = x + scale * torch.randn(x.shape, generator=generator, dtype=torch.float64)
            assert objective(x) < objective(moved)
        assert objective(x) < objective(observed)


def test_the_adjoint_of_the_differences_is_their_adjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 5, 6, generator=generator), torch.randn(2, 2, 5, 6, generator=generator)
    torch.testing.assert_close((neighbours(x) * y).sum(), (x * neighbours_adjoint(y)).sum())


@pytest.mark.parametrize("name", restorers())
def test_the_start_and_the_answer_lie_in_the_set_onto_which_training_projects(name: str) -> None:
    restorer, observed, kernel = restorers()[name]
    with torch.no_grad():
        problem = restorer.problem(observed, kernel)
        assert problem.project is not None
        u = problem.start
        for _ in range(40):
            u = problem.operator(u)
        for state in (problem.start, u):
            for a, b in zip(tensors(problem.project(state)), tensors(state), strict=True):
                torch.testing.assert_close(a, b)
        far = problem.project(tuple(1e6 * t for t in u) if isinstance(u, tuple) else 1e6 * u)
        metric = getattr(problem.operator, "metric", Euclidean())
        assert metric_norm(metric, far) < 1e4 * (1 + metric_norm(metric, u))


def test_without_a_prior_deconvolution_undoes_the_blur() -> None:
    clean = photos()
    restorer = Deconvolution(nn.Identity(), penalty=0.05, border=Circular())
    kernel = torch.tensor([[[[0.1, 0.8, 0.1]]]])
    blurred = 0.8 * clean + 0.1 * (clean.roll(1, 3) + clean.roll(-1, 3))
    restorer.solver = KrasnoselskiiMann(relaxation=1.0, steps=100, tolerance=0.0)
    with torch.no_grad():
        torch.testing.assert_close(restorer(blurred, kernel=kernel).image, clean, rtol=0, atol=1e-4)


def test_colours_are_restored_one_by_one() -> None:
    restorer = Deconvolution(ridge())
    restorer.solver = KrasnoselskiiMann(relaxation=1.0, steps=5, tolerance=0.0)
    colour = photos(3)
    with torch.no_grad():
        whole = restorer(colour, kernel=KERNEL).image
        single = restorer(colour[:, 1:2], kernel=KERNEL).image
    torch.testing.assert_close(whole[:, 1:2], single, rtol=0, atol=1e-5)


def test_deconvolution_asks_for_its_kernel() -> None:
    with pytest.raises(ImageError, match="kernel="):
        Deconvolution(ridge())(photos())


def test_the_layers_of_rain_are_never_negative_and_explain_the_picture() -> None:
    observed = photos(3)
    restorer = RainLayers(nn.Identity(), nn.Identity(), penalty=0.1)
    with torch.no_grad():
        problem = restorer.problem(observed)
        u = problem.start
        for _ in range(30):
            u = problem.operator(u)
        assert float(u[1].min()) >= 0
        torch.testing.assert_close(u[0] + u[1], observed, rtol=0, atol=1e-3)


def test_a_denoiser_held_for_one_solve_computes_the_same_and_still_learns() -> None:
    for net in (ridge(), NonExpansiveDenoiser(guidance=0, width=4, layers=2)):
        held = steady(net)
        torch.testing.assert_close(held(photos()), net(photos()))
        grads = torch.autograd.grad(held(photos()).sum(), list(net.parameters()), allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads)


def test_the_ridge_denoiser_keeps_constant_pictures_up_to_their_borders() -> None:
    flat = torch.full((1, 1, 16, 16), 0.7)
    with torch.no_grad():
        torch.testing.assert_close(ridge()(flat), flat, rtol=0, atol=1e-5)


def test_sum_prox_minimises_its_objective_over_both_layers_and_never_expands() -> None:
    y, x0, n0, x1, n1 = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prox = SumProx(y, 0.5)
    x, n = prox((x0, n0))
    torch.testing.assert_close(x + n - y + 0.5 * (x - x0), torch.zeros_like(x))
    torch.testing.assert_close(x + n - y + 0.5 * (n - n0), torch.zeros_like(x))
    assert stretch(prox, (x0, n0), (x1, n1)).max() <= 1
    torch.testing.assert_close(stretch(prox, (x0, n0), (x0 + y, n0 - y)), torch.ones(2, dtype=torch.float64))
