"""Many steps, differentiated exactly by replaying them: the memory of states, not of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twofold.solve.params import SolveError, State, detach, filled, leaves, rebuild, slopes, tensors
from twofold.solve.watch import RANDOM, generator_states, same_states

LowerStep = Callable[[int, State, State], State]
"""(k, upper parameters, state) → state: pure, and differentiable in both trees."""

NO_FLOW = (
    "no step of the lower level depends on the upper parameters, so nothing flows through it: is the lower loss's or "
    "the operator's term in them detached or missing? Where that is meant, take FirstOrder"
)


def graphs_within(memory: float, step: LowerStep, upper: State, state: State, *, steps: int, first: int = 0) -> int:
    """How many of `steps` steps can keep their graph within so many bytes; two steps are taken to measure it.

    What a second step saves beyond a first one counts: data that all steps read is held once.

    >>> import math
    >>> grow = lambda k, w, u: w * u
    >>> one = torch.ones(100)
    >>> [graphs_within(b, grow, one, one, steps=9) for b in (0, 1000, math.inf)]      # each step saves u, 400 bytes
    [0, 2, 9]
    """
    if not memory >= 0:
        raise SolveError(f"expected graph_bytes of 0 or more, got {memory}")
    if memory == 0 or steps == 0 or memory == float("inf"):
        return 0 if memory == 0 else steps
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    w, u = leaves(upper), leaves(state)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        after = step(first, w, u)
        once = sum(saved.values())
        again = step(first, w, after)  # `after` holds the first graph, so nothing of it is freed and counted again
    each = max(sum(saved.values()) - once, sum(t.numel() * t.element_size() for t in tensors(again)), 1)
    return min(steps, int(memory // each))


def replayed(
    step: LowerStep, upper: State, start: State, *, steps: int, first: int = 0, keep_every: int = 1, together: int = 1
) -> State:
    """The state after `steps` steps from `start`, the first of them numbered `first`; exactly differentiable, once.

    Forward, nothing but every `keep_every`-th state is kept. Backward, `together` steps at a time are computed
    again with a graph, used and dropped. So memory is steps / keep_every + keep_every states and the activations of
    `together` steps, whatever the number of steps. Time is that of ordinary unrolling and one more plain evaluation
    of each step, two for keep_every > together. The least memory is near keep_every = √steps and together = 1; a
    larger `together` saves calls, which matters where a step is so small that calls cost more than arithmetic.

    Raises: SolveError where a step draws random numbers; in `backward` where a step does not repeat itself (a data
    loader inside the loss), where no step depends on the upper parameters, and where a second derivative is asked for.

    >>> w = torch.tensor(2.0, requires_grad=True)
    >>> u = replayed(lambda k, w, u: w * u, w, torch.tensor(1.0), steps=3)
    >>> u.item(), torch.autograd.grad(u, w)[0].item()                                      # w³ and 3 w²
    (8.0, 12.0)
    """
    if steps < 0 or keep_every < 1 or together < 1:
        raise SolveError(f"expected steps ≥ 0, keep_every ≥ 1, together ≥ 1, got {steps}, {keep_every}, {together}")
    if steps == 0:
        return start
    numbers = list(range(first, first + steps))
    groups = [numbers[i : i + together] for i in range(0, steps, together)]
    play: Any = _Replay.apply
    flat = play(
        step, detach(start), detach(upper), groups, -(-keep_every // together), *tensors(start), *tensors(upper)
    )
    return rebuild(start, list(flat))


class _Replay(torch.autograd.Function):
    """Steps come in groups that are replayed with one graph; the state before every `keep`-th group is kept."""

    @staticmethod
    def forward(
        ctx: Any, step: LowerStep, start: State, upper: State, groups: list[list[int]], keep: int, *_: Tensor
    ) -> tuple[Tensor, ...]:
        # One block for all states: kept one by one, small states would lie between the holes that large activations
        # leave, no hole would fit the next step's, and the process would grow to several times what it holds.
        device, count = tensors(start)[0].device, -(-len(groups) // keep)
        generators = generator_states(device)
        blocks = [t.new_empty((count, *t.shape)) for t in tensors(start)]
        state = start
        for i, group in enumerate(groups):
            if i % keep == 0:
                for block, tensor in zip(blocks, tensors(state), strict=True):
                    block[i // keep].copy_(tensor)
            state = _advance(step, group, upper, state)
        if not same_states(generators, generator_states(device)):
            raise SolveError(f"a lower step {RANDOM}")
        end = tuple(t.detach() for t in tensors(state))
        ctx.step, ctx.start, ctx.upper, ctx.groups, ctx.keep, ctx.blocks = step, start, upper, groups, keep, blocks
        ctx.save_for_backward(*end)
        return end

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise SolveError("a replayed gradient cannot be differentiated again (create_graph=True)")
        count, upper, groups = len(cotangents), ctx.upper, ctx.groups
        wanted = ctx.needs_input_grad[5:]
        cotangent: list[Any] = list(cotangents)
        totals: list[Any] = [
            torch.zeros_like(t) if n else None for t, n in zip(tensors(upper), wanted[count:], strict=True)
        ]
        seen = not any(wanted[count:])
        for begin in reversed(range(0, len(groups), ctx.keep)):
            stretch = groups[begin : begin + ctx.keep]
            states = [rebuild(ctx.start, [block[begin // ctx.keep] for block in ctx.blocks])]
            for group in stretch[:-1]:
                states.append(_advance(ctx.step, group, upper, states[-1]))
            for group in reversed(stretch):
                # Only what is asked for is a leaf: the very first state often is not, nor is all of upper.
                needs = wanted if group is groups[0] else (True,) * count + tuple(wanted[count:])
                before = states.pop()
                pairs = zip([*tensors(before), *tensors(upper)], needs, strict=True)
                flat = [t.detach().requires_grad_(n) for t, n in pairs]
                with torch.enable_grad():
                    replayed_upper, replayed_state = rebuild(upper, flat[count:]), rebuild(before, flat[:count])
                    after = tensors(_advance(ctx.step, group, replayed_upper, replayed_state))
                if group is groups[-1]:
                    _require_same(after, ctx.saved_tensors, tensors(before))
                inputs = [t for t in flat if t.requires_grad]
                raw = slopes(after, inputs, cotangent)
                seen = seen or any(g is not None for g in raw[sum(needs[:count]) :])
                found = iter(filled(raw, inputs))
                grads = [next(found) if n else None for n in needs]
                cotangent = grads[:count]
                for total, grad in zip(totals, grads[count:], strict=True):
                    if total is not None:
                        total.add_(grad)
        if not seen:
            raise SolveError(NO_FLOW)
        return None, None, None, None, None, *cotangent, *totals


def _advance(step: LowerStep, group: list[int], upper: State, state: State) -> State:
    for k in group:
        state = step(k, upper, state)
    return state


def _require_same(replay: list[Tensor], first: tuple[Tensor, ...], before: list[Tensor]) -> None:
    """The last group of steps must move the state as it did the first time, whatever the length of a step: rounding
    aside, changes are compared and not states, or small random steps would pass."""
    for a, b, start in zip(replay, first, before, strict=True):
        eps = torch.finfo(b.dtype).eps
        allowed = eps**0.5 * torch.linalg.vector_norm(b - start) + 4 * eps * torch.linalg.vector_norm(b)
        if bool(torch.linalg.vector_norm(a.detach() - b) > allowed):  # never where either is NaN
            raise SolveError(
                "a lower step gave another result when it was replayed: is there a data loader, a counter or a random "
                "augmentation inside the lower loss? It must be a function of its arguments alone: draw batches and "
                "masks once, outside"
            )
