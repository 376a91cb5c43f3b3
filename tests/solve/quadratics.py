"""Bilevel problems with known answers, in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twofold.solve.dynamics import Bilevel


class Quadratic(NamedTuple):
    """lower = ½ uᵀA u − uᵀB w, so u(w) = A⁻¹B w; upper = ½‖u − c‖² + ½ d ‖w‖²."""

    problem: Bilevel
    a: Tensor
    b: Tensor
    c: Tensor
    weight: float

    def answer(self, w: Tensor) -> Tensor:
        return torch.linalg.solve(self.a, self.b @ w)

    def gradient(self, w: Tensor) -> Tensor:
        """d/dw upper(w, u(w))."""
        return self.b.T @ torch.linalg.solve(self.a, self.answer(w) - self.c) + self.weight * w

    def optimum(self) -> Tensor:
        response = torch.linalg.solve(self.a, self.b)
        eye = torch.eye(self.b.shape[1], dtype=torch.float64)
        return torch.linalg.solve(response.T @ response + self.weight * eye, response.T @ self.c)

    def penalised_gradient(self, w: Tensor, penalty: float) -> Tensor:
        """∇φ_λ(w), φ_λ(w) = min_u [F + λ f] − λ min_u f, in closed form: z = (A + I/λ)⁻¹(B w + c/λ)."""
        eye = torch.eye(len(self.a), dtype=torch.float64)
        z = torch.linalg.solve(self.a + eye / penalty, self.b @ w + self.c / penalty)
        return self.weight * w - penalty * self.b.T @ (z - self.answer(w))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic(n: int = 5, m: int = 3, *, seed: int = 0, weight: float = 1.0, scale: float = 1.0) -> Quadratic:
    root = random(n, n, seed=seed)
    a = scale * (root @ root.T / n + torch.eye(n, dtype=torch.float64))
    b, c = scale * random(n, m, seed=seed + 1), random(n, seed=seed + 2)
    problem = Bilevel(
        upper=lambda w, u: ((u - c) ** 2).sum() / 2 + weight * (w**2).sum() / 2,
        lower=lambda w, u: u @ a @ u / 2 - u @ b @ w,
    )
    return Quadratic(problem, a, b, c, weight)


class FirstDerivativeOnly(torch.autograd.Function):
    """x ↦ ½ x² with a derivative that raises where it is differentiated again. (A backward that is marked as once
    differentiable may be cut off in silence instead.)"""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x**2 / 2

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return _Refuse.apply(g * x)  # type: ignore[no-any-return,no-untyped-call]


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        raise RuntimeError("a second derivative was asked for")


def without_second_derivatives(q: Quadratic) -> Bilevel:
    """The same problem up to a constant, through functions whose double backward raises: with A = RRᵀ,
    ½ uᵀA u − uᵀB w = ½ ‖Rᵀu − R⁻¹B w‖² − ½ ‖R⁻¹B w‖²."""
    root = torch.linalg.cholesky(q.a)
    left = torch.linalg.solve(root, q.b)
    square = FirstDerivativeOnly.apply
    return Bilevel(
        upper=lambda w, u: square(u - q.c).sum() + q.weight * square(w).sum(),
        lower=lambda w, u: square(root.T @ u - left @ w).sum() - square(left @ w).sum(),
    )
