"""Mini-batches on both levels: a problem that is a stream of problems, one for each draw.

A stream is a function of the number of the draw and of nothing else: the same number gives the same problem, so a
run can be resumed, and a method may look at one draw from two points, as momentum with a correction does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from twofold.solve.dynamics import Bilevel, BilevelLoss
from twofold.solve.evaluator import Evaluator
from twofold.solve.params import (
    SolveError,
    State,
    axpy,
    detach,
    filled,
    leaves,
    rebuild,
    require_seen,
    scalar,
    slopes,
    tensors,
)
from twofold.solve.watch import WatchedLoss

Stream = Callable[[int], Bilevel]
"""Number of the draw, from 0 → the bilevel problem of that draw; its expectation is the problem to solve."""


@dataclass(frozen=True)
class Polynomial:
    """first · (k + 1)^power: falls for a negative power, grows for a positive one, is constant for 0.

    >>> Polynomial(0.5, -0.5)(3), Polynomial(2.0, 0.0)(100)
    (0.25, 2.0)
    """

    first: float
    power: float = 0.0

    def __post_init__(self) -> None:
        if not self.first > 0:
            raise SolveError(f"a schedule starts from a positive number, got {self.first}")

    def __call__(self, k: int) -> float:
        return float(self.first * (k + 1) ** self.power)


def whole(problem: Bilevel) -> Stream:
    """The stream that always gives the same problem: every stochastic method becomes its deterministic form.

    >>> problem = Bilevel(upper=lambda w, u: u, lower=lambda w, u: u)
    >>> whole(problem)(0) is whole(problem)(17)
    True
    """
    return lambda _: problem


@dataclass(frozen=True)
class FiniteSum:
    """F = mean of `uppers`, f = mean of `lowers`; draw k takes one part of each, independently and uniformly.

    uppers, lowers: losses of (upper parameters, lower parameters) to a scalar, one for each mini-batch; a term that
    belongs to no sample, as a regulariser, stands in every part. seed: of the draws, which depend on it and on k alone.

    >>> sum = FiniteSum([lambda w, u: u], [lambda w, u: u + 1, lambda w, u: u + 3])
    >>> sum.whole.lower(torch.tensor(0.0), torch.tensor(0.0)).item()
    2.0
    >>> sum.parts(7) == sum.parts(7), sum.parts(7)[0]
    (True, 0)
    """

    uppers: Sequence[BilevelLoss]
    lowers: Sequence[BilevelLoss]
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.uppers) or not len(self.lowers):
            raise SolveError(f"a sum needs parts, got {len(self.uppers)} upper and {len(self.lowers)} lower losses")

    def parts(self, k: int) -> tuple[int, int]:
        """The numbers of the upper and the lower loss of draw k."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + k * 7919 + 12345) % 2**62)
        low, high = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        return int(low * len(self.uppers)), int(high * len(self.lowers))

    def __call__(self, k: int) -> Bilevel:
        upper, lower = self.parts(k)
        return Bilevel(self.uppers[upper], self.lowers[lower])

    @property
    def whole(self) -> Bilevel:
        """The problem that the draws stand for: the means of all parts."""
        return Bilevel(_mean(self.uppers), _mean(self.lowers))


def minibatches(loss: Callable[[State, State, Tensor], Tensor], samples: int, size: int) -> list[BilevelLoss]:
    """A loss over samples cut into one loss for each mini-batch, of equal size, for `FiniteSum`.

    loss: (upper parameters, lower parameters, indices `(size,)`) → the mean over those samples. samples: how many there
    are, a multiple of size, or the mean over batches would not be the mean over samples.

    >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> [part(None, None).item() for part in minibatches(lambda w, u, i: x[i].mean(), 4, 2)]
    [1.5, 3.5]
    """
    if size < 1 or samples < size or samples % size:
        raise SolveError(
            f"cannot cut {samples} samples into batches of {size} of equal size; leave {samples % max(size, 1)} out"
        )
    return [_Batch(loss, torch.arange(k, k + size)) for k in range(0, samples, size)]


