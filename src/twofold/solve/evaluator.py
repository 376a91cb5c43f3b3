"""The losses of one hypergradient under way, counted and watched."""

from __future__ import annotations

import torch
from torch import Tensor

from twofold.solve.dynamics import Bilevel, Dynamics
from twofold.solve.params import (
    SolveError,
    State,
    detach,
    filled,
    leaves,
    norm,
    over,
    rebuild,
    require_finite,
    require_seen,
    slopes,
    tensors,
)
from twofold.solve.watch import WatchedLoss

KINK = "its derivative is not finite there though its value is: is there a norm, a root or a logarithm at 0?"


class Evaluator:
    """One hypergradient under way: the problem's losses, counted and watched, and what was measured on the way.

    problem: the same problem with watched losses, for dynamics. products: with second derivatives, so far. residual:
    of the linear equation of an implicit strategy. lower_gradient, lower_distance: see `Cost`.

    >>> run = Evaluator(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u**2))
    >>> run.lower(torch.tensor(2.0), torch.tensor(3.0)).item(), run.lower_evaluations
    (18.0, 1)
    """

    def __init__(self, problem: Bilevel) -> None:
        self.products = 0
        self.residual: float | None = None
        self.lower_gradient: float | None = None
        self.lower_distance: float | None = None
        self.upper = WatchedLoss(problem.upper, "the upper loss")
        self._lower = None if problem.lower is None else WatchedLoss(problem.lower, "the lower loss")
        self.problem = Bilevel(self.upper, self._lower)

    @property
    def upper_evaluations(self) -> int:
        """How often the upper loss was evaluated."""
        return self.upper.evaluations

    @property
    def lower_evaluations(self) -> int:
        """How often the lower loss was evaluated."""
        return 0 if self._lower is None else self._lower.evaluations

    def lower(self, w: State, u: State) -> Tensor:
        """The lower loss, a scalar. Raises: SolveError where the problem has none."""
        if self._lower is None:
            raise SolveError("this strategy differentiates the lower loss, and the problem has none (lower=None)")
        return self._lower(w, u)

    def advance(self, dynamics: Dynamics, w: State, u: State, steps: int) -> State:
        """The lower parameters after some steps; no graph.

        Raises: SolveError where they are not finite, naming the step and what happened there.
        """
        with torch.no_grad():
            state = dynamics.begin(u)
            for k in range(steps):
                state = dynamics.step(self.problem, k, w, state)
        self.require_settling(dynamics, w, u, steps, state)
        return detach(dynamics.params(state))

    def require_settling(self, dynamics: Dynamics, w: State, start: State, steps: int, reached: State) -> None:
        """Raises SolveError where a state is not finite, with the step at which that happened: the steps are taken
        again then."""
        if all(bool(t.isfinite().all()) for t in tensors(reached)):
            return
        with torch.no_grad():
            state = dynamics.begin(start)
            for k in range(steps):
                before = dynamics.params(state)
                state = dynamics.step(self.problem, k, w, state)
                if not all(bool(t.isfinite().all()) for t in tensors(state)):
                    size, first = (float(norm(over(Tensor.double, t))) for t in (before, start))
                    if size > 1e3 * (1 + first) or not size < float("inf"):
                        raise SolveError(
                            f"the lower level diverged: its parameters had grown to a norm of {size:.1e} from "
                            f"{first:.1e} when step {k} left the finite numbers; its step exceeds 2 / curvature "
                            "somewhere, so take a smaller step_size"
                        )
                    require_finite(dynamics.params(state), f"after lower step {k} lower_params", KINK)
        require_finite(reached, "the lower level's state", "its step exceeds 2 / curvature somewhere")

    def upper_gradients(self, w: State, u: State) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
        """The upper loss and its gradients in w and in u, both fixed; None for the tensors of w that it does not see.

        Raises: SolveError where it does not see u, or where value or gradients are not finite.
        """
        w, u = leaves(w), leaves(u)
        value = self.upper(w, u)
        norms = float(norm(detach(u))), float(norm(detach(w)))
        sizes = f"the lower parameters have a norm of {norms[0]:.1e}, the upper ones of {norms[1]:.1e}"
        require_finite(value.detach(), "the value of the upper loss", sizes)
        found = slopes(value, tensors(w) + tensors(u))
        direct, inner = found[: len(tensors(w))], found[len(tensors(w)) :]
        require_seen(inner, "the upper loss", "the lower parameters")
        g = filled(inner, tensors(u))
        require_finite(rebuild(u, g), "the upper loss's gradient in lower_params", KINK)
        require_finite(rebuild(w, filled(direct, tensors(w))), "the upper loss's gradient in upper_params", KINK)
        return value, direct, g
