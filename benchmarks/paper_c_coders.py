"""Methods of sparse coding that `paper_c.py` compares with: each step is one operator of `twofold.solve`.

A coder yields its codes `(B, n)` after each iteration for signals `(B, m)`. The model: `SparseModel`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from twofold.restorers.sparse_coding import SparseModel
from twofold.solve import LinearisedADMM, LinearMap, Operator, ProximalGradient, matrix_map, soft_threshold


class Coder(Protocol):
    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]: ...


@dataclass(frozen=True, eq=False)
class ISTA:
    """Proximal gradient on the code; accelerated: FISTA (Beck and Teboulle 2009). Needs a finite curvature."""

    model: SparseModel
    accelerated: bool = False

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        model = self.model
        smoothness = model.curvature * torch.linalg.matrix_norm(model.dictionary, 2) ** 2
        T = ProximalGradient(lambda code: -model.descent(code, signals), smoothness, prox=model.prox_code)
        code = ahead = signals.new_zeros(len(signals), model.dictionary.shape[1])
        t = 1.0
        for _ in range(steps):
            fresh = T(ahead)
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
        model, linear = self.model, matrix_map(self.model.dictionary)
        T = LinearisedADMM(model.prox_code, model.prox_error, linear, signals, self.penalty)
        u = (signals.new_zeros(len(signals), model.dictionary.shape[1]), 0 * signals, 0 * signals)
        for _ in range(steps):
            u = T(u)
            yield u[0]


class LISTA(nn.Module):
    """Gregor and LeCun 2010: Z ← S_θ(W X + S Z), with matrices and thresholds of its own in every layer."""

    def __init__(self, model: SparseModel, *, layers: int = 15) -> None:
        super().__init__()
        A = model.dictionary
        step = 0.9 / float(torch.linalg.matrix_norm(A, 2)) ** 2
        threshold = step * torch.as_tensor(model.weights, dtype=A.dtype).expand(A.shape[1])
        self.encode = nn.ParameterList(step * A.mT for _ in range(layers))
        self.mix = nn.ParameterList(torch.eye(A.shape[1], dtype=A.dtype) - step * A.mT @ A for _ in range(layers))
        self.thresholds = nn.ParameterList(threshold.clone() for _ in range(layers))

    def layer(self, k: int, signals: Tensor) -> Operator:
        mix, threshold = self.mix[k], self.thresholds[k]
        drive = signals @ self.encode[k].mT
        return ProximalGradient(
            lambda z: z - z @ mix.mT - drive, smoothness=1.0, prox=lambda v, _: soft_threshold(v, threshold.abs())
        )

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        code = signals.new_zeros(len(signals), len(self.thresholds[0]))
        for k in range(min(steps, len(self.thresholds))):
            code = self.layer(k, signals)(code)
            yield code


class DLADMM(nn.Module):
    """Xie et al. 2019: linearised ADMM with a matrix, penalties and thresholds of its own in every layer.

    In the scaled multiplier λ / β the elementwise β of a layer is part of its matrix. Nothing ties the layers to the
    model's solution, nor says what a layer beyond the last would be.
    """

    def __init__(self, model: SparseModel, *, layers: int = 15) -> None:
        super().__init__()
        A, m, n = model.dictionary, *model.dictionary.shape
        self.dictionary = A
        step = 0.9 / float(torch.linalg.matrix_norm(A, 2)) ** 2
        weights = torch.as_tensor(model.weights, dtype=A.dtype).expand(n)
        self.adjoints = nn.ParameterList(step * A for _ in range(layers))
        self.penalties = nn.ParameterList(torch.ones(m, dtype=A.dtype) for _ in range(layers))
        self.code_thresholds = nn.ParameterList(step * weights for _ in range(layers))
        self.error_thresholds = nn.ParameterList(torch.full((m,), 0.5, dtype=A.dtype) for _ in range(layers))

    def layer(self, k: int, signals: Tensor) -> Operator:
        """On (Z, E, λ / β)."""
        A, adjoint, penalty = self.dictionary, self.adjoints[k], self.penalties[k]
        first, second = self.code_thresholds[k].abs(), self.error_thresholds[k].abs()
        linear = LinearMap(lambda z: z @ A.mT, lambda y: (penalty * y) @ adjoint / STEP, 1.0)
        return LinearisedADMM(
            lambda v, _: soft_threshold(v, first), lambda v, _: soft_threshold(v, second), linear, signals, 1.0, STEP
        )

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        state = (signals.new_zeros(len(signals), self.dictionary.shape[1]), 0 * signals, 0 * signals)
        for k in range(min(steps, len(self.adjoints))):
            if k > 0:
                state = (*state[:2], state[2] * self.penalties[k - 1] / self.penalties[k])
            state = self.layer(k, signals)(state)
            yield state[0]


STEP = 0.5
"""The step that the operator of a D-LADMM layer is given; its matrix is divided by it, so any number serves."""
