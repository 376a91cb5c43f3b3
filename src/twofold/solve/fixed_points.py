"""u = T(u), solved one way and differentiated another: solver × adjoint."""

from __future__ import annotations

from twofold.solve.adjoint import Adjoint, Implicit
from twofold.solve.operators import Operator
from twofold.solve.params import State
from twofold.solve.solvers import KrasnoselskiiMann, Solution, Solver, require_converged


def fixed_point(
    operator: Operator,
    start: State,
    *,
    solver: Solver = KrasnoselskiiMann(),
    adjoint: Adjoint = Implicit(),
    per_sample: bool = True,
    throw: bool = True,
) -> Solution:
    """Looks for u = T(u) and returns a `Solution` whose value can be differentiated in the tensors that T holds.

    operator: state → state; its `metric`, if it has one, measures the residual. start: `(B, ...)` tensors, or with
    per_sample=False any state, then seen as one point. solver: how to step and when to stop. adjoint: how the
    solution is differentiated. Outside grad mode every adjoint costs nothing. throw: whether a solve that misses the
    solver's tolerance raises; otherwise `Solution.converged` says so.

    Raises: NotConverged (its `solution` holds the outcome); SolveError for a state without samples; AdjointError in
    `backward`, from `Implicit` alone.

    >>> import torch
    >>> a = torch.tensor(3.0, requires_grad=True)
    >>> solution = fixed_point(lambda u: (u + a / u) / 2, torch.ones(1, 1))                # Heron's square root
    >>> solution.value.backward()
    >>> round(solution.value.item(), 3), round(a.grad.item(), 3)                           # √3 and 1 / (2 √3)
    (1.732, 0.289)
    """
    solution = adjoint.solve(operator, start, solver, per_sample)
    if throw:
        require_converged(solution, solver)
    return solution
