"""Arithmetic on states: a tensor, or tuples, lists and dicts of tensors, nested as you like.

Wherever `solve` speaks of a *state*, of *parameters* or of a *tree*, it means any of these. Where it speaks of
*samples*, every tensor of the state carries the same number of them, B, in its first dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

State: TypeAlias = Any  # a Tensor, or tuples, lists, dicts of states; Python's types cannot say "of the same structure"


class SolveError(ValueError):
    """A problem that cannot be solved as asked. The message says what was seen and what to do."""


def over(function: Callable[..., Tensor], first: State, *others: State) -> State:
    """The function at every tensor of a tree, or at the corresponding tensors of several.

    Raises: SolveError where a leaf is not a tensor.

    >>> over(torch.add, {"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)})
    {'w': tensor(3.)}
    """
    if isinstance(first, Tensor):
        return function(first, *others)
    if isinstance(first, dict):
        return {key: over(function, value, *(o[key] for o in others)) for key, value in first.items()}
    if isinstance(first, (tuple, list)):
        parts = [over(function, *column) for column in zip(first, *others, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise SolveError(f"expected tensors, or tuples and dicts of tensors, found a {type(first).__name__}")


def tensors(tree: State) -> list[Tensor]:
    """The tensors of a tree, in a fixed order.

    Raises: SolveError where a leaf is not a tensor.

    >>> [t.item() for t in tensors({"a": torch.tensor(1.0), "b": (torch.tensor(2.0),)})]
    [1.0, 2.0]
    """
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    over(lambda t: found.append(t) or t, tree)  # type: ignore[func-returns-value]
    return found


def rebuild(like: State, flat: list[Tensor]) -> State:
    """A tree with the structure of `like` and the tensors `flat`.

    >>> rebuild((torch.zeros(1), torch.zeros(1)), [torch.tensor(1), torch.tensor(2)])
    (tensor(1), tensor(2))
    """
    rest = iter(flat)
    return over(lambda _: next(rest), like)


def axpy(a: float | Tensor, x: State, y: State) -> State:
    """a x + y. `a`: a number, a scalar tensor, or `(B,)`, one number a sample.

    >>> axpy(2.0, (torch.tensor([1.0, 2.0]),), (torch.tensor([10.0, 10.0]),))
    (tensor([12., 14.]),)
    """
    return over(lambda x_, y_: _spread(a, x_) * x_ + y_, x, y)


def scale(a: float | Tensor, x: State) -> State:
    """a x, `a` as in `axpy`.

    >>> scale(torch.tensor([2.0, 3.0]), torch.ones(2, 2))
    tensor([[2., 2.],
            [3., 3.]])
    """
    return over(lambda x_: _spread(a, x_) * x_, x)


def minus(x: State, y: State) -> State:
    """x − y.

    >>> minus({"w": torch.tensor(3.0)}, {"w": torch.tensor(1.0)})
    {'w': tensor(2.)}
    """
    return over(torch.sub, x, y)


def zeros_like(x: State) -> State:
    """A state of zeros.

    >>> zeros_like((torch.ones(2),))
    (tensor([0., 0.]),)
    """
    return over(torch.zeros_like, x)


def detach(x: State) -> State:
    """The same numbers, cut off from whatever computed them.

    >>> detach(torch.ones(1, requires_grad=True)).requires_grad
    False
    """
    return over(torch.Tensor.detach, x)


def leaves(x: State) -> State:
    """The same numbers as fresh leaves that ask for a gradient.

    >>> leaves((torch.ones(1),))[0].requires_grad
    True
    """
    return over(lambda t: t.detach().requires_grad_(), x)


def dot(x: State, y: State, *, per_sample: bool = False) -> Tensor:
    """Inner product over all tensors of two states: a scalar, or `(B,)` with one number a sample.

    >>> dot((torch.tensor([1.0, 2.0]), torch.tensor([3.0])), (torch.tensor([4.0, 5.0]), torch.tensor([6.0]))).item()
    32.0
    """
    products = [_product(a, b, per_sample) for a, b in zip(tensors(x), tensors(y), strict=True)]
    return sum(products[1:], start=products[0])


def norm(x: State, *, per_sample: bool = False) -> Tensor:
    """Euclidean norm over all tensors of a state: a scalar, or `(B,)`.

    >>> norm((torch.tensor([3.0]), torch.tensor([[4.0]]))).item()
    5.0
    """
    return dot(x, x, per_sample=per_sample).sqrt()


def gradient(loss: Callable[[State], Tensor], at: State) -> State:
    """∇loss at a state; where the loss ignores a tensor, zeros. Can itself be differentiated iff grad mode is on.

    loss: a function to a scalar. Cost: one evaluation forward and one backward.

    >>> gradient(lambda u: (u**2).sum(), torch.tensor([1.0, -3.0]))
    tensor([ 2., -6.], grad_fn=<MulBackward0>)
    >>> with torch.no_grad():
    ...     gradient(lambda u: (u**2).sum(), torch.tensor([1.0, -3.0]))
    tensor([ 2., -6.])
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        flat = [t if differentiable and t.requires_grad else t.detach().requires_grad_() for t in tensors(at)]
        value = loss(rebuild(at, flat))
        if value.ndim != 0:
            raise SolveError(f"expected a loss that returns a scalar, got shape {tuple(value.shape)}; add .mean()")
        return rebuild(at, pull(value, flat, create_graph=differentiable))


def pull(
    outputs: Tensor | list[Tensor],
    inputs: list[Tensor],
    cotangents: list[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    """cotangentsᵀ ∂outputs/∂inputs, zeros for the inputs that the outputs do not see.

    >>> x, y = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> pull(x**2, [x, y])
    [tensor(6.), tensor(0.)]
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    seen = [k for k, output in enumerate(outputs) if output.requires_grad]
    if not seen or not inputs:
        return [torch.zeros_like(i) for i in inputs]
    found = torch.autograd.grad(
        [outputs[k] for k in seen],
        inputs,
        None if cotangents is None else [cotangents[k] for k in seen],
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return [torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)]


def as_function(module: nn.Module) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A module as `(function, parameters)`: `function(parameters, *inputs)` computes what `module(*inputs)` does.

    The parameters share the module's memory and nothing is written to them; buffers are used as they are.

    Raises: SolveError at every call while a BatchNorm of the module is in training mode: it writes its running
    statistics at each evaluation, so the lower problem would be another one after each step.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> function, parameters = as_function(layer)
    >>> function({"weight": torch.tensor([[1.0, 10.0]])}, torch.tensor([[2.0, 3.0]]))
    tensor([[32.]])
    """
    norms = [(name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats]

    def function(parameters: dict[str, Tensor], *inputs: Any) -> Any:
        for name, batch_norm in norms:
            if batch_norm.training:
                raise SolveError(f"BatchNorm '{name}' is in training mode, which {TRAINING_BATCH_NORM}")
        return functional_call(module, parameters, inputs)

    return function, {name: p.detach() for name, p in module.named_parameters()}


TRAINING_BATCH_NORM = (
    "changes its running statistics at every evaluation, so no two evaluations belong to the same problem; "
    "call .eval(), or use GroupNorm, InstanceNorm or no normalisation"
)


def _spread(a: float | Tensor, like: Tensor) -> float | Tensor:
    """`(B,)` in the shape that multiplies the samples of `like`."""
    return a.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(a, Tensor) and a.ndim == 1 else a


def _product(a: Tensor, b: Tensor, per_sample: bool) -> Tensor:
    return (a * b).flatten(1).sum(1) if per_sample and a.ndim > 1 else a * b if per_sample else (a * b).sum()
