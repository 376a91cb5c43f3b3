"""Sparse codes of signals with outliers: min Σ αᵢ|Zᵢ| + h(E) subject to X = A Z + E, in a metric that is learned.

h is Huber's function with curvature ρ at 0 and slope 1 beyond 1/ρ; ρ = ∞ is the absolute value, D-LADMM's model (Xie
et al. 2019). With a finite ρ the problem is also one for ISTA, in Z alone. Signals are rows, `(B, m)`; codes `(B, n)`.

The steps of ISTA, LISTA, linearised ADMM and D-LADMM for this problem are operators of `solve` (docs/bmo.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.restorers.fixed_point import FixedPointRestorer, Problem
from twofold.solve import (
    Ball,
    Blocks,
    LinearisedALM,
    LinearMap,
    Metric,
    Operator,
    Relax,
    Scaled,
    State,
    metric_of,
    soft_threshold,
)
from twofold.solve.linear import Number
from twofold.solve.params import axpy, scale


@dataclass(frozen=True, eq=False)
class SparseModel:
    """dictionary: A `(m, n)`. weights: α ≥ 0, a number or `(n,)`. curvature: ρ > 0, inf for the absolute value.

    >>> model = SparseModel(torch.eye(2), weights=0.5, curvature=math.inf)
    >>> model.objective(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 3.0]]))           # ½ 2 + |3|
    tensor([4.])
    """

    dictionary: Tensor
    weights: Number = 0.45
    curvature: float = math.inf

    def objective(self, codes: Tensor, signals: Tensor) -> Tensor:
        """Σ αᵢ|Zᵢ| + h(X − A Z), `(B,)`: of the feasible point that the code alone determines."""
        left = (signals - codes @ self.dictionary.mT).abs()
        huber = left
        if math.isfinite(self.curvature):
            inside = self.curvature / 2 * left**2
            huber = torch.where(left * self.curvature < 1, inside, left - 0.5 / self.curvature)
        return (self.weights * codes.abs()).sum(1) + huber.sum(1)

    def descent(self, codes: Tensor, signals: Tensor) -> Tensor:
        """−∇ of the smooth part in Z, `(B, n)`; its Lipschitz constant is ρ‖A‖²."""
        left = signals - codes @ self.dictionary.mT
        return (self.curvature * left).clamp(-1, 1) @ self.dictionary

    def prox_code(self, v: Tensor, step: Number) -> Tensor:
        """The proximal step of Σ αᵢ|Zᵢ| on `(B, n)`."""
        return soft_threshold(v, step * self.weights)

    def prox_error(self, v: Tensor, step: Number) -> Tensor:
        """The proximal step of h on `(B, m)`: a shrinkage near 0, a move by `step` beyond."""
        if not math.isfinite(self.curvature):
            return soft_threshold(v, step)
        return v - step * (self.curvature * v / (1 + step * self.curvature)).clamp(-1, 1)


class LearnedALM(nn.Module):
    """Linearised augmented Lagrangian steps in a learned metric; learning cannot change the solutions.

    Both unknowns are one, u = (Z, E / c), with the constraint P (A Z + E) = P X. P = diag(s) Uᵀ, U from AAᵀ = U Λ Uᵀ,
    leaves the solutions alone and sets how they are approached: ‖P [A, cI]‖ = max s √(Λ + c²) exactly, so the step
    size is legal by construction. Started at s = (Λ + 1)^(-1/2) and c = 1, it makes all singular values 1. A
    reflection and a relaxation `amount` in (0, 1) around it are over-relaxation by 2 · amount, legal since the inner
    step is firmly non-expansive. Learned: s, c, amount; and α with `tune_weights`, which does change the model.

    whitened: False starts from the plain steps, s = 1.
    """

    dictionary: Tensor
    U: Tensor
    spectrum: Tensor
    rotated: Tensor

    def __init__(self, model: SparseModel, *, whitened: bool = True, tune_weights: bool = False) -> None:
        super().__init__()
        A = model.dictionary
        spectrum, U = torch.linalg.eigh(A @ A.mT)
        self.curvature = model.curvature
        for name, value in (("dictionary", A), ("U", U), ("spectrum", spectrum.clamp_min(0)), ("rotated", U.mT @ A)):
            self.register_buffer(name, value)
        self.log_scale = nn.Parameter(torch.zeros_like(spectrum))
        if whitened:
            self.log_scale.data -= 0.5 * (self.spectrum + 1).log()
        self.log_error_scale = nn.Parameter(A.new_zeros(()))
        self.raw_amount = nn.Parameter(A.new_tensor(1.0))
        start = torch.as_tensor(model.weights, dtype=A.dtype, device=A.device).expand(A.shape[1]).clone()
        self.log_weights = nn.Parameter(start.log(), requires_grad=tune_weights)

    @property
    def model(self) -> SparseModel:
        """The problem with the weights of this moment."""
        return SparseModel(self.dictionary, self.log_weights.exp(), self.curvature)

    def operator(self, signals: Tensor) -> Operator:
        """T on the states (u, λ), `(B, n + m)` and `(B, m)`."""
        model, n, c = self.model, self.dictionary.shape[1], self.log_error_scale.exp()
        scales = self.log_scale.exp()
        matrix = scales[:, None] * torch.cat([self.rotated, c * self.U.mT], 1)
        norm = (scales * (self.spectrum + c**2).sqrt()).max()
        target = signals @ self.U * scales

        def prox(v: Tensor, step: Number) -> Tensor:
            code, error = v[:, :n], v[:, n:]
            return torch.cat([model.prox_code(code, step), model.prox_error(c * error, c**2 * step) / c], 1)

        inner = LinearisedALM(prox, LinearMap(lambda u: u @ matrix.mT, lambda y: y @ matrix, norm), target)
        # Nobody differentiates a metric, and this one is solved without iterations.
        first = Orthogonal(matrix.detach(), torch.as_tensor(inner.step).detach())
        return Relax(Reflect(inner, Blocks((first, Scaled(1.0)))), torch.sigmoid(self.raw_amount))

    def start(self, signals: Tensor) -> State:
        """Zeros: `(B, n + m)` and `(B, m)`."""
        return signals.new_zeros(len(signals), sum(self.dictionary.shape)), torch.zeros_like(signals)

    def radius(self, signals: Tensor) -> Tensor:
        """`(B,)`: no solution (u, λ) is longer in the metric of `operator`.

        The objective is at most that of Z = 0, so α‖Z‖ ≤ ‖X‖₁; E = X − A Z; and |Pᵀλ| ≤ 1, the slope of h.
        """
        with torch.no_grad():
            scales, c = self.log_scale.exp(), self.log_error_scale.exp()
            code = signals.abs().sum(1) / self.log_weights.exp().min()
            error = (signals.norm(dim=1) + self.spectrum.max().sqrt() * code) / c
            multiplier = math.sqrt(signals.shape[1]) / scales.min()
            longest = (scales * (self.spectrum + c**2).sqrt()).max() / 0.99**0.5  # 1 / √step of `LinearisedALM`
            length: Tensor = (longest**2 * (code**2 + error**2) + multiplier**2).sqrt()
        return length

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        """The codes `(B, atoms)` of signals `(B, length)` after each of `steps` iterations."""
        T, u = self.operator(signals), self.start(signals)
        for _ in range(steps):
            u = T(u)
            yield self.code(u)

    def code(self, state: State) -> Tensor:
        """The code `(B, n)` in a state."""
        # Relaxed iterates carry a vanishing rest where the prox gives exact zeros: too small for a code to show.
        found: Tensor = state[0][:, : self.dictionary.shape[1]]
        return found


@dataclass(frozen=True, eq=False)
class Orthogonal:
    """G = I / step − KᵀK for a K with orthogonal rows, which makes its inverse a formula.

    matrix: K `(m, n)`, rows orthogonal to one another. step: below 1 / ‖K‖².

    >>> G = Orthogonal(torch.tensor([[1.0, 1.0]]), step=0.25)
    >>> G.apply(torch.tensor([[1.0, 1.0]])), G.solve(torch.tensor([[2.0, 2.0]]))
    (tensor([[2., 2.]]), tensor([[1., 1.]]))
    """

    matrix: Tensor
    step: Number

    @property
    def floor(self) -> Number:
        return 1 / self.step - self.matrix.square().sum(1).max()

    def apply(self, v: Tensor) -> Tensor:
        return v / self.step - v @ self.matrix.mT @ self.matrix

    def solve(self, v: Tensor) -> Tensor:
        lengths = self.matrix.square().sum(1)
        return self.step * (v + (self.step / (1 - self.step * lengths)) * (v @ self.matrix.mT) @ self.matrix)


@dataclass(frozen=True, eq=False)
class Reflect:
    """u ↦ 2 T(u) − u: non-expansive where T is firmly non-expansive, with the same fixed points."""

    operator: Operator
    metric: Metric

    def __call__(self, u: State) -> State:
        return axpy(2.0, self.operator(u), scale(-1.0, u))


class PatchCoding(FixedPointRestorer):
    """Patch by patch, colour by colour: a patch less its median is A Z, and the residual is discarded.

    observed: `(B, C, H, W)`, H and W multiples of the patch. Patches do not overlap, as in D-LADMM's experiment.
    """

    channels = 1

    def __init__(self, coder: LearnedALM) -> None:
        super().__init__()
        self.coder = coder
        self.side = math.isqrt(coder.dictionary.shape[0])

    @property
    def multiple(self) -> int:
        return self.side

    def problem(self, observed: Tensor, kernel: Tensor | None = None) -> Problem:
        grey = observed.flatten(0, 1)[:, None]
        patches = patches_of(grey, self.side)
        middle = patches.median(1, keepdim=True).values
        signals = patches - middle

        def image(state: State) -> Tensor:
            rows = self.coder.code(state) @ self.coder.dictionary.mT + middle
            return joined(rows, self.side, tuple(grey.shape)).reshape(observed.shape)

        operator, start = self.coder.operator(signals), self.coder.start(signals)
        metric = metric_of(operator)
        slope = float((self.coder.spectrum.max() / metric.floor).sqrt())
        return Problem(operator, start, image, slope, Ball(metric, self.coder.radius(signals)))


def cosines(side: int, frequencies: int) -> Tensor:
    """A dictionary of products of cosines, `(side², frequencies²)`, overcomplete where frequencies > side.

    All but the constant have mean zero, and length 1. No data is needed; a learned dictionary says more.

    >>> cosines(2, 2).round(decimals=2)
    tensor([[ 0.5000,  0.5000,  0.5000,  0.5000],
            [ 0.5000, -0.5000,  0.5000, -0.5000],
            [ 0.5000,  0.5000, -0.5000, -0.5000],
            [ 0.5000, -0.5000, -0.5000,  0.5000]])
    """
    places = (torch.arange(side) + 0.5)[:, None]
    waves = torch.cos(math.pi * places * torch.arange(frequencies) / frequencies)
    waves[:, 1:] -= waves[:, 1:].mean(0)
    return _unit(torch.einsum("ia,jb->ijab", waves, waves).reshape(side**2, frequencies**2))


def patches_of(images: Tensor, side: int) -> Tensor:
    """`(B, 1, H, W)` → its patches without overlap as rows `(B · patches, side²)`.

    >>> patches_of(torch.arange(8.0).reshape(1, 1, 2, 4), 2)
    tensor([[0., 1., 4., 5.],
            [2., 3., 6., 7.]])
    """
    if images.shape[1] != 1 or images.shape[2] % side or images.shape[3] % side:
        raise ImageError(f"expected grey pictures whose sides are multiples of {side}, got {tuple(images.shape)}")
    columns: Tensor = F.unfold(images, side, stride=side)
    return columns.mT.reshape(-1, side * side)


def joined(patches: Tensor, side: int, size: tuple[int, ...]) -> Tensor:
    """The inverse of `patches_of`, for pictures of `size` (B, 1, H, W)."""
    columns = patches.reshape(size[0], -1, side * side).mT
    images: Tensor = F.fold(columns, (size[2], size[3]), side, stride=side)
    return images


def _unit(columns: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0, keepdim=True)
    return columns / lengths.clamp_min(1e-8)
