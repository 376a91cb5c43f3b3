"""Many steps, differentiated exactly by replaying them: the memory of states, not of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twofold.solve.params import SolveError, State, detach, pull, rebuild, tensors

Step = Callable[[int, State, State], State]
"""(k, upper parameters, state) → state: pure, and differentiable in both trees."""


def replayed(step: Step, upper: State, start: State, *, steps: int, first: int = 0, keep_every: int = 1) -> State:
    """The state after `steps` steps from `start`, the first of them numbered `first`; exactly differentiable, once.

    Forward, nothing but every `keep_every`-th state is kept. Backward, one step at a time is computed again
    with a graph, used and dropped. So memory is steps / keep_every + keep_every states and the activations of
    one step, whatever the number of steps; time is that of ordinary unrolling and one more plain evaluation of
    each step, two for keep_every > 1. The least memory is near keep_every = √steps.

    Raises: SolveError in `backward` where a step does not repeat itself (dropout, a data loader inside the
    loss), and where a second derivative is asked for.

    >>> w = torch.tensor(2.0, requires_grad=True)
    >>> u = replayed(lambda k, w, u: w * u, w, torch.tensor(1.0), steps=3)
    >>> u.item(), torch.autograd.grad(u, w)[0].item()                                      # w³ and 3 w²
    (8.0, 12.0)
    """
    if steps < 0 or keep_every < 1:
        raise SolveError(f"expected steps ≥ 0 and keep_every ≥ 1, got {steps} and {keep_every}")
    if steps == 0:
        return start
    play: Any = _Replay.apply
    flat = play(
        step, detach(start), detach(upper), range(first, first + steps), keep_every, *tensors(start), *tensors(upper)
    )
    return rebuild(start, list(flat))


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, step: Step, start: State, upper: State, numbers: range, keep_every: int, *_: Tensor
    ) -> tuple[Tensor, ...]:
        state, kept = start, []
        for i, k in enumerate(numbers):
            if i % keep_every == 0:
                kept.append(state)
            state = step(k, upper, state)
        end = tuple(t.detach() for t in tensors(state))
        ctx.step, ctx.upper, ctx.numbers, ctx.keep_every, ctx.kept = step, upper, numbers, keep_every, kept
        ctx.save_for_backward(*end)
        return end

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise SolveError("a replayed gradient cannot be differentiated again (create_graph=True)")
        count, numbers, upper = len(cotangents), ctx.numbers, ctx.upper
        wanted = ctx.needs_input_grad[5:]
        totals: list[Tensor] = []
        cotangent = list(cotangents)
        for begin in reversed(range(0, len(numbers), ctx.keep_every)):
            stretch = numbers[begin : begin + ctx.keep_every]
            states = [ctx.kept[begin // ctx.keep_every]]
            for k in stretch[:-1]:
                states.append(ctx.step(k, upper, states[-1]))
            for k in reversed(stretch):
                # Only what somebody asks for is a leaf: the very first state often is not, and neither is all
                # of upper.
                needs = wanted if k == numbers[0] else (True,) * count + tuple(wanted[count:])
                before = states.pop()
                flat = [
                    t.detach().requires_grad_(n)
                    for t, n in zip([*tensors(before), *tensors(upper)], needs, strict=True)
                ]
                with torch.enable_grad():
                    after = tensors(ctx.step(k, rebuild(upper, flat[count:]), rebuild(before, flat[:count])))
                if k == numbers[-1]:
                    _require_same(after, ctx.saved_tensors)
                found = iter(pull(after, [t for t in flat if t.requires_grad], cotangent))
                grads = [next(found) if n else None for n in needs]
                cotangent = grads[:count]  # type: ignore[assignment]  # None at the very end alone
                if totals:
                    totals = [None if g is None else t.add_(g) for t, g in zip(totals, grads[count:], strict=True)]  # type: ignore
                else:
                    totals = [None if g is None else g.clone() for g in grads[count:]]  # type: ignore
        return None, None, None, None, None, *cotangent, *totals


def _require_same(replay: list[Tensor], first: tuple[Tensor, ...]) -> None:
    """One comparison a solve is cheap, and dropout inside a lower loss would otherwise only be seen in bad
    results."""
    for a, b in zip(replay, first, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise SolveError(
                "a lower step gave another result when it was replayed: is there dropout, a random augmentation or a "
                "data loader inside the lower loss? It must be a function of its arguments alone"
            )
