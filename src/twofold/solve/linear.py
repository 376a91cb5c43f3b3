"""Linear maps with their adjoints and norms, the metrics built from them, and conjugate gradients.

A *metric* is a symmetric positive definite G: ‖v‖_G² = ⟨v, G v⟩. Operators of augmented-Lagrangian type are
non-expansive in such a norm and not in the Euclidean one, so whoever measures them, or takes a descent step beside
them, needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from twofold.solve.params import SolveError, State, axpy, dot, minus, rebuild, tensors, zeros_like

Number = float | Tensor


class LinearMap(NamedTuple):
    """x ↦ K x with its adjoint: ⟨K x, y⟩ = ⟨x, Kᵀ y⟩.

    norm: the operator norm of K or an upper bound of it; every step-size condition is derived from this number.

    >>> double = LinearMap(lambda x: 2 * x, lambda y: 2 * y, norm=2.0)
    >>> double.adjoint(double.forward(torch.tensor([3.0])))
    tensor([12.])
    """

    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    norm: Number


class Metric(Protocol):
    """G, symmetric positive definite, on states of one structure. floor: a positive lower bound of its smallest
    eigenvalue. apply: v ↦ G v. solve: v ↦ G⁻¹ v; both keep structure and shapes."""

    @property
    def floor(self) -> Number: ...
    def apply(self, v: State) -> State: ...
    def solve(self, v: State) -> State: ...


class CGResult(NamedTuple):
    """value: the solution. residual: ‖b − A value‖ / ‖b‖, a scalar or `(B,)`. steps: applications of A.

    >>> found = conjugate_gradient(lambda x: 2 * x, torch.tensor([6.0, 8.0]), steps=9, tolerance=1e-6)
    >>> found.value, found.residual.item(), found.steps
    (tensor([3., 4.]), 0.0, 1)
    """

    value: State
    residual: Tensor
    steps: int


def matrix_map(matrix: Tensor) -> LinearMap:
    """A matrix `(m, n)` as a map from `(B, n)` to `(B, m)`.

    >>> K = matrix_map(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    >>> K.forward(torch.ones(1, 2)), K.norm
    (tensor([[3., 4., 0.]]), tensor(4.))
    """
    return LinearMap(lambda x: x @ matrix.mT, lambda y: y @ matrix, torch.linalg.matrix_norm(matrix, 2))


def require_within(value: Number, *, low: float, name: str, high: float = float("inf"), closed: bool = False) -> None:
    """Raises SolveError unless every entry of `value` lies in (low, high), or in (low, high] where `closed`.

    >>> require_within(1.5, low=0, high=1, name="fraction")
    Traceback (most recent call last):
    twofold.solve.params.SolveError: fraction must lie in (0, 1), got 1.5
    """
    smallest, largest = (
        (float(value.detach().min()), float(value.detach().max())) if isinstance(value, Tensor) else (value, value)
    )
    if not (low < smallest and (largest <= high if closed else largest < high)):
        seen = smallest if not low < smallest else largest
        raise SolveError(f"{name} must lie in ({low}, {high}{']' if closed else ')'}, got {seen}")


def metric_norm(metric: Metric, v: State, *, per_sample: bool = False) -> Tensor:
    """‖v‖_G, a scalar or `(B,)`.

    >>> metric_norm(Scaled(4.0), torch.tensor([3.0, 4.0])).item()
    10.0
    """
    return dot(v, metric.apply(v), per_sample=per_sample).clamp_min(0).sqrt()


def flattened(tree: State, rows: int = 1) -> Tensor:
    """The numbers of a tree as a matrix `(rows, n)`: one row a sample, or a single row for the whole tree.

    >>> flattened((torch.ones(2, 1), torch.zeros(2, 2)), rows=2)
    tensor([[1., 0., 0.],
            [1., 0., 0.]])
    """
    return torch.cat([t.reshape(rows, -1) for t in tensors(tree)], dim=1)


def unflattened(like: State, flat: Tensor) -> State:
    """The inverse of `flattened`: a tree with the structure and shapes of `like`.

    >>> unflattened((torch.ones(2), torch.ones(1)), torch.tensor([[1.0, 2.0, 3.0]]))
    (tensor([1., 2.]), tensor([3.]))
    """
    parts = torch.split(flat, [t.numel() // len(flat) for t in tensors(like)], dim=1)
    return rebuild(like, [part.reshape(t.shape) for part, t in zip(parts, tensors(like), strict=True)])


def precondition(metric: Metric, v: State) -> State:
    """G⁻¹ v, differentiable in v alone: a metric is a preconditioner, so its parameters receive no gradient.

    The gradient of a solve is another solve, so nothing of the iterations inside it is kept.

    >>> precondition(Scaled(4.0), torch.tensor([8.0]))
    tensor([2.])
    """
    if isinstance(metric, Euclidean):
        return v
    return rebuild(v, list(_Precondition.apply(metric, v, *tensors(v))))  # type: ignore[no-untyped-call]


def conjugate_gradient(
    apply: Callable[[State], State],
    b: State,
    *,
    steps: int,
    tolerance: float,
    start: State | None = None,
    per_sample: bool = False,
) -> CGResult:
    """Solves A x = b for a symmetric positive definite A until ‖b − A x‖ ≤ tolerance ‖b‖ or the steps are spent.

    per_sample: A acts on every sample by itself; each gets its own step lengths and stops at its own time.

    Raises: SolveError where a direction of curvature pᵀA p ≤ 0 is met: A is not positive definite.

    >>> A = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    >>> conjugate_gradient(lambda x: A @ x, torch.tensor([2.0, 8.0]), steps=2, tolerance=1e-6).value
    tensor([1., 2.])
    """
    x = zeros_like(b) if start is None else start
    r = b if start is None else minus(b, apply(start))
    p = r
    size = dot(b, b, per_sample=per_sample)
    rr = dot(r, r, per_sample=per_sample)
    done = 0
    for _ in range(steps):
        active = rr > tolerance**2 * size
        if not bool(active.any()):
            break
        done += 1
        q = apply(p)
        curvature = dot(p, q, per_sample=per_sample)
        if bool((active & ~(curvature > 0)).any()):
            raise SolveError(
                f"conjugate gradients met a curvature of {curvature.min().item():.2e} ≤ 0 after {done} steps: "
                "the matrix is not positive definite, so this solve means nothing"
            )
        zero = torch.zeros_like(rr)
        a = torch.where(active, rr / curvature, zero)
        x, r = axpy(a, p, x), axpy(-a, q, r)
        fresh = dot(r, r, per_sample=per_sample)
        p = axpy(torch.where(active, fresh / rr, zero), p, r)
        rr = fresh
    return CGResult(x, (rr / size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt(), done)


@dataclass(frozen=True)
class Euclidean:
    """G = I.

    >>> metric_norm(Euclidean(), torch.tensor([3.0, 4.0])).item()
    5.0
    """

    @property
    def floor(self) -> Number:
        return 1.0

    def apply(self, v: State) -> State:
        return v

    def solve(self, v: State) -> State:
        return v


@dataclass(frozen=True, eq=False)
class Scaled:
    """G = diag(weight) on one tensor; weight > 0 is a number or broadcasts against the state.

    >>> Scaled(torch.tensor([2.0, 4.0])).solve(torch.tensor([2.0, 2.0]))
    tensor([1.0000, 0.5000])
    """

    weight: Number

    @property
    def floor(self) -> Number:
        return self.weight.min() if isinstance(self.weight, Tensor) else self.weight

    def apply(self, v: State) -> State:
        return v * self.weight

    def solve(self, v: State) -> State:
        return v / self.weight


@dataclass(frozen=True, eq=False)
class Blocks:
    """A block-diagonal G: one metric for each tensor of a tuple.

    >>> Blocks((Euclidean(), Scaled(3.0))).apply((torch.ones(1), torch.ones(1)))
    (tensor([1.]), tensor([3.]))
    """

    blocks: tuple[Metric, ...]

    @property
    def floor(self) -> Number:
        return min(float(b.floor) for b in self.blocks)

    def apply(self, v: State) -> State:
        return tuple(b.apply(x) for b, x in zip(self.blocks, v, strict=True))

    def solve(self, v: State) -> State:
        return tuple(b.solve(x) for b, x in zip(self.blocks, v, strict=True))


@dataclass(frozen=True, eq=False)
class Linearised:
    """G = I/τ − β AᵀA on one tensor: positive definite iff τ β ‖A‖² < 1. Solved by conjugate gradients.

    >>> G = Linearised(matrix_map(torch.tensor([[1.0, 0.0]])), step=0.5, penalty=1.0)
    >>> G.apply(torch.ones(1, 2)), float(G.floor)
    (tensor([[1., 2.]]), 1.0)
    """

    linear: LinearMap
    step: Number
    penalty: Number

    @property
    def floor(self) -> Number:
        return 1 / self.step - self.penalty * self.linear.norm**2

    def apply(self, v: State) -> State:
        return v / self.step - self.penalty * self.linear.adjoint(self.linear.forward(v))

    def solve(self, v: State) -> State:
        return _solve_spd(self.apply, v)


@dataclass(frozen=True, eq=False)
class PrimalDual:
    """G = [[I/τ, −Kᵀ], [−K, I/σ]] on a pair: positive definite iff τ σ ‖K‖² < 1. Solved by conjugate gradients.

    >>> G = PrimalDual(matrix_map(torch.tensor([[1.0]])), step=0.5, dual_step=0.5)
    >>> G.apply((torch.tensor([[1.0]]), torch.tensor([[1.0]])))
    (tensor([[1.]]), tensor([[1.]]))
    """

    linear: LinearMap
    step: Number
    dual_step: Number

    @property
    def floor(self) -> Number:
        a, b = 1 / self.step, 1 / self.dual_step
        return (a + b) / 2 - (((a - b) / 2) ** 2 + self.linear.norm**2) ** 0.5

    def apply(self, v: State) -> State:
        x, y = v
        return x / self.step - self.linear.adjoint(y), y / self.dual_step - self.linear.forward(x)

    def solve(self, v: State) -> State:
        return _solve_spd(self.apply, v)


def _solve_spd(apply: Callable[[State], State], v: State) -> State:
    """G⁻¹v to the precision of the numbers; G is bounded away from singular by construction, so this is short."""
    precision = torch.finfo(dot(v, v).dtype).eps
    return conjugate_gradient(apply, v, steps=500, tolerance=10 * precision, per_sample=True).value


class _Precondition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, metric: Metric, like: State, *flat: Tensor) -> tuple[Tensor, ...]:
        ctx.metric, ctx.like = metric, like
        return tuple(tensors(metric.solve(rebuild(like, list(flat)))))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        # G is its own transpose.
        return None, None, *_Precondition.apply(ctx.metric, ctx.like, *cotangents)  # type: ignore[no-untyped-call]
