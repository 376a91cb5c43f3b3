"""Published optimisation-derived networks: one step of each, by its own formula, is one operator of `solve`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.nets.fourier import Circular, DataProx
from twofold.restorers.fixed_point import Deconvolution, RidgeDenoiser
from twofold.solve import (
    Compose,
    DenoiserStep,
    LinearisedADMM,
    LinearMap,
    ProximalGradient,
    Relax,
    matrix_map,
    soft_threshold,
)

DOUBLE = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


A, X, Z, E, LAMBDA = draw(6, 9, seed=0), draw(4, 6, seed=1), draw(4, 9, seed=2), draw(4, 6, seed=3), draw(4, 6, seed=4)


def shrink(v: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(v > threshold, v - threshold, torch.where(v < -threshold, v + threshold, torch.zeros_like(v)))


def net(x: Tensor) -> Tensor:
    """Any network will do for the identity of two formulas."""
    weight = draw(1, 1, 3, 3, seed=9) / 9
    return F.conv2d(x, weight, padding=1).tanh()


def photo() -> tuple[Tensor, Tensor, Tensor]:
    """u, observed, kernel."""
    return draw(1, 1, 8, 8, seed=5), draw(1, 1, 8, 8, seed=6), torch.tensor([[[[0.1, 0.6, 0.3]]]], dtype=DOUBLE)


def blurred(x: Tensor, kernel: Tensor) -> Tensor:
    """k ∗ x with circular borders, pixel by pixel of the kernel."""
    middle = kernel.shape[-1] // 2
    return sum((kernel[0, 0, 0, j] * x.roll(j - middle, -1) for j in range(kernel.shape[-1])), torch.zeros_like(x))


def test_ista() -> None:
    largest = float(torch.linalg.matrix_norm(A, 2)) ** 2
    T = ProximalGradient(lambda z: (z @ A.mT - X) @ A, largest, 0.5, lambda v, step: soft_threshold(v, 0.3 * step))
    torch.testing.assert_close(T(Z), shrink(Z - (Z @ A.mT - X) @ A / largest, 0.3 / largest))


def test_lista() -> None:
    """Gregor and LeCun 2010: Z ← S_θ(W X + S Z), here with W, S and θ of no particular kind."""
    W, S, theta = draw(9, 6, seed=10), draw(9, 9, seed=11), draw(9, seed=12).abs()
    T = ProximalGradient(lambda z: z - z @ S.mT - X @ W.mT, 1.0, 0.5, lambda v, _: soft_threshold(v, theta))
    torch.testing.assert_close(T(Z), shrink(X @ W.mT + Z @ S.mT, theta))


def test_ista_net() -> None:
    """Zhang and Ghanem 2018: r = x − ρ Φᵀ(Φ x − y), then the learned F̃(S_θ(F(r))): a network after a gradient step."""
    forward, back, theta = draw(12, 9, seed=13), draw(9, 12, seed=14), 0.2
    largest = float(torch.linalg.matrix_norm(A, 2)) ** 2
    T = Compose(
        (
            ProximalGradient(lambda x: (x @ A.mT - X) @ A, largest, 0.45),
            DenoiserStep(lambda r: soft_threshold(r @ forward.mT, theta) @ back.mT, weight=1.0),
        )
    )
    r = Z - 0.9 / largest * (Z @ A.mT - X) @ A
    torch.testing.assert_close(T(Z), shrink(r @ forward.mT, theta) @ back.mT)


def test_linearised_admm() -> None:
    beta, fraction = 1.7, 0.9
    tau = fraction / (beta * float(torch.linalg.matrix_norm(A, 2)) ** 2)
    T = LinearisedADMM(lambda v, step: soft_threshold(v, 0.3 * step), soft_threshold, matrix_map(A), X, beta, fraction)
    z = shrink(Z - tau * (LAMBDA + beta * (Z @ A.mT + E - X)) @ A, 0.3 * tau)
    e = shrink(X - z @ A.mT - LAMBDA / beta, 1 / beta)
    expected = z, e, LAMBDA + beta * (z @ A.mT + e - X)
    torch.testing.assert_close(T((Z, E, LAMBDA)), expected)


def test_d_ladmm() -> None:
    """Xie et al. 2019, a layer with W, elementwise β and thresholds of its own: the operator on (Z, E, λ / β)."""
    W, beta = draw(6, 9, seed=15), draw(6, seed=16).abs() + 0.5
    first, second = draw(9, seed=17).abs(), draw(6, seed=18).abs()
    z = shrink(Z - (LAMBDA + beta * (Z @ A.mT + E - X)) @ W, first)
    e = shrink(X - z @ A.mT - LAMBDA / beta, second)
    multiplier = LAMBDA + beta * (z @ A.mT + e - X)
    step = 0.5
    linear = LinearMap(lambda v: v @ A.mT, lambda y: (beta * y) @ W / step, 1.0)
    T = LinearisedADMM(
        lambda v, _: soft_threshold(v, first), lambda v, _: soft_threshold(v, second), linear, X, 1.0, step
    )
    found = T((Z, E, LAMBDA / beta))
    torch.testing.assert_close((found[0], found[1], found[2] * beta), (z, e, multiplier))


def test_plug_and_play_proximal_gradient() -> None:
    u, observed, kernel = photo()
    gradient = lambda x: blurred(blurred(x, kernel) - observed, kernel.flip(-1))  # noqa: E731
    T = Compose((ProximalGradient(gradient, 1.0, 0.4), DenoiserStep(net, weight=1.0)))
    torch.testing.assert_close(T(u), net(u - 0.8 * gradient(u)))


def test_regularisation_by_denoising() -> None:
    """Romano et al. 2017, steepest descent: u − s (∇f(u) + λ (u − N(u))), a gradient step with a net in it."""
    u, observed, kernel = photo()
    gradient = lambda x: blurred(blurred(x, kernel) - observed, kernel.flip(-1))  # noqa: E731
    T = ProximalGradient(lambda x: gradient(x) + 0.3 * (x - net(x)), smoothness=1.6, fraction=0.4)
    torch.testing.assert_close(T(u), u - 0.5 * (gradient(u) + 0.3 * (u - net(u))))


def test_plug_and_play_half_quadratic_splitting() -> None:
    """IRCNN and DPIR: x = argmin ½‖k ∗ x − y‖² + ρ/2 ‖x − u‖², then the denoiser; here by a dense matrix."""
    u, observed, kernel = photo()
    rows = torch.eye(64, dtype=DOUBLE).reshape(64, 1, 8, 8)
    K = torch.stack([blurred(row[None], kernel).flatten() for row in rows], 1)
    x = torch.linalg.solve(K.mT @ K + 0.2 * torch.eye(64, dtype=DOUBLE), K.mT @ observed.flatten() + 0.2 * u.flatten())
    T = Compose((DataProx(observed, kernel, 0.2), DenoiserStep(net, weight=1.0)))
    torch.testing.assert_close(T(u), net(x.reshape(u.shape)))


def test_unrolled_deconvolution() -> None:
    """A learned cascade as `Deconvolution` iterates it: Fourier division, then x − Wᵀ clip(W x, ±t), ‖W‖ ≤ 1."""
    u, observed, kernel = photo()
    torch.manual_seed(0)
    denoiser = RidgeDenoiser(filters=3, size=3).double()
    restorer = Deconvolution(denoiser, penalty=0.2, border=Circular()).double()
    padded = F.pad(kernel, (0, 5, 0, 7)).roll(-1, -1)
    blur = torch.fft.fft2(padded)
    x = torch.fft.ifft2(
        (blur.conj() * torch.fft.fft2(observed) + 0.2 * torch.fft.fft2(u)) / (blur.abs() ** 2 + 0.2)
    ).real
    (W,) = denoiser.certified_weights()
    bend = denoiser.log_bends[0].exp()
    expected = x - F.conv_transpose2d(F.conv2d(x, W).clamp(-bend, bend), W)
    with torch.no_grad():
        torch.testing.assert_close(restorer.problem(observed, kernel).operator(u), expected, rtol=1e-6, atol=1e-6)


def test_a_deep_equilibrium_layer() -> None:
    """Bai et al. 2019: z ← σ(W z + U x), damped."""
    W, U = draw(9, 9, seed=19) / 9, draw(9, 6, seed=20)
    T = Relax(lambda z: torch.tanh(z @ W.mT + X @ U.mT), 0.7)
    torch.testing.assert_close(T(Z), 0.3 * Z + 0.7 * torch.tanh(Z @ W.mT + X @ U.mT))
    assert math.isfinite(float(T(Z).sum()))