class Calls(NamedTuple):
    """What a run has taken so far. upper_gradients, lower_gradients: evaluations of a loss with a backward, each of the
    batch that was drawn. products: with second derivatives, by double backward. draws: mini-batch pairs looked at.

    >>> Calls(1, 2, 3, 1).products
    3
    """

    upper_gradients: int
    lower_gradients: int
    products: int
    draws: int


class StreamDraw(Evaluator):
    """One draw of a stream. The first of a run is watched as closely as any loss (`Evaluator`); the others are counted
    alone, which for small problems saves most of the time.

    >>> draw = StreamDraw(Bilevel(upper=lambda w, u: u, lower=lambda w, u: w * u), watched=False)
    >>> draw.lower(torch.tensor(2.0), torch.tensor(3.0)).item(), draw.lower_evaluations
    (6.0, 1)
    """

    def __init__(self, problem: Bilevel, *, watched: bool) -> None:
        super().__init__(problem)
        if not watched:
            self.upper = _CountedLoss(problem.upper, "the upper loss")
            self._lower = None if problem.lower is None else _CountedLoss(problem.lower, "the lower loss")
            self.problem = Bilevel(self.upper, self._lower)


class Draws:
    """The draws of a stream, one after the other, with what was computed on them counted.

    >>> draws = Draws(whole(Bilevel(upper=lambda w, u: u**2, lower=lambda w, u: (u - w) ** 2)))
    >>> value, along_w, along_u = gradients(draws.next().lower, torch.tensor(1.0), torch.tensor(3.0))
    >>> along_u.item(), draws.calls().lower_gradients
    (4.0, 1)
    """

    def __init__(self, stream: Stream, number: int = 0) -> None:
        self.stream, self.number = stream, number
        self._runs: list[StreamDraw] = []
        self._watch = 2  # draws to be watched: the tables of SABA begin with one level alone
        self._before = Calls(0, 0, 0, 0)

    def next(self) -> StreamDraw:
        """The next draw: the losses of its problem, counted."""
        run = self.again(self.number)
        self.number += 1
        return run

    def again(self, number: int) -> StreamDraw:
        """A draw of the past once more, as momentum with a correction needs it."""
        return self._counted(self.stream(number))

    def every_lower(self) -> Iterator[StreamDraw]:
        """Each lower part of a `FiniteSum` once, counted as draws."""
        assert isinstance(self.stream, FiniteSum)
        yield from (self._counted(Bilevel(self.stream.uppers[0], loss)) for loss in self.stream.lowers)

    def every_upper(self) -> Iterator[StreamDraw]:
        """Each upper part of a `FiniteSum` once, counted as draws."""
        assert isinstance(self.stream, FiniteSum)
        yield from (self._counted(Bilevel(loss, self.stream.lowers[0])) for loss in self.stream.uppers)

    def calls(self) -> Calls:
        """What has been computed so far."""
        self._before = Calls(
            self._before.upper_gradients + sum(run.upper_evaluations for run in self._runs),
            self._before.lower_gradients + sum(run.lower_evaluations for run in self._runs),
            self._before.products + sum(run.products for run in self._runs),
            self._before.draws + len(self._runs),
        )
        self._runs = []
        return self._before

    def _counted(self, problem: Bilevel) -> StreamDraw:
        run = StreamDraw(problem, watched=self._watch > 0)
        self._watch -= 1
        self._runs.append(run)
        return run


class Method(Protocol):
    """A single loop over draws. begin: the first memory, from both levels' parameters. step: the memory after iteration
    k = 0, 1, …. A memory is a NamedTuple with `upper` and `lower`, and is never changed in place."""

    def begin(self, draws: Draws, upper: State, lower: State) -> Any: ...
    def step(self, draws: Draws, k: int, memory: Any) -> Any: ...


class Iteration(NamedTuple):
    """One iteration of a single loop. number: from 0. upper_params, lower_params: after it. calls: since the start.
    memory: all that the method goes on from.

    >>> Iteration(0, torch.tensor(1.0), torch.tensor(2.0), Calls(1, 1, 0, 1), None).calls.draws
    1
    """

    number: int
    upper_params: State
    lower_params: State
    calls: Calls
    memory: Any


