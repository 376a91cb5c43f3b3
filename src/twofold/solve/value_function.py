"""Hypergradients and bilevel descent from first derivatives alone, by the value function of the lower level.

With v(w) = min_u f(w, u), the lower level is the constraint f(w, u) − v(w) ≤ 0. Put into the upper loss with a weight
λ, the penalty, it gives

    φ_λ(w) = min_u [F(w, u) + λ f(w, u)] − λ v(w),    ∇φ_λ(w) = ∇_w F(w, z) + λ (∇_w f(w, z) − ∇_w f(w, y)),

z = argmin_u F/λ + f and y = argmin_u f: no second derivative anywhere (Kwon et al. 2023). For a strongly
convex lower level ∇φ_λ differs from the hypergradient by O(1/λ).

`ValueFunction` is that gradient as a strategy of `hypergradient`; the module `first_order` has the single loops that
move both levels at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.solve.dynamics import Bilevel, Dynamics, require_dynamics, require_minimising
from twofold.solve.evaluator import Evaluator
from twofold.solve.params import SolveError, State, axpy, detach, filled, minus, norm, rebuild, scale, tensors
from twofold.solve.streams import gradients


@dataclass(frozen=True)
class ValueFunction:
    """The hypergradient as a finite difference of ∇_w min_u [f + ν F] in ν, at ν = 1/penalty.

    penalty: λ. order: 1 is the forward difference, ν and 0 (Kwon et al. 2023), with a bias of O(1/λ); 2 is the
    central difference, ±ν (Chen et al. 2025, F²SA-p with p = 2), with a bias of O(1/λ²) and one more solve, and needs
    f − F/λ to have a minimum. steps, dynamics: how the lower minimum is approached from the parameters given, and
    each penalised minimum from there. tolerance: on what those solves leave, λ (‖∇f(y)‖ + ‖∇(f + F/λ)(z)‖) / ‖∇_u F‖,
    the same quantity as the relative residual of ∇²f v = ∇_u F; it is reported as `Cost.residual`.

    Raises: SolveError where the tolerance is missed, where the penalty is so large that rounding leaves fewer than two
    digits of the difference, and for dynamics that do not minimise the lower loss.

    >>> from twofold.solve.dynamics import GradientDescent
    >>> from twofold.solve.hypergradients import hypergradient
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - w) ** 2 / 2)      # 2 (w − 1)
    >>> w, way = torch.tensor(4.0, dtype=torch.float64), ValueFunction(1e4, 60, GradientDescent(0.5), tolerance=1e-3)
    >>> round(hypergradient(problem, w, w, strategy=way).gradient.item(), 2)
    6.0
    """

    penalty: float
    steps: int
    dynamics: Dynamics
    order: int = 1
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        require_dynamics("ValueFunction", self.steps, self.dynamics)
        if not self.penalty > 0:
            raise SolveError(f"the penalty must be positive, got {self.penalty}")
        if self.order not in (1, 2):
            raise SolveError(f"order is 1 (forward difference) or 2 (central difference), got {self.order}")
        if self.steps < 1:
            raise SolveError(
                f"the penalised minimum is elsewhere than the lower one: expected steps ≥ 1, got {self.steps}"
            )

    def differentiate(self, run: Evaluator, upper: State, lower: State) -> tuple[Tensor, State, State]:
        require_minimising("ValueFunction", self.dynamics)
        y = self._minimum(run, upper, lower, 0.0)
        value, seen, slope = run.upper_gradients(upper, y)
        size = float(norm(rebuild(y, slope)))
        run.residual = 0.0
        if size == 0:  # the answer does not matter to F
            return value, rebuild(upper, filled(seen, tensors(upper))), y
        nu = 1 / self.penalty
        ends = [
            (nu, self._minimum(run, upper, y, nu)),
            (0.0, y) if self.order == 1 else (-nu, self._minimum(run, upper, y, -nu)),
        ]
        slopes, left, lengths = [], 0.0, []
        for weight, at in ends:
            _, along_w, along_u = gradients(run.lower, upper, at)
            lengths.append(float(norm(along_w)))
            if weight:
                _, more_w, more_u = gradients(run.upper, upper, at)
                along_w, along_u = axpy(weight, more_w, along_w), axpy(weight, more_u, along_u)
            slopes.append(along_w)
            left += float(norm(along_u))
        run.residual = left * self.penalty / (self.order * size)
        self._require_solved(run.residual)
        difference = minus(*slopes)
        change = float(norm(difference))
        precision = torch.finfo(tensors(lower)[0].dtype).eps
        if 0 < change < 100 * precision * max(lengths):
            raise SolveError(
                f"with a penalty of {self.penalty:.0e} the two minima differ by less than the rounding of their "
                "gradients: take a smaller penalty, order=2 with a smaller one, or float64"
            )
        return value, scale(self.penalty / self.order, difference), y

    def _minimum(self, run: Evaluator, w: State, start: State, weight: float) -> State:
        """A minimum of f + weight · F in u, by the dynamics."""

        def loss(w: State, u: State) -> Tensor:
            return run.lower(w, u) + weight * run.upper(w, u) if weight else run.lower(w, u)

        problem = Bilevel(run.upper, loss)
        with torch.no_grad():
            state = self.dynamics.begin(start)
            for k in range(self.steps):
                state = self.dynamics.step(problem, k, w, state)
        run.require_settling(self.dynamics, w, start, self.steps, state)
        return detach(self.dynamics.params(state))

    def _require_solved(self, residual: float) -> None:
        if not residual <= self.tolerance:
            raise SolveError(
                f"the lower and the penalised minimum are known to a relative {residual:.1e} of what tells them apart, "
                f"wanted {self.tolerance:.0e}: take more steps, faster dynamics, or a smaller penalty "
                f"than {self.penalty:g}"
            )
