"""A product with second derivatives at the cost of one gradient, by a forward difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.solve.evaluator import Evaluator
from twofold.solve.params import SolveError, State, axpy, leaves, norm, pull, rebuild, tensors
from twofold.solve.second_order import Products


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


class _ForwardProducts:
    def __init__(self, run: Evaluator, w: State, u: State, radius: float | None) -> None:
        self.run, self.w, self.u = run, w, u
        self.radius = 2 * torch.finfo(tensors(u)[0].dtype).eps ** (1 / 3) if radius is None else radius
        w, u = leaves(w), leaves(u)
        gradients = pull(run.lower(w, u), tensors(w) + tensors(u))
        self.in_w, self.in_u = gradients[: len(tensors(w))], gradients[len(tensors(w)) :]

    def gradient(self) -> State:
        return rebuild(self.u, self.in_u)

    def hessian(self, v: State) -> State:
        raise SolveError("a forward difference is for one unrolled step; take CentralDifference or Exact for this one")

    def mixed(self, v: State) -> list[Tensor]:
        e = self.radius / float(norm(v).clamp_min(1e-30))
        w = leaves(self.w)
        ahead = pull(self.run.lower(w, axpy(e, v, self.u)), tensors(w))
        return [(a - b) / e for a, b in zip(ahead, self.in_w, strict=True)]
