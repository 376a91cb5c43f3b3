"""Stochastic bilevel descent with Hessian-vector products: mini-batches on both levels, no inner solve to the end.

All of them follow three variables, the lower parameters u, the upper ones w, and the solution v of ∇²_uu f v = ∇_u F
(Dagréou et al. 2022), along

    D_u = ∇_u f,    D_v = ∇²_uu f v − ∇_u F,    D_w = ∇_w F − ∇²_wu f v,

and differ in how many steps of each they take and in how they estimate these.

==========  ===========================  ============================================  ==============================
method      an iteration                 second derivatives an iteration               converges
==========  ===========================  ============================================  ==============================
`SOBA`      one step of each             2                                             with falling steps
`SABA`      one step of each             2, and one old value a batch in memory        with constant steps
`AmIGO`     T of u, N of v, one of w     N + 1                                         to its noise, or falling steps
`StocBiO`   T of u, a series for v       terms + 1                                     to its noise and its truncation
==========  ===========================  ============================================  ==============================

Without noise, `streams.whole`, all but `StocBiO` converge with constant steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from twofold.solve.evaluator import Evaluator
from twofold.solve.meta import StepSchedule
from twofold.solve.params import SolveError, State, axpy, minus, over, rebuild, scale, zeros_like
from twofold.solve.second_order import EXACT, Cross
from twofold.solve.streams import Draws, FiniteSum, descended, gradients


class Three(NamedTuple):
    """upper: w. lower: u. adjoint: v. direction: the running mean of D_w, None where none is kept.

    >>> import torch
    >>> Three(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)).adjoint.item()
    3.0
    """

    upper: State
    lower: State
    adjoint: State
    direction: State | None = None


@dataclass(frozen=True)
class SOBA:
    """Stochastic bilevel algorithm (Dagréou et al. 2022): u, v and w each take one
    stochastic gradient step at the same draw, u and v with ρ_k, w with γ_k.

    lower_step: ρ_k, below 2 / curvature of every batch. upper_step: γ_k, small beside ρ_k. With noise both must fall:
    ρ_k ∝ k^−2/5 and γ_k ∝ k^−3/5 there. averaging: θ_k in (0, 1], the weight of the newest D_w in a running mean along
    which w moves (MA-SOBA, Chen, Xiao and Balasubramanian 2023); None moves along D_w itself.

    >>> from itertools import islice
    >>> import torch
    >>> from twofold.solve.dynamics import Bilevel
    >>> from twofold.solve.streams import Polynomial, descend, whole
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)      # u(w) = 2 w
    >>> way = SOBA(Polynomial(0.5), Polynomial(0.05))
    >>> *_, last = islice(descend(way, whole(problem), torch.tensor(0.0), torch.tensor(0.0)), 500)
    >>> round(last.upper_params.item(), 4)
    0.5
    """

    lower_step: StepSchedule
    upper_step: StepSchedule
    averaging: StepSchedule | None = None
    cross: Cross = EXACT

    def begin(self, draws: Draws, upper: State, lower: State) -> Three:
        return Three(upper, lower, zeros_like(lower))

    def step(self, draws: Draws, k: int, memory: Three) -> Three:
        w, u, v, mean = memory
        run = draws.next()
        lower, product, mixed = _lower_parts(run, self.cross, w, u, v)
        _, upper_w, upper_u = gradients(run.upper, w, u)
        direction = minus(upper_w, mixed)
        if self.averaging is not None:
            share = self.averaging(k)
            if not 0 < share <= 1:
                raise SolveError(f"averaging must lie in (0, 1], got {share} at iteration {k}")
            direction = mean = direction if mean is None else axpy(share, minus(direction, mean), mean)
        r = self.lower_step(k)
        fresh_v = axpy(-r, minus(product, upper_u), v)
        return Three(axpy(-self.upper_step(k), direction, w), axpy(-r, lower, u), fresh_v, mean)


class Table(NamedTuple):
    """`Three`, with what every part of the sums last gave: (∇_u f, ∇²_uu f v, ∇²_wu f v) for each lower part,
    (∇_w F, ∇_u F) for each upper one, and their means.

    >>> Table(None, None, None, (), (), (), ()).lowers
    ()
    """

    upper: State
    lower: State
    adjoint: State
    lowers: tuple[State, ...]
    uppers: tuple[State, ...]
    lower_mean: State
    upper_mean: State


@dataclass(frozen=True)
class SABA:
    """`SOBA` with the variance reduction of SAGA (Dagréou et al. 2022): every direction is
    new − old + mean, over tables with one entry a batch, so constant steps converge, linearly where φ satisfies the
    Polyak-Łojasiewicz inequality (shown there).

    It asks for a `FiniteSum`. Memory: (2 |u| + |w|) for each lower batch, |u| + |w| for each upper one. The tables are
    filled at the start, one pass over all batches.

    >>> from itertools import islice
    >>> import torch
    >>> from twofold.solve.streams import Polynomial, descend
    >>> parts = [lambda w, u, c=c: (u - 2 * w - c) ** 2 / 2 for c in (-1.0, 0.0, 1.0)]                # u(w) = 2 w
    >>> way = SABA(Polynomial(0.2), Polynomial(0.02))
    >>> run = descend(way, FiniteSum([lambda w, u: (u - 1) ** 2], parts), torch.tensor(0.0), torch.tensor(0.0))
    >>> *_, last = islice(run, 600)
    >>> round(last.upper_params.item(), 4)
    0.5
    """

    lower_step: StepSchedule
    upper_step: StepSchedule
    cross: Cross = EXACT

    def begin(self, draws: Draws, upper: State, lower: State) -> Table:
        if not isinstance(draws.stream, FiniteSum):
            raise SolveError(
                f"SABA keeps one entry for each batch and needs a FiniteSum, got a {type(draws.stream).__name__}; "
                "for a stream without end take SOBA"
            )
        v = zeros_like(lower)
        lowers = tuple(_lower_parts(run, self.cross, upper, lower, v) for run in draws.every_lower())
        uppers = tuple(gradients(run.upper, upper, lower)[1:] for run in draws.every_upper())
        return Table(upper, lower, v, lowers, uppers, _mean(lowers), _mean(uppers))

    def step(self, draws: Draws, k: int, memory: Table) -> Table:
        assert isinstance(draws.stream, FiniteSum)
        w, u, v, lowers, uppers, lower_mean, upper_mean = memory
        i, j = draws.stream.parts(draws.number)
        run = draws.next()
        lower_change = minus(_lower_parts(run, self.cross, w, u, v), lowers[j])
        upper_change = minus(gradients(run.upper, w, u)[1:], uppers[i])
        d_u, product, mixed = axpy(1.0, lower_change, lower_mean)
        upper_w, upper_u = axpy(1.0, upper_change, upper_mean)
        r = self.lower_step(k)
        return Table(
            upper=axpy(-self.upper_step(k), minus(upper_w, mixed), w),
            lower=axpy(-r, d_u, u),
            adjoint=axpy(-r, minus(product, upper_u), v),
            lowers=_replaced(lowers, j, lower_change),
            uppers=_replaced(uppers, i, upper_change),
            lower_mean=axpy(1 / len(lowers), lower_change, lower_mean),
            upper_mean=axpy(1 / len(uppers), upper_change, upper_mean),
        )


@dataclass(frozen=True)
class AmIGO:
    """Amortised implicit gradient optimisation (Arbel and Mairal 2022): `inner` steps of u, then `linear`
    stochastic gradient steps of ½ ⟨v, ∇²f v⟩ − ⟨∇_u F, v⟩, both from where the last iteration left them, then one
    step of w; every step has a draw of its own.

    lower_step, linear_step: below 2 / curvature of every batch. upper_step: of w.

    >>> from itertools import islice
    >>> import torch
    >>> from twofold.solve.dynamics import Bilevel
    >>> from twofold.solve.streams import Polynomial, descend, whole
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)      # u(w) = 2 w
    >>> way = AmIGO(Polynomial(0.5), Polynomial(0.5), Polynomial(0.05), inner=4, linear=4)
    >>> *_, last = islice(descend(way, whole(problem), torch.tensor(0.0), torch.tensor(0.0)), 100)
    >>> round(last.upper_params.item(), 4)
    0.5
    """

    lower_step: StepSchedule
    linear_step: StepSchedule
    upper_step: StepSchedule
    inner: int = 10
    linear: int = 10
    cross: Cross = EXACT

    def __post_init__(self) -> None:
        if self.inner < 1 or self.linear < 1:
            raise SolveError(f"expected inner ≥ 1 and linear ≥ 1, got {self.inner} and {self.linear}")

    def begin(self, draws: Draws, upper: State, lower: State) -> Three:
        return Three(upper, lower, zeros_like(lower))

    def step(self, draws: Draws, k: int, memory: Three) -> Three:
        w, u, v, _ = memory
        u = descended(draws, w, u, self.lower_step(k), self.inner)
        for _ in range(self.linear):
            run = draws.next()
            product = self.cross.at(run, w, u).hessian(v)
            v = axpy(-self.linear_step(k), minus(product, gradients(run.upper, w, u)[2]), v)
        run = draws.next()
        mixed = rebuild(w, self.cross.at(run, w, u).mixed(v))
        return Three(axpy(-self.upper_step(k), minus(gradients(run.upper, w, u)[1], mixed), w), u, v)


@dataclass(frozen=True)
class StocBiO:
    """Stochastic bilevel optimiser (Ji, Yang and Liang 2021): `inner` steps of u, then
    v = η Σ_{q ≤ terms} Π (I − η ∇²f) ∇_u F with another draw in every factor, then one step of w.

    lower_step: of u. series_step: η, below 1 / curvature of every batch. upper_step: of w. The truncated series biases
    the hypergradient by (1 − η μ)^(terms + 1), μ the smallest curvature; v is not carried over, unlike in `AmIGO`.

    >>> from itertools import islice
    >>> import torch
    >>> from twofold.solve.dynamics import Bilevel
    >>> from twofold.solve.streams import Polynomial, descend, whole
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)      # u(w) = 2 w
    >>> way = StocBiO(Polynomial(0.5), 0.5, Polynomial(0.05), inner=4, terms=10)
    >>> *_, last = islice(descend(way, whole(problem), torch.tensor(0.0), torch.tensor(0.0)), 100)
    >>> round(last.upper_params.item(), 4)
    0.5
    """

    lower_step: StepSchedule
    series_step: float
    upper_step: StepSchedule
    inner: int = 10
    terms: int = 10
    cross: Cross = EXACT

    def __post_init__(self) -> None:
        if self.inner < 1 or self.terms < 0 or not self.series_step > 0:
            raise SolveError(
                f"expected inner ≥ 1, terms ≥ 0 and series_step > 0, got {self.inner}, {self.terms}, {self.series_step}"
            )

    def begin(self, draws: Draws, upper: State, lower: State) -> Three:
        return Three(upper, lower, zeros_like(lower))

    def step(self, draws: Draws, k: int, memory: Three) -> Three:
        w, u = memory.upper, memory.lower
        u = descended(draws, w, u, self.lower_step(k), self.inner)
        run = draws.next()
        _, upper_w, upper_u = gradients(run.upper, w, u)
        total = term = upper_u
        for _ in range(self.terms):
            term = axpy(-self.series_step, self.cross.at(draws.next(), w, u).hessian(term), term)
            total = axpy(1.0, term, total)
        v = scale(self.series_step, total)
        mixed = rebuild(w, self.cross.at(draws.next(), w, u).mixed(v))
        return Three(axpy(-self.upper_step(k), minus(upper_w, mixed), w), u, v)


def _lower_parts(run: Evaluator, cross: Cross, w: State, u: State, v: State) -> State:
    """(∇_u f, ∇²_uu f v, ∇²_wu f v) at one draw, without a graph."""
    products = cross.at(run, w, u)
    found = products.gradient(), products.hessian(v), rebuild(w, products.mixed(v))
    return over(lambda t: t.detach(), found)


def _mean(parts: tuple[State, ...]) -> State:
    total = parts[0]
    for part in parts[1:]:
        total = axpy(1.0, part, total)
    return scale(1 / len(parts), total)


def _replaced(parts: tuple[State, ...], at: int, change: State) -> tuple[State, ...]:
    return (*parts[:at], axpy(1.0, change, parts[at]), *parts[at + 1 :])