def descend(
    method: Method,
    stream: Stream,
    upper_params: State,
    lower_params: State,
    *,
    project: Callable[[State], State] | None = None,
) -> Iterator[Iteration]:
    """The iterations of a single-loop method, without end: take as many as you like.

    stream: the problems, one a draw; `whole(problem)` for one problem without mini-batches, a `FiniteSum` for data.
    project: of the upper parameters onto their set, after each iteration. Nothing that is given is changed.

    Raises: SolveError where an iterate is not finite (a step is too long), and what the method itself refuses.

    >>> from itertools import islice
    >>> from twofold.solve.stochastic import SOBA
    >>> problem = Bilevel(upper=lambda w, u: (u - 1) ** 2, lower=lambda w, u: (u - 2 * w) ** 2 / 2)      # u(w) = 2 w
    >>> way = SOBA(lower_step=Polynomial(0.5), upper_step=Polynomial(0.05))
    >>> *_, last = islice(descend(way, whole(problem), torch.tensor(0.0), torch.tensor(0.0)), 500)
    >>> round(last.upper_params.item(), 4), last.calls.products
    (0.5, 1000)
    """
    draws = Draws(stream)
    memory = method.begin(draws, detach(upper_params), detach(lower_params))
    number = 0
    while True:
        memory = method.step(draws, number, memory)
        if project is not None:
            with torch.no_grad():
                memory = memory._replace(upper=detach(project(memory.upper)))
        for name, tree in (("upper", memory.upper), ("lower", memory.lower)):
            if not all(bool(t.isfinite().all()) for t in tensors(tree)):
                raise SolveError(
                    f"iteration {number} of {type(method).__name__} made the {name} parameters infinite or NaN: "
                    "a step exceeds 2 / curvature, or a loss is not finite there; take smaller steps"
                )
        yield Iteration(number, memory.upper, memory.lower, draws.calls(), memory)
        number += 1


def descended(draws: Draws, w: State, u: State, step: float, steps: int) -> State:
    """u after gradient steps on the lower loss, each at a draw of its own.

    >>> draws = Draws(whole(Bilevel(upper=lambda w, u: u, lower=lambda w, u: (u - w) ** 2 / 2)))
    >>> descended(draws, torch.tensor(1.0), torch.tensor(3.0), 0.5, 2).item()                            # 1 + 2 / 4
    1.5
    """
    for _ in range(steps):
        u = axpy(-step, gradients(draws.next().lower, w, u)[2], u)
    return u


def gradients(loss: BilevelLoss, w: State, u: State) -> tuple[Tensor, State, State]:
    """A loss with its gradients in both levels' parameters; no graph is kept, no second derivative is taken.

    Raises: SolveError where the loss is no scalar, or does not see the lower parameters.

    >>> value, along_w, along_u = gradients(lambda w, u: w * u**2, torch.tensor(2.0), torch.tensor(3.0))
    >>> value.item(), along_w.item(), along_u.item()
    (18.0, 9.0, 12.0)
    """
    with torch.enable_grad():
        w, u = leaves(w), leaves(u)
        value = scalar(loss(w, u), "a loss")
        found = slopes(value, tensors(w) + tensors(u))
    split = len(tensors(w))
    require_seen(found[split:], "a loss", "the lower parameters")
    return value.detach(), rebuild(w, filled(found[:split], tensors(w))), rebuild(u, filled(found[split:], tensors(u)))


@dataclass(frozen=True)
class _Batch:
    loss: Callable[[State, State, Tensor], Tensor]
    indices: Tensor

    def __call__(self, w: State, u: State) -> Tensor:
        return self.loss(w, u, self.indices)


class _CountedLoss(WatchedLoss):
    def __call__(self, w: State, u: State) -> Tensor:
        self.evaluations += 1
        return scalar(self.loss(w, u), self.name)


def _mean(losses: Sequence[BilevelLoss]) -> BilevelLoss:
    return lambda w, u: torch.stack([loss(w, u) for loss in losses]).mean()
