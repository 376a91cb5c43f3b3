"""The losses of one hypergradient under way, counted and watched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twofold.solve.dynamics import Bilevel, Dynamics
from twofold.solve.params import TRAINING_BATCH_NORM, SolveError, State, detach, leaves, pull, tensors


class Evaluator:
    """One hypergradient under way: the problem's losses, counted, and watched for BatchNorm at their first
    evaluation.

    >>> run = Evaluator(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u**2))
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
