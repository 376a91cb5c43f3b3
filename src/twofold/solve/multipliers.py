"""Operators with multipliers: min f(u) subject to A u = target, by primal and dual steps.

All of them are non-expansive in a metric that couples or weighs the primal and the dual part, and in general
*expansive* in the Euclidean norm: measure them with their own `metric`, and take a leader's descent step in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from twofold.solve.linear import Blocks, Linearised, LinearMap, Metric, Number, PrimalDual, Scaled, require_within
from twofold.solve.operators import Prox


@dataclass(frozen=True, eq=False)
class ProximalALM:
    """Augmented Lagrangian steps for min f(u) subject to A u = target, with the proximal term w/2 ‖u − u_k‖².

    u ← argmin_u f(u) + β/2 ‖A u‖² + w/2 ‖u‖² − ⟨w u_k + Aᵀ(β target − λ), u⟩;  λ ← λ + β (A u − target).

    argmin: solves the line above: q ↦ argmin_u f(u) + β/2 ‖Au‖² + w/2 ‖u‖² − ⟨q, u⟩; it must use the same β and w.
    Where that is no closed form, take `LinearisedALM`. State: (u, λ).

    >>> import torch
    >>> identity = LinearMap(lambda u: u, lambda u: u, 1.0)
    >>> T = ProximalALM(lambda q: q / 3, identity, torch.tensor([[3.0]]), penalty=1.0, weight=1.0)   # f = ½ u²
    >>> T((torch.zeros(1, 1), torch.zeros(1, 1)))
    (tensor([[1.]]), tensor([[-2.]]))
    """

    argmin: Callable[[Tensor], Tensor]
    linear: LinearMap
    target: Tensor
    penalty: Number
    weight: Number

    def __post_init__(self) -> None:
        require_within(self.penalty, low=0, name="penalty")
        require_within(self.weight, low=0, name="weight")

    @property
    def metric(self) -> Metric:
        return Blocks((Scaled(self.weight), Scaled(1 / self.penalty)))

    def __call__(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        u, multiplier = state
        pull = self.linear.adjoint(self.penalty * self.target - multiplier)
        u = self.argmin(self.weight * u + pull)
        return u, multiplier + self.penalty * (self.linear.forward(u) - self.target)


class _LinearisedStep:
    """The step τ = fraction / (β‖A‖²) of a linearised block, and the checks of what it is made of."""

    linear: LinearMap
    penalty: Number
    fraction: Number

    def __post_init__(self) -> None:
        require_within(self.penalty, low=0, name="penalty")
        require_within(self.fraction, low=0, high=1, name="fraction")

    @property
    def step(self) -> Number:
        return self.fraction / (self.penalty * self.linear.norm**2)


@dataclass(frozen=True, eq=False)
class LinearisedALM(_LinearisedStep):
    """Augmented Lagrangian steps for min f(u) subject to A u = target that only need the prox of f.

    u ← prox_{τf}(u − τAᵀ(λ + β(Au − target)));  λ ← λ + β(Au − target);  τ = fraction / (β‖A‖²).

    Non-expansive in G = diag(I/τ − βAᵀA, I/β) and *not* in the Euclidean norm. State: (u, λ). penalty: β > 0.
    fraction: in (0, 1).

    >>> import torch
    >>> from twofold.solve.linear import matrix_map
    >>> from twofold.solve.operators import soft_threshold
    >>> T = LinearisedALM(soft_threshold, matrix_map(torch.eye(1)), torch.tensor([[3.0]]), fraction=0.5)
    >>> T((torch.zeros(1, 1), torch.zeros(1, 1)))
    (tensor([[1.]]), tensor([[-2.]]))
    """

    prox: Prox
    linear: LinearMap
    target: Tensor
    penalty: Number = 1.0
    fraction: Number = 0.99

    @property
    def metric(self) -> Metric:
        return Blocks((Linearised(self.linear, self.step, self.penalty), Scaled(1 / self.penalty)))

    def __call__(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        u, multiplier = state
        price = multiplier + self.penalty * (self.linear.forward(u) - self.target)
        u = self.prox(u - self.step * self.linear.adjoint(price), self.step)
        return u, multiplier + self.penalty * (self.linear.forward(u) - self.target)


@dataclass(frozen=True, eq=False)
class LinearisedADMM(_LinearisedStep):
    """Two-block steps for min f(Z) + g(E) subject to A Z + E = target: Z linearised, E exact, then the multiplier.

    Z ← prox_{τf}(Z − τAᵀ(λ + β(AZ + E − X)));  E ← prox_{g/β}(X − AZ − λ/β);  λ ← λ + β(AZ + E − X);
    τ = fraction / (β‖A‖²). With f = α‖·‖₁ and g = ‖·‖₁ it is the model behind D-LADMM (Xie et al. 2019).

    Non-expansive in G = diag(I/τ − βAᵀA, βI, I/β). State: (Z, E, λ).

    >>> import torch
    >>> from twofold.solve.linear import matrix_map
    >>> from twofold.solve.operators import soft_threshold
    >>> identity = matrix_map(torch.eye(1))
    >>> T = LinearisedADMM(soft_threshold, soft_threshold, identity, torch.tensor([[6.0]]), fraction=0.5)
    >>> T((torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1)))
    (tensor([[2.5000]]), tensor([[2.5000]]), tensor([[-1.]]))
    """

    prox: Prox
    prox_error: Prox
    linear: LinearMap
    target: Tensor
    penalty: Number = 1.0
    fraction: Number = 0.99

    @property
    def metric(self) -> Metric:
        first = Linearised(self.linear, self.step, self.penalty)
        return Blocks((first, Scaled(self.penalty), Scaled(1 / self.penalty)))

    def __call__(self, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        code, error, multiplier = state
        price = multiplier + self.penalty * (self.linear.forward(code) + error - self.target)
        code = self.prox(code - self.step * self.linear.adjoint(price), self.step)
        missing = self.target - self.linear.forward(code)
        error = self.prox_error(missing - multiplier / self.penalty, 1 / self.penalty)
        return code, error, multiplier + self.penalty * (error - missing)


@dataclass(frozen=True, eq=False)
class PDHG:
    """Primal-dual steps (Chambolle and Pock 2011) for min_x f(x) + g(K x).

    x⁺ = prox_{τf}(x − τKᵀy);  y⁺ = prox_{σg*}(y + σK(2x⁺ − x));
    τ = √fraction · ratio / ‖K‖;  σ = √fraction / (ratio ‖K‖).

    prox_dual: the prox of the convex conjugate g*. ratio: > 0, shifts effort from the dual to the primal step.
    State: (x, y).

    >>> import torch
    >>> from twofold.solve.linear import matrix_map
    >>> from twofold.solve.operators import no_prox
    >>> T = PDHG(no_prox, no_prox, matrix_map(torch.eye(1)), fraction=0.25)
    >>> T((torch.tensor([[1.0]]), torch.tensor([[2.0]])))                        # τ = σ = ½
    (tensor([[0.]]), tensor([[1.5000]]))
    """

    prox: Prox
    prox_dual: Prox
    linear: LinearMap
    fraction: Number = 0.99
    ratio: Number = 1.0

    def __post_init__(self) -> None:
        require_within(self.fraction, low=0, high=1, name="fraction")
        require_within(self.ratio, low=0, name="ratio")

    @property
    def step(self) -> Number:
        """τ."""
        return self.fraction**0.5 * self.ratio / self.linear.norm

    @property
    def dual_step(self) -> Number:
        """σ."""
        return self.fraction**0.5 / (self.ratio * self.linear.norm)

    @property
    def metric(self) -> Metric:
        return PrimalDual(self.linear, self.step, self.dual_step)

    def __call__(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = state
        fresh = self.prox(x - self.step * self.linear.adjoint(y), self.step)
        return fresh, self.prox_dual(y + self.dual_step * self.linear.forward(2 * fresh - x), self.dual_step)
