"""What a fixed-point iteration u ← T(u) can be made of.

Every operator knows the metric G in which it is non-expansive, ‖T(p) − T(q)‖_G ≤ ‖p − q‖_G, and takes its step size
as a `fraction` in (0, 1) of the largest that is allowed, so the condition holds by construction. `unit_interval` and
`positive` turn unconstrained learnable numbers into legal ones. Operators with multipliers are in `multipliers`.

====================  ===================  ============================  ===============
operator              state                metric G                      condition
====================  ===================  ============================  ===============
`ProximalGradient`    u                    I, or diag(1/s)               s ≤ 2/L
`DenoiserStep`        u                    I                             net 1-Lipschitz
`ProximalALM`         (u, λ)               diag(w I, I/β)                w > 0
`LinearisedALM`       (u, λ)               diag(I/τ − βAᵀA, I/β)         τβ‖A‖² < 1
`LinearisedADMM`      (Z, E, λ)            diag(I/τ − βAᵀA, βI, I/β)     τβ‖A‖² < 1
`PDHG`                (x, y)               [[I/τ, −Kᵀ], [−K, I/σ]]       τσ‖K‖² < 1
`Blockwise`           a tuple              block diagonal                parts' own
`Compose`, `Relax`    as the parts         as the parts                  parts' own
====================  ===================  ============================  ===============

States are `(B, ...)` tensors or tuples of them; a plain function serves as an operator whose metric is taken to be I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from twofold.solve.linear import (
    Blocks,
    Euclidean,
    Metric,
    Number,
    Scaled,
    metric_norm,
    require_within,
)
from twofold.solve.params import SolveError, State, axpy, leaves, minus, norm, pull, rebuild, scale, tensors

Prox = Callable[[Tensor, Number], Tensor]
"""prox(v, t) = argmin_u g(u) + ‖u − v‖² / (2 t); `t` is a number or broadcasts against `v`."""


class Operator(Protocol):
    """u ↦ T(u). An operator may carry a `metric`; without one it is taken to be non-expansive in the Euclidean
    norm."""

    def __call__(self, u: State, /) -> State: ...


def metric_of(operator: Operator) -> Metric:
    """The metric that an operator carries, else the Euclidean one.

    >>> metric_of(lambda u: u)
    Euclidean()
    """
    metric: Metric = getattr(operator, "metric", Euclidean())
    return metric


def stretch(operator: Operator, p: State, q: State, *, metric: Metric | None = None) -> Tensor:
    """‖T(p) − T(q)‖ / ‖p − q‖ for each sample, `(B,)`, in the operator's metric or in the one given.

    >>> stretch(lambda u: 0.5 * u, torch.tensor([[2.0]]), torch.tensor([[0.0]]))
    tensor([0.5000])
    """
    metric = metric_of(operator) if metric is None else metric
    after = metric_norm(metric, minus(operator(p), operator(q)), per_sample=True)
    return after / metric_norm(metric, minus(p, q), per_sample=True)


def contraction_factor(
    operator: Operator, at: State, *, steps: int = 60, generator: torch.Generator | None = None
) -> Tensor:
    """The spectral radius of the Jacobian of T at a state, a scalar, estimated by power iteration.

    Near its fixed point the iteration u ← T(u) gains this factor a step in the long run: below 1 it contracts
    there, in some norm. The mean growth over the second half of the steps is taken, which also serves complex
    eigenvalues. One product with the Jacobian a step. generator: for the start; None takes torch's global one.

    >>> halves = torch.tensor([[0.5, 1.0], [0.0, 0.25]])
    >>> round(contraction_factor(lambda u: u @ halves, torch.ones(1, 2)).item(), 2)
    0.5
    """
    with torch.enable_grad():
        u = leaves(at)
        image = tensors(operator(u))
    draw = [torch.randn(t.shape, generator=generator, dtype=t.dtype, device="cpu").to(t.device) for t in tensors(at)]
    v, growth = rebuild(at, draw), []
    for _ in range(steps):
        v = scale(1 / norm(v).clamp_min(1e-30), v)
        v = rebuild(at, pull(image, tensors(u), tensors(v), retain_graph=True))
        growth.append(norm(v))
    return torch.stack(growth[steps // 2 :]).clamp_min(1e-30).log().mean().exp()


def unit_interval(raw: Tensor, *, high: float = 0.99) -> Tensor:
    """An unconstrained number as one in (0, high): high · sigmoid(raw).

    >>> unit_interval(torch.tensor(0.0), high=1.0)
    tensor(0.5000)
    """
    return high * torch.sigmoid(raw)


def positive(raw: Tensor) -> Tensor:
    """Unconstrained numbers as positive ones, elementwise: softplus(raw).

    >>> round(positive(torch.tensor(0.5413)).item(), 3)
    1.0
    """
    return torch.nn.functional.softplus(raw)


def soft_threshold(v: Tensor, threshold: Number) -> Tensor:
    """The proximal step of the l1 norm, elementwise: every entry moves towards 0 by the threshold and stops there.

    >>> soft_threshold(torch.tensor([3.0, -0.5, -2.0]), 1.0)
    tensor([ 2., -0., -1.])
    """
    return v.sign() * (v.abs() - threshold).relu()


def no_prox(v: Tensor, step: Number) -> Tensor:
    """The proximal step of g = 0: `v`, of any shape, as it is.

    >>> no_prox(torch.tensor([1.0]), 0.1)
    tensor([1.])
    """
    return v


@dataclass(frozen=True, eq=False)
class ProximalGradient:
    """u ← prox_{s g}(u − s ∇f(u)), s = fraction · 2 / L: ISTA for g = ‖·‖₁, gradient descent for g = 0.

    gradient: ∇f of a convex f. smoothness: L, the Lipschitz constant of ∇f; or a tensor that broadcasts against the
    state, one L a coordinate with ∇²f ≼ diag(L), which preconditions the step (g must then be separable) and makes
    the metric diag(1/s). fraction: in (0, 1).

    Averaged for every fraction below 1; a contraction where f is strongly convex.

    >>> T = ProximalGradient(lambda u: u - 3.0, smoothness=1.0, fraction=0.5)      # f = ½ (u − 3)², s = 1
    >>> T(torch.zeros(1, 1))
    tensor([[3.]])
    """

    gradient: Callable[[Tensor], Tensor]
    smoothness: Number
    fraction: Number = 0.5
    prox: Prox = no_prox

    def __post_init__(self) -> None:
        require_within(self.fraction, low=0, high=1, name="fraction")
        require_within(self.smoothness, low=0, name="smoothness")

    @property
    def step(self) -> Number:
        """s."""
        return 2 * self.fraction / self.smoothness

    @property
    def metric(self) -> Metric:
        preconditioned = isinstance(self.step, Tensor) and self.step.ndim > 0
        return Scaled(1 / self.step) if preconditioned else Euclidean()

    def __call__(self, u: Tensor) -> Tensor:
        return self.prox(u - self.step * self.gradient(u), self.step)


@dataclass(frozen=True, eq=False)
class DenoiserStep:
    """u ↦ (1 − weight) u + weight · net(u): non-expansive where the net is 1-Lipschitz, averaged for weight < 1.

    net: `(B, ...)` to the same shape; whether it is 1-Lipschitz is not checked (measure with `stretch`).
    weight: in (0, 1].

    >>> DenoiserStep(torch.zeros_like, weight=0.25)(torch.tensor([4.0]))
    tensor([3.])
    """

    net: Callable[[Tensor], Tensor]
    weight: Number = 0.5
    metric: Metric = field(default=Euclidean(), init=False)

    def __post_init__(self) -> None:
        require_within(self.weight, low=0, high=1, closed=True, name="weight")

    def __call__(self, u: Tensor) -> Tensor:
        return u + self.weight * (self.net(u) - u)


@dataclass(frozen=True, eq=False)
class Blockwise:
    """One operator for each tensor of a tuple; None leaves a tensor as it is.

    >>> Blockwise((lambda u: 2 * u, None))((torch.ones(1), torch.ones(1)))
    (tensor([2.]), tensor([1.]))
    """

    operators: tuple[Operator | None, ...]

    @property
    def metric(self) -> Metric:
        metrics = tuple(Euclidean() if o is None else metric_of(o) for o in self.operators)
        return Euclidean() if all(m == Euclidean() for m in metrics) else Blocks(metrics)

    def __call__(self, u: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(v if o is None else o(v) for o, v in zip(self.operators, u, strict=True))


@dataclass(frozen=True, eq=False)
class Compose:
    """Applies `parts` from first to last. Non-expansive maps compose to one only if they share their metric.

    metric: yours to state where the parts' metrics differ and you know one that serves them all.

    Raises: SolveError where the parts' metrics differ and none is given.

    >>> Compose((lambda u: u + 1, lambda u: 2 * u))(torch.tensor([1.0]))
    tensor([4.])
    """

    parts: tuple[Operator, ...]
    metric: Metric = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.metric is None:
            metrics = [metric_of(part) for part in self.parts]
            if any(m is not metrics[0] and m != metrics[0] for m in metrics):
                names = ", ".join(type(m).__name__ for m in metrics)
                raise SolveError(
                    f"the parts are non-expansive in different metrics ({names}), so nothing is known of their "
                    "composition; pass metric= if you know one that serves them all"
                )
            object.__setattr__(self, "metric", metrics[0])

    def __call__(self, u: State) -> State:
        for part in self.parts:
            u = part(u)
        return u


@dataclass(frozen=True, eq=False)
class Relax:
    """T(u) = u + amount (D(u) − u), Krasnoselskii-Mann: same fixed points, averaged for amount in (0, 1).

    >>> Relax(lambda u: -u, 0.5)(torch.tensor([3.0]))             # a rotation by 180° never settles; relaxed it does
    tensor([0.])
    """

    operator: Operator
    amount: Number

    def __post_init__(self) -> None:
        require_within(self.amount, low=0, high=1, closed=True, name="amount")

    @property
    def metric(self) -> Metric:
        return metric_of(self.operator)

    def __call__(self, u: State) -> State:
        return axpy(self.amount, self.operator(u), scale(1 - self.amount, u))
