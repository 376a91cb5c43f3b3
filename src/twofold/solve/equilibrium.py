"""What equilibrium networks use beside Anderson's acceleration and implicit adjoints: Broyden's method, phantom
gradients, and a penalty that keeps the Jacobian small.

`Broyden` is a solver and `PhantomGradient` an adjoint of `fixed_point`; `jacobian_penalty` is a term of the training
loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.solve.linear import flattened, unflattened
from twofold.solve.operators import Operator
from twofold.solve.params import SolveError, State, axpy, detach, dot, leaves, minus, rebuild, tensors
from twofold.solve.solvers import Solution, Solver, iterate


@dataclass(frozen=True)
class PhantomGradient:
    """Solves without a graph, then takes `last` damped steps u ← u + damping (T(u) − u) with one (Geng et al. 2021):
    Neumann's series of `last` terms for the damped operator, whose Jacobian I + damping (J − I) can contract where J
    does not: for eigenvalues of J with real parts below 1 and a small enough damping.

    damping: in (0, 1]; 1 is `TruncatedAdjoint`. The gradient is biased by what `last` steps leave: (1 − damping (1 −
    λ))^last on an eigenvector of J of eigenvalue λ. The start gets no gradient.

    >>> from twofold.solve.solvers import KrasnoselskiiMann
    >>> a, many = torch.tensor(1.0, requires_grad=True), KrasnoselskiiMann(relaxation=1.0)
    >>> solution = PhantomGradient(2, damping=0.5).solve(lambda u: u / 2 + a, torch.zeros(1, 1), many, True)
    >>> round(torch.autograd.grad(solution.value, a)[0].item(), 4)                # 2 (1 − (3/4)²), the truth is 2
    0.875
    """

    last: int
    damping: float = 0.5

    def __post_init__(self) -> None:
        if self.last < 1 or not 0 < self.damping <= 1:
            raise SolveError(f"expected last ≥ 1 and damping in (0, 1], got {self.last} and {self.damping}")

    def solve(self, operator: Operator, start: State, solver: Solver, per_sample: bool) -> Solution:
        with torch.no_grad():
            solution = iterate(operator, start, solver=solver, per_sample=per_sample)
        u = detach(solution.value)
        for _ in range(self.last):
            u = axpy(self.damping, minus(operator(u), u), u)
        return solution._replace(value=u, steps=solution.steps + self.last)


def jacobian_penalty(operator: Operator, at: State, *, generator: torch.Generator, samples: int = 1) -> Tensor:
    """An unbiased estimate of ‖J‖²_F / n, J the Jacobian of the operator at a state of n numbers (Bai, Koltun and
    Kolter 2021): the mean of ‖εᵀJ‖² / n over random normal ε. Added to a loss with a small weight it keeps
    solves short.

    at: the solution, taken as constant. generator: of ε, on the CPU. samples: vectors drawn; one product each. The
    result can be differentiated in the operator's tensors, once.

    >>> A = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> draw = torch.Generator().manual_seed(0)
    >>> penalty = jacobian_penalty(lambda u: u @ A, torch.zeros(1, 2), generator=draw, samples=4000)
    >>> abs(penalty.item() - 12.5) < 1                                            # (9 + 16) / 2
    True
    """
    if samples < 1:
        raise SolveError(f"expected at least one sample, got {samples}")
    u = leaves(at)
    with torch.enable_grad():
        image = operator(u)
    count = sum(t.numel() for t in tensors(at))
    total = torch.zeros((), dtype=tensors(at)[0].dtype, device=tensors(at)[0].device)
    for _ in range(samples):
        drawn = [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in tensors(image)]
        found = torch.autograd.grad(
            tensors(image), tensors(u), drawn, create_graph=torch.is_grad_enabled(), retain_graph=True
        )
        total = total + dot(rebuild(u, list(found)), rebuild(u, list(found)))
    return total / (samples * count)


@dataclass(frozen=True)
class Broyden:
    """Broyden's first method on T(u) − u = 0 (Broyden 1965, in the form of the inverse, by Sherman and Morrison): a
    root finder, so it converges near fixed points that iteration runs away from. Each sample has its own approximation
    of the inverse Jacobian, of rank at most `memory`; when that is full it is restarted.

    growth: a step after which the residual has grown by more than this factor restarts the approximation with one
    plain step; memory: pairs kept, each as large as the state.

    >>> runaway = lambda u: 3 * u - 4                                              # fixed point 2, factor 3
    >>> found = iterate(runaway, torch.zeros(1, 1), solver=Broyden())
    >>> round(found.value.item(), 3), found.steps < 8
    (2.0, True)
    """

    steps: int = 200
    tolerance: float = 1e-5
    absolute: float = 1e-8
    memory: int = 20
    growth: float = 10.0

    def __post_init__(self) -> None:
        if self.memory < 1 or not self.growth > 1:
            raise SolveError(f"expected memory ≥ 1 and growth > 1, got {self.memory} and {self.growth}")

    def advance(self, u: State, image: State, residual: Tensor, memory: _Broyden | None) -> tuple[State, _Broyden]:
        rows = 1 if residual.ndim == 0 else len(residual)
        point, gap = flattened(u, rows), flattened(minus(image, u), rows)
        length = gap.norm(dim=1, keepdim=True)
        if memory is None or bool((length > self.growth * memory.length).any()) or len(memory.left) >= self.memory:
            memory = _Broyden([], [], point, gap, length)
        else:
            moved, changed = point - memory.point, gap - memory.gap
            image_of = memory.inverse(changed)  # H y
            transposed = memory.transposed(moved)  # Hᵀ s
            scale_ = (transposed * changed).sum(1, keepdim=True)
            safe = scale_.abs() > torch.finfo(gap.dtype).eps * moved.norm(dim=1, keepdim=True) ** 2
            left = torch.where(safe, (moved - image_of) / torch.where(safe, scale_, 1), torch.zeros_like(moved))
            memory = _Broyden([*memory.left, left], [*memory.right, transposed], point, gap, length)
        return unflattened(u, point - memory.inverse(gap)), memory


@dataclass(frozen=True)
class _Broyden:
    """H = −I + Σ left rightᵀ, an approximation of the inverse Jacobian of T(u) − u; the last point and its gap."""

    left: list[Tensor]
    right: list[Tensor]
    point: Tensor
    gap: Tensor
    length: Tensor

    def inverse(self, v: Tensor) -> Tensor:
        found = -v
        for left, right in zip(self.left, self.right, strict=True):
            found = found + left * (right * v).sum(1, keepdim=True)
        return found

    def transposed(self, v: Tensor) -> Tensor:
        found = -v
        for left, right in zip(self.left, self.right, strict=True):
            found = found + right * (left * v).sum(1, keepdim=True)
        return found
