"""Implicit hypergradients where the plain Hessian does not do: other linear solvers, other products, damping.

A network in training is at no strict minimum: its Hessian has negative eigenvalues, and conjugate gradients are right
to refuse. `Damped` lets three choices be made:

1. `linear`, how the equation is solved: `CG`, `MinRes` (indefinite), `GMRES` (anything), `NystromInverse` (few large
   eigenvalues).
2. `curvature`, which matrix: `FullHessian`, or `GaussNewton`, which is never indefinite.
3. `ridge`, what is added to its diagonal.

Only `FullHessian` with ridge 0 at a stationary point of the lower loss gives the exact hypergradient. There MinRes and
GMRES give it at saddle points too: the implicit function theorem asks for an invertible Hessian, not for a minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twofold.solve.adjoint_equation import Product
from twofold.solve.dynamics import BilevelLoss, Dynamics, require_dynamics, require_minimising
from twofold.solve.evaluator import Evaluator
from twofold.solve.implicit import SETTLED, Settled
from twofold.solve.krylov import gmres, minres, nystrom, refined
from twofold.solve.linear import CGResult, conjugate_gradient
from twofold.solve.params import SolveError, State, axpy, detach, filled, leaves, minus, norm, pull, rebuild, tensors
from twofold.solve.second_order import EXACT, Cross, Products


class HessianSolver(Protocol):
    """Solves (A + ridge) v = b, given v ↦ A v, on trees like b. tolerance: of ‖b − (A + ridge) v‖ / ‖b‖, which `Damped`
    checks."""

    @property
    def tolerance(self) -> float: ...
    def solve(self, apply: Product, b: State, ridge: float) -> CGResult: ...


@dataclass(frozen=True)
class CG:
    """Conjugate gradients: A + ridge must be positive definite.

    >>> A = torch.diag(torch.tensor([3.0, -1.0]))
    >>> CG().solve(lambda v: A @ v, torch.tensor([5.0, 1.0]), 2.0).value.round(decimals=4)
    tensor([1., 1.])
    """

    iterations: int = 100
    tolerance: float = 1e-4

    def solve(self, apply: Product, b: State, ridge: float) -> CGResult:
        return conjugate_gradient(_shifted(apply, ridge), b, steps=self.iterations, tolerance=self.tolerance / 2)


@dataclass(frozen=True)
class MinRes:
    """Minimum residuals (Paige and Saunders 1975): A + ridge may be indefinite, as at a saddle point.

    >>> A = torch.diag(torch.tensor([2.0, -4.0]))
    >>> MinRes().solve(lambda v: A @ v, torch.tensor([2.0, 4.0]), 0.0).value.round(decimals=4)
    tensor([ 1., -1.])
    """

    iterations: int = 200
    tolerance: float = 1e-4

    def solve(self, apply: Product, b: State, ridge: float) -> CGResult:
        return minres(_shifted(apply, ridge), b, steps=self.iterations, tolerance=self.tolerance)


@dataclass(frozen=True)
class GMRES:
    """Generalised minimum residuals (Saad and Schultz 1986), for products that are not quite symmetric, as those of
    `CentralDifference`. restart: vectors kept.

    >>> A = torch.diag(torch.tensor([2.0, -4.0]))
    >>> GMRES().solve(lambda v: A @ v, torch.tensor([2.0, 4.0]), 0.0).value.round(decimals=4)
    tensor([ 1., -1.])
    """

    iterations: int = 200
    tolerance: float = 1e-4
    restart: int = 30

    def solve(self, apply: Product, b: State, ridge: float) -> CGResult:
        found = gmres(_shifted(apply, ridge), b, steps=self.iterations, tolerance=self.tolerance, restart=self.restart)
        return found


@dataclass(frozen=True)
class NystromInverse:
    """The inverse of a low-rank approximation plus a ridge (Hataya and Yamada 2023), then `iterations` steps of
    conjugate gradients preconditioned with it (Frangella, Tropp and Udell 2023). It needs ridge > 0.

    rank: products for the approximation. seed: of its random vectors. With iterations=0 the number of products is
    fixed, and the tolerance has to be one that `rank` can meet.

    >>> A = torch.diag(torch.tensor([3.0, 0.0]))
    >>> NystromInverse(rank=1).solve(lambda v: A @ v, torch.tensor([5.0, 2.0]), 2.0).value.round(decimals=3)
    tensor([1., 1.])
    """

    rank: int
    iterations: int = 50
    tolerance: float = 1e-4
    seed: int = 0

    def solve(self, apply: Product, b: State, ridge: float) -> CGResult:
        if not ridge > 0:
            raise SolveError(f"an approximation of low rank has no inverse: expected ridge > 0, got {ridge}")
        generator = torch.Generator().manual_seed(self.seed)
        rough = nystrom(apply, b, rank=self.rank, ridge=ridge, generator=generator)
        shifted = _shifted(apply, ridge)
        found = refined(shifted, b, rough, steps=self.iterations, tolerance=self.tolerance)
        return found._replace(steps=found.steps + self.rank)


class Curvature(Protocol):
    """Which matrix stands for ∇²_uu f: v ↦ A v at one point, symmetric."""

    def at(self, run: Evaluator, w: State, u: State, products: Products) -> Product: ...


@dataclass(frozen=True)
class FullHessian:
    """∇²_uu f itself.

    >>> FullHessian() == FULL_HESSIAN
    True
    """

    def at(self, run: Evaluator, w: State, u: State, products: Products) -> Product:
        return products.hessian


FULL_HESSIAN = FullHessian()


@dataclass(frozen=True)
class GaussNewton:
    """Jᵀ (∇² of the loss in the network's outputs) J, J the Jacobian of the outputs in u (Schraudolph 2002): the
    Hessian without the curvature of the network, positive semi-definite for a convex loss.

    outputs: (upper parameters, lower parameters) → a tensor or a tree of them. loss: (upper parameters, outputs) →
    scalar, convex in the outputs. rest: the terms of the lower loss that are not of this form, as weight decay; their
    Hessian is added as it is. Together they must be the lower loss; that is checked at every point.

    >>> from twofold.solve import Bilevel, Exact, GradientDescent, hypergradient
    >>> half = lambda w, y: (y - w) ** 2 / 2
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: half(w, 2 * u))            # u(w) = w / 2
    >>> way = Damped(0, GradientDescent(0.1), curvature=GaussNewton(lambda w, u: 2 * u, half))
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(2.0), strategy=way).gradient.item()       # (w/2 − 1)
    1.0
    """

    outputs: Callable[[State, State], State]
    loss: Callable[[State, State], Tensor]
    rest: BilevelLoss | None = None

    def at(self, run: Evaluator, w: State, u: State, products: Products) -> Product:
        w, u = detach(w), leaves(u)
        with torch.enable_grad():
            made = self.outputs(w, u)
            y = leaves(made)
            value = self.loss(w, y)
            slope = pull(value, tensors(y), create_graph=True)
            dummy = [torch.zeros_like(t).requires_grad_() for t in tensors(made)]
            back = pull(tensors(made), tensors(u), dummy, create_graph=True)  # linear in dummy: its transpose is J
            rest = None if self.rest is None else self.rest(w, u)
            rest_slope = None if rest is None else pull(rest, tensors(u), create_graph=True)
            whole = run.lower(w, detach(u)).detach()
        given = value.detach() if rest is None else (value + rest).detach()
        if not torch.allclose(given, whole, rtol=1e-3, atol=1e-6):
            raise SolveError(
                f"outputs, loss and rest make {given.item():.6g} where the lower loss is {whole.item():.6g}: the "
                "Gauss-Newton matrix would be that of another problem; rest holds the terms that are not of the outputs"
            )

        def product(v: State) -> State:
            run.products += 1
            along = pull(back, dummy, tensors(v), retain_graph=True)
            curved = pull(slope, tensors(y), along, retain_graph=True)
            found = pull(tensors(made), tensors(u), curved, retain_graph=True)
            if rest_slope is not None:
                more = pull(rest_slope, tensors(u), tensors(v), retain_graph=True)
                found = [a + b for a, b in zip(found, more, strict=True)]
            return rebuild(u, found)

        return product


@dataclass(frozen=True)
class Damped:
    """∂_w F − ∂_w ⟨∇_u f, v⟩ with (A + ridge) v = ∂_u F, where A is ∇²_uu f or stands for it.

    steps, dynamics: how the lower level is approached first; 0 steps trust the parameters given. linear, curvature,
    ridge: see the module. What they change is a bias: on an eigenvector of curvature μ the response is multiplied by
    μ / (μ + ridge). settled: how near a stationary point the lower parameters must be; for a network in the middle of
    training it takes settled=Settled(relative=float("inf")), knowingly. `Cost.residual` is that of the damped equation.

    Raises: SolveError where `linear` misses its tolerance or refuses the matrix, and for dynamics that do not minimise
    the lower loss.

    >>> from twofold.solve import Bilevel, GradientDescent, hypergradient
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: -((u - w) ** 2) / 2)   # at its maximum
    >>> way = Damped(0, GradientDescent(0.5), linear=MinRes())                      # u = w all the same: 2 (w − 1)
    >>> hypergradient(problem, torch.tensor(4.0), torch.tensor(4.0), strategy=way).gradient.item()
    6.0
    """

    steps: int
    dynamics: Dynamics
    linear: HessianSolver = CG()
    curvature: Curvature = FULL_HESSIAN
    ridge: float = 0.0
    cross: Cross = EXACT
    settled: Settled = SETTLED

    def __post_init__(self) -> None:
        require_dynamics("Damped", self.steps, self.dynamics)
        if self.ridge < 0:
            raise SolveError(f"ridge must not be negative, got {self.ridge}")

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        require_minimising("Damped", self.dynamics)
        u = run.advance(self.dynamics, upper, lower, self.steps)
        value, seen, slopes = run.upper_gradients(upper, u)
        direct, b = rebuild(upper, filled(seen, tensors(upper))), rebuild(u, slopes)
        products = self.cross.at(run, upper, u)
        apply = self.curvature.at(run, upper, u, products)
        shifted = _shifted(apply, self.ridge)
        self.settled.check(  # with the equation that is solved here in the place of Newton's: it may be indefinite
            run,
            detach(products.gradient()),
            u,
            steps=self.steps,
            newton=lambda slope, count: float(norm(minres(shifted, slope, steps=count, tolerance=0.1).value)),
        )
        run.residual = 0.0
        size = float(norm(b))
        if size == 0:  # nothing to solve
            return value, direct, u
        found = self.linear.solve(apply, b, self.ridge)
        v = detach(found.value)
        run.residual = float(norm(minus(b, shifted(v)))) / size
        if not run.residual <= self.linear.tolerance:
            raise SolveError(
                f"{type(self.linear).__name__} left a relative residual of {run.residual:.1e} after {found.steps} "
                f"products, wanted {self.linear.tolerance:.0e}: the matrix is nearly singular where the upper loss "
                f"cares; take more iterations, a larger ridge than {self.ridge:g}, or differentiate with Unrolled"
            )
        return value, minus(direct, rebuild(upper, products.mixed(v))), u


def _shifted(apply: Product, ridge: float) -> Product:
    return (lambda v: axpy(ridge, v, apply(v))) if ridge else apply
