"""Bilevel descent from first derivatives alone, both levels in one loop: what scales to large networks.

The lower level is put into the upper loss with a weight λ, the penalty, as f(w, u) − min f(w, ·) (see
`value_function`). All four are methods of `streams.descend`, on one problem (`streams.whole`) or on mini-batches.

=======  =========================================  ======================================  ========================
method   penalty                                    lower level                             gradients an iteration
=======  =========================================  ======================================  ========================
`F2SA`   a schedule, growing                        two estimates, with and without F       6 with inner = 1
`F3SA`   a schedule, growing                        the same, with momentum                 6
`BOME`   chosen at each step from the gradients     one estimate, restarted from u          2 + inner
`PBGD`   constant                                   one estimate beside u                   3 + inner
=======  =========================================  ======================================  ========================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from twofold.solve.evaluator import Evaluator
from twofold.solve.meta import StepSchedule
from twofold.solve.params import SolveError, State, axpy, dot, minus, over, scale
from twofold.solve.streams import Draws, Polynomial, descended, gradients

RECURSIVE = Polynomial(1.0, -0.8)


class Penalised(NamedTuple):
    """upper: w. lower: the estimate of argmin f. towards: the estimate of argmin f + F/λ.

    >>> import torch
    >>> Penalised(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)).lower.item()
    2.0
    """

    upper: State
    lower: State
    towards: State


@dataclass(frozen=True)
class F2SA:
    """Fully first-order stochastic approximation (F²SA, Kwon et al. 2023), with z for their y and y for their z:

        y ← y − γ_k ∇_u f(w, y)                               `inner` times, each with a draw of its own
        z ← z − γ_k (∇_u f(w, z) + ∇_u F(w, z)/λ_k)
        w ← w − s_k (∇_w F(w, z) + λ_k (∇_w f(w, z) − ∇_w f(w, y)))

    lower_step: γ_k, below 2 / curvature of f + F/λ. penalty: λ_k, growing without bound for convergence to a
    stationary point of the bilevel problem; constant λ stops at one of φ_λ. upper_step: s_k, their ξ α_k. Their
    schedules with noise on both levels: γ_k ∝ k^−4/7, λ_k ∝ k^1/7, s_k ∝ k^−5/7; without noise γ_k constant,
    λ_k ∝ k^1/3, s_k ∝ k^−1/3. y and z take the same draw (there: independent ones): what is common to their noise then
    cancels in the difference that λ_k multiplies.

    >>> from itertools import islice
    >>> import torch
    >>> from twofold.solve.dynamics import Bilevel
    >>> from twofold.solve.streams import descend, whole
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)  # u(w) = 2 w
    >>> way = F2SA(Polynomial(0.5), Polynomial(10.0), Polynomial(0.02))
    >>> *_, last = islice(descend(way, whole(problem), torch.tensor(0.0), torch.tensor(0.0)), 400)
    >>> round(last.upper_params.item(), 3), last.calls.products
    (0.5, 0)
    """

    lower_step: StepSchedule
    penalty: StepSchedule
    upper_step: StepSchedule
    inner: int = 1

    def __post_init__(self) -> None:
        _require_inner(self.inner)

    def begin(self, draws: Draws, upper: State, lower: State) -> Penalised:
        return Penalised(upper, lower, lower)

    def step(self, draws: Draws, k: int, memory: Penalised) -> Penalised:
        w, y, z = memory
        g, weight, s = self.lower_step(k), _positive(self.penalty(k)), self.upper_step(k)
        for _ in range(self.inner):
            run = draws.next()
            y = axpy(-g, gradients(run.lower, w, y)[2], y)
            along = axpy(1 / weight, gradients(run.upper, w, z)[2], gradients(run.lower, w, z)[2])
            z = axpy(-g, along, z)
        run = draws.next()
        gap = minus(gradients(run.lower, w, z)[1], gradients(run.lower, w, y)[1])
        return Penalised(axpy(-s, axpy(weight, gap, gradients(run.upper, w, z)[1]), w), y, z)


class Recursive(NamedTuple):
    """`Penalised` with the point before it and the estimates of the gradients there, each a (w, u) pair of trees:
    of f at y, of f at z, of F at z.

    >>> import torch
    >>> Recursive(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0), None, ()).before is None
    True
    """

    upper: State
    lower: State
    towards: State
    before: Penalised | None
    estimates: tuple[State, ...]


@dataclass(frozen=True)
class F3SA:
    """`F2SA` with momentum that corrects itself (F³SA, Kwon et al. 2023): each gradient is estimated by

        h_k = ∇(x_k; draw_k) + (1 − η_k) (h_{k−1} − ∇(x_{k−1}; draw_k)),

    which takes the same draw at two points, so a stream must give the same problem for the same number. momentum: η_k
    in (0, 1]; 1 is plain stochastic gradients. Their schedules with noise on both levels: γ_k ∝ k^−2/5, λ_k ∝ k^1/5,
    s_k ∝ k^−3/5, η_k ∝ k^−4/5. All estimates are taken at one point (w_k, y_k, z_k), which halves the calls against
    taking w's after y and z have moved: six gradients an iteration.

    >>> from itertools import islice
    >>> import torch
    >>> from twofold.solve.dynamics import Bilevel
    >>> from twofold.solve.streams import descend, whole
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)  # u(w) = 2 w
    >>> way = F3SA(Polynomial(0.5), Polynomial(10.0), Polynomial(0.02), momentum=Polynomial(1.0, -0.8))
    >>> *_, last = islice(descend(way, whole(problem), torch.tensor(0.0), torch.tensor(0.0)), 400)
    >>> round(last.upper_params.item(), 3)
    0.5
    """

    lower_step: StepSchedule
    penalty: StepSchedule
    upper_step: StepSchedule
    momentum: StepSchedule = RECURSIVE

    def begin(self, draws: Draws, upper: State, lower: State) -> Recursive:
        return Recursive(upper, lower, lower, None, ())

    def step(self, draws: Draws, k: int, memory: Recursive) -> Recursive:
        point, run = Penalised(*memory[:3]), draws.next()
        found = _three_gradients(run, point)
        if memory.before is not None:
            keep = 1 - self.momentum(k)
            if not 0 <= keep < 1:
                raise SolveError(f"momentum must lie in (0, 1], got {1 - keep} at iteration {k}")
            old = _three_gradients(run, memory.before)
            found = over(lambda h, now, was: now + keep * (h - was), memory.estimates, found, old)
        (lower_w, lower_u), (towards_w, towards_u), (upper_w, upper_u) = found
        g, weight, s = self.lower_step(k), _positive(self.penalty(k)), self.upper_step(k)
        y = axpy(-g, lower_u, point.lower)
        z = axpy(-g, axpy(1 / weight, upper_u, towards_u), point.towards)
        w = axpy(-s, axpy(weight, minus(towards_w, lower_w), upper_w), point.upper)
        return Recursive(w, y, z, point, found)


class Joint(NamedTuple):
    """upper: w. lower: u, which descends the penalised problem. reference: the estimate of argmin f.

    >>> import torch
    >>> Joint(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)).reference.item()
    3.0
    """

    upper: State
    lower: State
    reference: State


class _JointSteps:
    """Methods that move both levels along one direction, with steps `upper_scale` times longer for w."""

    step_size: StepSchedule
    inner: int
    upper_scale: float

    def __post_init__(self) -> None:
        _require_inner(self.inner)
        if not self.upper_scale > 0:
            raise SolveError(f"upper_scale must be positive, got {self.upper_scale}")

    def begin(self, draws: Draws, upper: State, lower: State) -> Joint:
        return Joint(upper, lower, lower)

    def _moved(self, k: int, at: Joint, along: State, reference: State) -> Joint:
        """The next memory, for a direction (along w, along u)."""
        s = self.step_size(k)
        return Joint(axpy(-s * self.upper_scale, along[0], at.upper), axpy(-s, along[1], at.lower), reference)


@dataclass(frozen=True)
class BOME(_JointSteps):
    """Bilevel optimisation made easy (Liu, Ye, Wright, Stone and Liu 2022): with
    q(w, u) = f(w, u) − f(w, u_T), u_T being `inner` gradient steps from u and held constant,

        (w, u) ← (w, u) − s_k (∇F + λ_k ∇q),    λ_k = max(0, (control ‖∇q‖² − ⟨∇F, ∇q⟩) / ‖∇q‖²):

    the smallest weight for which q falls along the step at a rate of control · ‖∇q‖². The penalty needs no choosing.

    step_size: s_k, for both levels. inner_step, inner: of the lower solve, whose truncation biases the result
    by what `inner` steps leave of a distance; a constant step_size does so in proportion. control: in (0, 1), their η.
    `inner` + 2 gradients an iteration, all at one draw; made for little noise. upper_scale: how many times longer w's
    steps are; the same method in the variable w / √upper_scale, for levels of different scales.

    >>> from itertools import islice
    >>> import torch
    >>> from twofold.solve.dynamics import Bilevel
    >>> from twofold.solve.streams import descend, whole
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - w) ** 2 / 2)      # u(w) = w
    >>> way = BOME(Polynomial(0.1), inner_step=0.5, inner=10)
    >>> *_, last = islice(descend(way, whole(problem), torch.tensor(0.0), torch.tensor(0.0)), 600)
    >>> round(last.upper_params.item(), 2)
    1.0
    """

    step_size: StepSchedule
    inner_step: float
    inner: int = 10
    control: float = 0.5
    upper_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.control < 1:
            raise SolveError(f"control must lie in (0, 1), got {self.control}")

    def step(self, draws: Draws, k: int, memory: Joint) -> Joint:
        w, u, run = memory.upper, memory.lower, draws.next()
        _, along_w, along_u = gradients(run.lower, w, u)
        reference = axpy(-self.inner_step, along_u, u)
        for _ in range(self.inner - 1):
            reference = axpy(-self.inner_step, gradients(run.lower, w, reference)[2], reference)
        q = minus(along_w, gradients(run.lower, w, reference)[1]), along_u
        upper = gradients(run.upper, w, u)[1:]
        scaled = scale(self.upper_scale, q[0]), q[1]
        size = float(dot(q, scaled))
        weight = max(0.0, self.control - float(dot(upper, scaled)) / size) if size > 0 else 0.0
        return self._moved(k, memory, axpy(weight, q, upper), reference)


@dataclass(frozen=True)
class PBGD(_JointSteps):
    """Penalty-based bilevel gradient descent with the value gap (V-PBGD, Shen and Chen 2023):

        y ← y − γ ∇_u f(w, y)                                                 `inner` times, from the last y
        (w, u) ← (w, u) − s_k (∇F(w, u) + λ (∇f(w, u) − (∇_w f(w, y), 0)))

    penalty: λ, constant; the result is a stationary point of the penalised problem, O(1/λ) from the bilevel one
    (there, under the Polyak-Łojasiewicz inequality below: no strong convexity is needed). step_size: s_k, below
    1 / (L_F + λ L_f), so a large penalty makes slow steps: prefer `F2SA`, whose lower steps do not shrink.
    upper_scale: as in `BOME`.

    >>> from itertools import islice
    >>> import torch
    >>> from twofold.solve.dynamics import Bilevel
    >>> from twofold.solve.streams import descend, whole
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2 / 2, lower=lambda w, u: (u - w) ** 2 / 2)      # u(w) = w
    >>> way = PBGD(Polynomial(0.08), penalty=10.0, inner_step=0.5, inner=5)
    >>> *_, last = islice(descend(way, whole(problem), torch.tensor(0.0), torch.tensor(0.0)), 600)
    >>> round(last.upper_params.item(), 2)
    1.0
    """

    step_size: StepSchedule
    penalty: float
    inner_step: float
    inner: int = 1
    upper_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self.penalty)

    def step(self, draws: Draws, k: int, memory: Joint) -> Joint:
        w, u, y = memory
        y = descended(draws, w, y, self.inner_step, self.inner)
        run = draws.next()
        _, along_w, along_u = gradients(run.lower, w, u)
        gap = minus(along_w, gradients(run.lower, w, y)[1]), along_u
        upper = gradients(run.upper, w, u)[1:]
        return self._moved(k, memory, axpy(self.penalty, gap, upper), y)


def _three_gradients(run: Evaluator, at: Penalised) -> tuple[State, ...]:
    lower = gradients(run.lower, at.upper, at.lower)[1:]
    return lower, gradients(run.lower, at.upper, at.towards)[1:], gradients(run.upper, at.upper, at.towards)[1:]


def _positive(penalty: float) -> float:
    if not penalty > 0:
        raise SolveError(f"the penalty must be positive, got {penalty}")
    return penalty


def _require_inner(inner: int) -> None:
    if inner < 1:
        raise SolveError(f"expected at least one inner step, got {inner}")
