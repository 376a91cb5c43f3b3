"""Products with the second derivatives of the lower loss: exact, or by differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twofold.solve.evaluator import Evaluator
from twofold.solve.params import (
    SolveError,
    State,
    axpy,
    dot,
    filled,
    leaves,
    norm,
    pull,
    rebuild,
    require_seen,
    slopes,
    tensors,
)


class Products(Protocol):
    """Second derivatives of the lower loss f at one point (w, u).

    gradient: ∇_u f, a tree like u. hessian: v ↦ ∇²_uu f v, both like u. mixed: v like u ↦ ∂_w ⟨∇_u f, v⟩, one tensor
    for each tensor of w; SolveError where f's gradient does not depend on w.
    """

    def gradient(self) -> State: ...
    def hessian(self, v: State) -> State: ...
    def mixed(self, v: State) -> list[Tensor]: ...


class Cross(Protocol):
    """How products with second derivatives are taken. at: makes them at a point; run counts the evaluations."""

    def at(self, run: Evaluator, w: State, u: State) -> Products: ...


@dataclass(frozen=True)
class Exact:
    """Double backward through one gradient's graph, which is built once and kept: exact, for losses that allow it.

    torch's fused attention and compiled functions have no double backward; there, take `CentralDifference`.

    >>> from twofold.solve.dynamics import Bilevel
    >>> run = Evaluator(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u**3))
    >>> products = Exact().at(run, torch.tensor(2.0), torch.tensor(3.0))
    >>> products.hessian(torch.tensor(1.0)).item(), products.mixed(torch.tensor(1.0))[0].item()      # 6 w u, 3 u²
    (36.0, 27.0)
    """

    def at(self, run: Evaluator, w: State, u: State) -> Products:
        return _ExactProducts(run, w, u)


EXACT = Exact()


@dataclass(frozen=True)
class CentralDifference:
    """(∇f(u + εv) − ∇f(u − εv)) / 2ε with ε = radius / ‖v‖ (Liu, Simonyan and Yang 2019): two gradients,
    no graph.

    radius: how far the lower parameters are moved, in the Euclidean norm; None takes the cube root of the precision,
    0.005 in float32, where rounding and curvature err alike for parameters and losses of order 1. About three digits
    in float32: prefer `Exact` where double backward works.

    >>> from twofold.solve.dynamics import Bilevel
    >>> run = Evaluator(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u**3))
    >>> w, u = torch.tensor([2.0, 3.0], dtype=torch.float64)
    >>> products = CentralDifference().at(run, w, u)
    >>> round(products.hessian(torch.tensor(1.0)).item(), 3)                                        # 6 w u
    36.0
    """

    radius: float | None = None

    def at(self, run: Evaluator, w: State, u: State) -> Products:
        return _DifferenceProducts(run, w, u, self.radius)


@dataclass(frozen=True)
class ForwardDifference:
    """(∇f(u + εv) − ∇f(u)) / ε with ε = radius / ‖v‖, for `OneStepUnrolled(step, ForwardDifference())`.

    ∇f(u) is known from the step itself, so a hypergradient takes three gradients where `CentralDifference` takes
    four. Its error is of first order in ε instead of second. In float32 rounding is the larger one, for either (about
    a tenth on the supernet, of a product that is a hundredth of the gradient in α): prefer `Exact` where memory
    allows.

    radius: how far the lower parameters are moved, in the Euclidean norm; None takes 0.01 in float32.

    >>> from twofold.solve import Bilevel, OneStepUnrolled, hypergradient
    >>> problem = Bilevel(lambda w, u: (u - 1).square().sum(), lambda w, u: (u - w).square().sum() / 2)
    >>> w, u = torch.tensor([3.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    >>> hypergradient(problem, w, u, strategy=OneStepUnrolled(0.5, ForwardDifference())).gradient.round(decimals=4)
    tensor([0.5000], dtype=torch.float64)
    """

    radius: float | None = None

    def at(self, run: Evaluator, w: State, u: State) -> Products:
        return _ForwardProducts(run, w, u, self.radius)


class _ExactProducts:
    def __init__(self, run: Evaluator, w: State, u: State) -> None:
        self.run, self.w, self.u = run, leaves(w), leaves(u)
        found = slopes(run.lower(self.w, self.u), tensors(self.u), create_graph=True)
        require_seen(found, "the lower loss", "the lower parameters")
        self._gradient = filled(found, tensors(self.u))

    def gradient(self) -> State:
        return rebuild(self.u, self._gradient)

    def hessian(self, v: State) -> State:
        self.run.products += 1
        return rebuild(self.u, pull(self._gradient, tensors(self.u), tensors(v), retain_graph=True))

    def mixed(self, v: State) -> list[Tensor]:
        self.run.products += 1
        found = slopes(self._gradient, tensors(self.w), tensors(v))
        require_mixed(found)
        return filled(found, tensors(self.w))


class _DifferenceProducts:
    def __init__(self, run: Evaluator, w: State, u: State, radius: float | None) -> None:
        self.run, self.w, self.u = run, w, u
        self.radius = torch.finfo(tensors(u)[0].dtype).eps ** (1 / 3) if radius is None else radius
        self.known: tuple[float, State] | None = None

    def gradient(self) -> State:
        value, found = self._in_u(self.u)
        self.known = value, rebuild(self.u, found)
        return self.known[1]

    def hessian(self, v: State) -> State:
        return rebuild(self.u, self._difference(self._in_u, v))

    def mixed(self, v: State) -> list[Tensor]:
        return self._difference(self._in_w, v)

    def _in_u(self, u: State) -> tuple[float, list[Tensor]]:
        u = leaves(u)
        value = self.run.lower(self.w, u)
        found = slopes(value, tensors(u))
        require_seen(found, "the lower loss", "the lower parameters")
        return float(value.detach()), filled(found, tensors(u))

    def _in_w(self, u: State) -> tuple[float, list[Tensor]]:
        w = leaves(self.w)
        value = self.run.lower(w, u)
        found = slopes(value, tensors(w))
        require_mixed(found)
        return float(value.detach()), filled(found, tensors(w))

    def _difference(self, at: Callable[[State], tuple[float, list[Tensor]]], v: State) -> list[Tensor]:
        e = self.radius / float(norm(v).clamp_min(1e-30))
        high, ahead = at(axpy(e, v, self.u))
        low, behind = at(axpy(-e, v, self.u))
        if self.known is not None:
            self._require_one_function(high, low, e * float(dot(self.known[1], v)))
        return [(a - b) / (2 * e) for a, b in zip(ahead, behind, strict=True)]

    def _require_one_function(self, high: float, low: float, slope: float) -> None:
        """The three values of the loss must fit a parabola with the known slope, up to a quarter of what slope and
        curvature make of them: they cost nothing here, and those of three different batches do not."""
        middle = self.known[0] if self.known is not None else 0.0
        odd, even = (high - low) / 2 - slope, (high + low) / 2 - middle
        rounding = 1000 * torch.finfo(tensors(self.u)[0].dtype).eps * abs(middle)
        if abs(odd) > 0.25 * (abs(slope) + abs(even)) + rounding:
            raise SolveError(
                f"three values of the lower loss within {self.radius:.1e} fit no parabola ({low:.6g}, {middle:.6g}, "
                f"{high:.6g}): is there a data loader or a counter inside it? Draw batches once, outside; or take a "
                "smaller radius, or Exact, if it is that rough"
            )


class _ForwardProducts:
    def __init__(self, run: Evaluator, w: State, u: State, radius: float | None) -> None:
        self.run, self.w, self.u = run, w, u
        self.radius = 2 * torch.finfo(tensors(u)[0].dtype).eps ** (1 / 3) if radius is None else radius
        w, u = leaves(w), leaves(u)
        found = slopes(run.lower(w, u), tensors(w) + tensors(u))
        in_w, in_u = found[: len(tensors(w))], found[len(tensors(w)) :]
        require_seen(in_u, "the lower loss", "the lower parameters")
        require_mixed(in_w)
        self.in_w, self.in_u = filled(in_w, tensors(w)), filled(in_u, tensors(u))

    def gradient(self) -> State:
        return rebuild(self.u, self.in_u)

    def hessian(self, v: State) -> State:
        raise SolveError("a forward difference is for one unrolled step; take CentralDifference or Exact for this one")

    def mixed(self, v: State) -> list[Tensor]:
        e = self.radius / float(norm(v).clamp_min(1e-30))
        w = leaves(self.w)
        ahead = pull(self.run.lower(w, axpy(e, v, self.u)), tensors(w))
        return [(a - b) / e for a, b in zip(ahead, self.in_w, strict=True)]


def require_mixed(found: list[Tensor | None]) -> None:
    """Raises SolveError where every slope (tensors of any shape) is None: the lower level does not depend on the upper
    parameters.

    >>> require_mixed([None])
    Traceback (most recent call last):
    twofold.solve.params.SolveError: the lower loss's gradient does not depend on the upper parameters, so nothing flows
    through the lower level; is its term in them detached or missing? Where that is meant, take FirstOrder
    """
    if all(slope is None for slope in found):
        raise SolveError(
            "the lower loss's gradient does not depend on the upper parameters, so nothing flows through the lower "
            "level; is its term in them detached or missing? Where that is meant, take FirstOrder"
        )
