"""Sparse codes of signals with outliers: min Σ αᵢ|Zᵢ| + h(E) subject to X = A Z + E, iterated by hand or by learning.

h is Huber's function with curvature ρ at 0 and slope 1 beyond 1/ρ; ρ = ∞ is the absolute value, D-LADMM's model (Xie
et al. 2019). With a finite ρ the problem is also one for ISTA, in Z alone. Signals are rows, `(B, m)`; codes `(B, n)`.

Every method is a function of the signals that yields its code after each iteration, so all are measured alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.restorers.fixed_point import FixedPointRestorer, Problem
from twofold.solve import (
    Blocks,
    LinearisedADMM,
    LinearisedALM,
    LinearMap,
    Metric,
    Operator,
    Relax,
    Scaled,
    State,
    matrix_map,
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


class Coder(Protocol):
    """signals `(B, m)` → the codes `(B, n)` after each iteration, at most `steps` of them."""

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]: ...


@dataclass(frozen=True, eq=False)
class ISTA:
    """Proximal gradient on the code; accelerated (FISTA, Beck and Teboulle 2009) if asked. Needs a finite ρ."""

    model: SparseModel
    accelerated: bool = False

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        step = 1 / (self.model.curvature * torch.linalg.matrix_norm(self.model.dictionary, 2) ** 2)
        code = ahead = signals.new_zeros(len(signals), self.model.dictionary.shape[1])
        t = 1.0
        for _ in range(steps):
            fresh = self.model.prox_code(ahead + step * self.model.descent(ahead, signals), step)
            grown = (1 + math.sqrt(1 + 4 * t * t)) / 2 if self.accelerated else 1.0
            ahead = fresh + (t - 1) / grown * (fresh - code)
            code, t = fresh, grown
            yield code


@dataclass(frozen=True, eq=False)
class LADMM:
    """Linearised ADMM with a penalty β set by hand."""

    model: SparseModel
    penalty: float = 1.0

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        model = self.model
        linear = matrix_map(model.dictionary)
        T = LinearisedADMM(model.prox_code, model.prox_error, linear, signals, self.penalty)
        u = (signals.new_zeros(len(signals), model.dictionary.shape[1]), 0 * signals, 0 * signals)
        for _ in range(steps):
            u = T(u)
            yield u[0]


class LISTA(nn.Module):
    """Gregor and LeCun 2010: Z ← S_θ(W X + S Z) with matrices and thresholds of its own in every layer."""

    def __init__(self, model: SparseModel, *, layers: int = 15) -> None:
        super().__init__()
        A = model.dictionary
        step = 0.9 / float(torch.linalg.matrix_norm(A, 2)) ** 2
        eye = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
        self.encode = nn.ParameterList(step * A.mT for _ in range(layers))
        self.mix = nn.ParameterList(eye - step * A.mT @ A for _ in range(layers))
        threshold = step * torch.as_tensor(model.weights, dtype=A.dtype, device=A.device).expand(A.shape[1])
        self.thresholds = nn.ParameterList(threshold.clone() for _ in range(layers))

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        code = None
        for encode, mix, threshold in list(zip(self.encode, self.mix, self.thresholds, strict=True))[:steps]:
            drive = signals @ encode.mT
            code = soft_threshold(drive if code is None else drive + code @ mix.mT, threshold.abs())
            yield code


class DLADMM(nn.Module):
    """Xie et al. 2019: linearised ADMM unrolled, with a matrix, penalties and thresholds of its own in every layer.

    Nothing ties the layers to the model's solution, nor says what a layer beyond the last would be.
    """

    def __init__(self, model: SparseModel, *, layers: int = 15) -> None:
        super().__init__()
        self.dictionary = model.dictionary
        A, m, n = model.dictionary, *model.dictionary.shape
        step = 0.9 / float(torch.linalg.matrix_norm(A, 2)) ** 2
        weights = torch.as_tensor(model.weights, dtype=A.dtype, device=A.device).expand(n)
        self.adjoints = nn.ParameterList(step * A for _ in range(layers))
        self.penalties = nn.ParameterList(torch.ones(m, dtype=A.dtype, device=A.device) for _ in range(layers))
        self.code_thresholds = nn.ParameterList(step * weights for _ in range(layers))
        self.error_thresholds = nn.ParameterList(
            torch.full((m,), 0.5, dtype=A.dtype, device=A.device) for _ in range(layers)
        )

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        multiplier = error = 0 * signals
        code = signals.new_zeros(len(signals), self.dictionary.shape[1])
        layers = zip(self.adjoints, self.penalties, self.code_thresholds, self.error_thresholds, strict=True)
        for adjoint, penalty, first, second in list(layers)[:steps]:
            price = multiplier + penalty * (code @ self.dictionary.mT + error - signals)
            code = soft_threshold(code - price @ adjoint, first.abs())
            missing = signals - code @ self.dictionary.mT
            error = soft_threshold(missing - multiplier / penalty, second.abs())
            multiplier = multiplier + penalty * (error - missing)
            yield code


class LearnedALM(nn.Module):
    """Linearised augmented Lagrangian steps in a learned metric: whatever is learned, the solutions stay the model's.

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

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
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
    """Patch by patch, colour by colour: a patch less its median is A Z, and what A Z cannot say is thrown away.

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

        slope = float(self.coder.spectrum.max().sqrt())
        return Problem(self.coder.operator(signals), self.coder.start(signals), image, slope)


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


def learn_dictionary(
    patches: Tensor,
    atoms: int,
    *,
    penalty: float = 0.1,
    batch: int = 256,
    passes: int = 4,
    steps: int = 40,
    generator: torch.Generator,
) -> Tensor:
    """A dictionary `(m, atoms)` with unit columns for the rows of `patches (N, m)`: mini-batch learning with the lasso.

    Mairal et al. 2010: codes by FISTA, then one turn of block coordinate descent on the atoms; atoms that nothing uses
    start again as a patch. Cost: passes · N · steps products with the dictionary.
    """
    chosen = torch.randperm(len(patches), generator=generator)[:atoms]
    D = _unit(patches[chosen].mT + 1e-3 * torch.randn(patches.shape[1], atoms, generator=generator).to(patches))
    gram, cross = D.new_zeros(atoms, atoms), D.new_zeros(D.shape)
    for _ in range(passes):
        for rows in torch.randperm(len(patches), generator=generator).chunk(max(len(patches) // batch, 1)):
            signals = patches[rows]
            code = _lasso(D, signals, penalty, steps)
            gram, cross = 0.95 * gram + code.mT @ code, 0.95 * cross + signals.mT @ code
            for j in range(atoms):
                if gram[j, j] > 1e-6:
                    D[:, j] = _unit((cross[:, j] - D @ gram[:, j]) / gram[j, j] + D[:, j])
            idle = gram.diagonal() <= 1e-6
            if idle.any():
                D[:, idle] = _unit(signals[torch.randint(len(signals), (int(idle.sum()),), generator=generator)].mT)
    return D


def _lasso(dictionary: Tensor, signals: Tensor, penalty: float, steps: int) -> Tensor:
    """FISTA on ½‖X − D Z‖² + penalty ‖Z‖₁: Huber's function that never leaves its parabola."""
    step = 1 / torch.linalg.matrix_norm(dictionary, 2) ** 2
    code = ahead = signals.new_zeros(len(signals), dictionary.shape[1])
    t = 1.0
    for _ in range(steps):
        fresh = soft_threshold(ahead + step * (signals - ahead @ dictionary.mT) @ dictionary, step * penalty)
        grown = (1 + math.sqrt(1 + 4 * t * t)) / 2
        code, ahead, t = fresh, fresh + (t - 1) / grown * (fresh - code), grown
    return code


def _unit(columns: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0, keepdim=True)
    return columns / lengths.clamp_min(1e-8)
