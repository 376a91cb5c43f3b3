"""The losses of one hypergradient under way, counted and watched, and products with the lower loss's second
derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twofold.solve.dynamics import Bilevel, Dynamics
from twofold.solve.params import (
    TRAINING_BATCH_NORM,
    SolveError,
    State,
    axpy,
    detach,
    leaves,
    norm,
    pull,
    rebuild,
    tensors,
)


class Run:
    """One hypergradient under way: the problem's losses, counted, and watched for BatchNorm at their first
    evaluation.

    >>> run = Run(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u**2))
    >>> run.lower(torch.tensor(2.0), torch.tensor(3.0)).item(), run.lower_evaluations
    (18.0, 1)
    """

    def __init__(self, problem: Bilevel) -> None:
        self.lower_evaluations = self.upper_evaluations = self.products = 0
        self.residual: float | None = None
        self._given = problem
        self.problem = Bilevel(self.upper, None if problem.lower is None else self.lower)

    def upper(self, w: State, u: State) -> Tensor:
        self.upper_evaluations += 1
        if self.upper_evaluations > 1:
            return self._given.upper(w, u)
        with _NoTrainingBatchNorm():
            return self._given.upper(w, u)

    def lower(self, w: State, u: State) -> Tensor:
        if self._given.lower is None:
            raise SolveError("this strategy differentiates the lower loss, and the problem has none (lower=None)")
        self.lower_evaluations += 1
        if self.lower_evaluations > 1:
            return self._given.lower(w, u)
        with _NoTrainingBatchNorm():
            return self._given.lower(w, u)

    def advance(self, dynamics: Dynamics, w: State, u: State, steps: int) -> State:
        """The lower parameters after some steps; no graph."""
        with torch.no_grad():
            state = dynamics.begin(u)
            for k in range(steps):
                state = dynamics.step(self.problem, k, w, state)
        return detach(dynamics.params(state))

    def upper_gradients(self, w: State, u: State) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The upper loss and its gradients in w and in u, both fixed."""
        w, u = leaves(w), leaves(u)
        value = self.upper(w, u)
        grads = pull(value, tensors(w) + tensors(u))
        return value, grads[: len(tensors(w))], grads[len(tensors(w)) :]


class Products(Protocol):
    """Second derivatives of the lower loss at one point: ∇_u f, v ↦ ∇²_uu f v, v ↦ ∂_w ⟨∇_u f, v⟩."""

    def gradient(self) -> State: ...
    def hessian(self, v: State) -> State: ...
    def mixed(self, v: State) -> list[Tensor]: ...


class Cross(Protocol):
    def at(self, run: Run, w: State, u: State) -> Products: ...


@dataclass(frozen=True)
class Exact:
    """Double backward through one gradient's graph, which is built once and kept: exact, for losses that allow it.

    torch's fused attention and compiled functions have no double backward; there, take `CentralDifference`.

    >>> run = Run(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u**3))
    >>> products = Exact().at(run, torch.tensor(2.0), torch.tensor(3.0))
    >>> products.hessian(torch.tensor(1.0)).item(), products.mixed(torch.tensor(1.0))[0].item()      # 6 w u, 3 u²
    (36.0, 27.0)
    """

    def at(self, run: Run, w: State, u: State) -> Products:
        return _ExactProducts(run, w, u)


EXACT = Exact()


@dataclass(frozen=True)
class CentralDifference:
    """(∇f(u + εv) − ∇f(u − εv)) / 2ε with ε = radius / ‖v‖ (Liu, Simonyan and Yang 2019, eq. 8): two gradients,
    no graph.

    radius: how far the lower parameters are moved, in the Euclidean norm; None takes the cube root of the precision,
    0.005 in float32, where rounding and curvature err alike for parameters and losses of order 1. About three digits
    in float32: prefer `Exact` where double backward works.

    >>> run = Run(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u**3))
    >>> w, u = torch.tensor([2.0, 3.0], dtype=torch.float64)
    >>> products = CentralDifference().at(run, w, u)
    >>> round(products.hessian(torch.tensor(1.0)).item(), 3)                                        # 6 w u
    36.0
    """

    radius: float | None = None

    def at(self, run: Run, w: State, u: State) -> Products:
        return _DifferenceProducts(run, w, u, self.radius)


class _ExactProducts:
    def __init__(self, run: Run, w: State, u: State) -> None:
        self.run, self.w, self.u = run, leaves(w), leaves(u)
        self._gradient = pull(run.lower(self.w, self.u), tensors(self.u), create_graph=True)

    def gradient(self) -> State:
        return rebuild(self.u, self._gradient)

    def hessian(self, v: State) -> State:
        self.run.products += 1
        return rebuild(self.u, pull(self._gradient, tensors(self.u), tensors(v), retain_graph=True))

    def mixed(self, v: State) -> list[Tensor]:
        self.run.products += 1
        return pull(self._gradient, tensors(self.w), tensors(v))


class _DifferenceProducts:
    def __init__(self, run: Run, w: State, u: State, radius: float | None) -> None:
        self.run, self.w, self.u = run, w, u
        self.radius = torch.finfo(tensors(u)[0].dtype).eps ** (1 / 3) if radius is None else radius

    def gradient(self) -> State:
        u = leaves(self.u)
        return rebuild(self.u, pull(self.run.lower(self.w, u), tensors(u)))

    def hessian(self, v: State) -> State:
        def at(u: State) -> list[Tensor]:
            u = leaves(u)
            return pull(self.run.lower(self.w, u), tensors(u))

        return rebuild(self.u, self._difference(at, v))

    def mixed(self, v: State) -> list[Tensor]:
        def at(u: State) -> list[Tensor]:
            w = leaves(self.w)
            return pull(self.run.lower(w, u), tensors(w))

        return self._difference(at, v)

    def _difference(self, at: Callable[[State], list[Tensor]], v: State) -> list[Tensor]:
        e = self.radius / float(norm(v).clamp_min(1e-30))
        ahead, behind = at(axpy(e, v, self.u)), at(axpy(-e, v, self.u))
        return [(a - b) / (2 * e) for a, b in zip(ahead, behind, strict=True)]


class _NoTrainingBatchNorm(TorchFunctionMode):
    """Refuses a batch_norm call that would write running statistics."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "batch_norm":
            # torch.batch_norm(input, weight, bias, running_mean, running_var, training, ...) has them at 3 and 5,
            # torch.nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, ...) at 1
            # and 5.
            mean = kwargs.get(
                "running_mean", args[3] if func is torch.batch_norm else args[1] if len(args) > 1 else None
            )
            training = kwargs.get("training", args[5] if len(args) > 5 else False)
            if training and mean is not None:
                raise SolveError(f"a loss runs BatchNorm in training mode, which {TRAINING_BATCH_NORM}")
        return func(*args, **kwargs)
