"""Arithmetic on states: a tensor, or tuples, lists and dicts of tensors, nested as you like.

Wherever `solve` speaks of a *state*, of *parameters* or of a *tree*, it means any of these. Where it speaks of
*samples*, every tensor of the state carries the same number of them, B, in its first dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any  # a Tensor, or tuples, lists, dicts of states; Python's types cannot say "of the same structure"


class SolveError(ValueError):
    """A problem that cannot be solved as asked. The message says what was seen and what to do."""


def over(function: Callable[..., Tensor], first: State, *others: State) -> State:
    """The function at every tensor of a tree, or at the corresponding tensors of several.

    Entries of dicts correspond by their keys and are visited in sorted order, so the order in which a dict was filled
    never matters.

    Raises: SolveError where a leaf is not a tensor, or where the trees differ in structure.

    >>> over(torch.add, {"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)})
    {'w': tensor(3.)}
    >>> over(torch.add, {"w": torch.tensor(1.0)}, {"v": torch.tensor(2.0)})
    Traceback (most recent call last):
    twofold.solve.params.SolveError: expected a dict with the keys ['w'], got a dict with the keys ['v']
    """
    if isinstance(first, Tensor):
        for other in others:
            if not isinstance(other, Tensor):
                raise SolveError(f"expected a tensor, as in the tree beside it, got a {type(other).__name__}")
        return function(first, *others)
    if isinstance(first, dict):
        for other in others:
            if not isinstance(other, dict) or other.keys() != first.keys():
                raise SolveError(f"expected {_structure(first)}, got {_structure(other)}")
        found = {key: over(function, first[key], *(o[key] for o in others)) for key in _sorted(first)}
        return {key: found[key] for key in first}
    if isinstance(first, (tuple, list)):
        for other in others:
            if not isinstance(other, (tuple, list)) or len(other) != len(first):
                raise SolveError(f"expected {_structure(first)}, got {_structure(other)}")
        parts = [over(function, *column) for column in zip(first, *others, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise SolveError(f"expected tensors, or tuples and dicts of tensors, found a {type(first).__name__}")


def tensors(tree: State) -> list[Tensor]:
    """The tensors of a tree, in an order that its structure fixes: entries of dicts by their sorted keys.

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


def named(tree: State, name: str) -> list[tuple[str, Tensor]]:
    """The tensors of a tree with the expression that reads each, in the order of `tensors`.

    >>> [path for path, _ in named({"a": torch.ones(1), "b": (torch.ones(1),)}, "u")]
    ["u['a']", "u['b'][0]"]
    """
    if isinstance(tree, dict):
        return [pair for key in _sorted(tree) for pair in named(tree[key], f"{name}[{key!r}]")]
    if isinstance(tree, (tuple, list)):
        return [pair for i, part in enumerate(tree) for pair in named(part, f"{name}[{i}]")]
    tensors(tree)  # refuses what is not a tensor
    return [(name, tree)]


def require_real(tree: State, name: str) -> None:
    """Raises SolveError unless the tree holds tensors, all of them floating-point and real.

    >>> require_real({"count": torch.tensor(3)}, "u")
    Traceback (most recent call last):
    twofold.solve.params.SolveError: u['count'] is torch.int64, expected floating-point numbers; convert it with
    .float(), or leave it out of the tree and let the loss hold it
    """
    found = named(tree, name)
    if not found:
        raise SolveError(f"{name} holds no tensors, so there is nothing to solve for or to differentiate in")
    for path, tensor in found:
        if tensor.is_complex():
            raise SolveError(
                f"{path} is complex ({tensor.dtype}), expected real numbers; pass torch.view_as_real of it"
            )
        if not tensor.is_floating_point():
            raise SolveError(
                f"{path} is {tensor.dtype}, expected floating-point numbers; convert it with .float(), or leave it out "
                "of the tree and let the loss hold it"
            )


def require_finite(tree: State, name: str, remedy: str) -> None:
    """Raises SolveError that names the first tensor with a NaN or an infinity, and ends with what to do.

    >>> require_finite((torch.ones(2), torch.tensor([1.0, float("nan")])), "u", "check the data")
    Traceback (most recent call last):
    twofold.solve.params.SolveError: u[1] is not finite (nan at 1 of 2 entries): check the data
    """
    for path, tensor in named(tree, name):
        bad = ~tensor.isfinite()
        if bool(bad.any()):
            kind = "nan" if bool(tensor.isnan().any()) else "infinite"
            raise SolveError(f"{path} is not finite ({kind} at {int(bad.sum())} of {tensor.numel()} entries): {remedy}")


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
    products: list[Tensor] = []
    over(lambda a, b: products.append(_product(a, b, per_sample)) or a, x, y)  # type: ignore[func-returns-value]
    return sum(products[1:], start=products[0])


def norm(x: State, *, per_sample: bool = False) -> Tensor:
    """Euclidean norm over all tensors of a state: a scalar, or `(B,)`.

    >>> norm((torch.tensor([3.0]), torch.tensor([[4.0]]))).item()
    5.0
    """
    return dot(x, x, per_sample=per_sample).sqrt()


def gradient(loss: Callable[[State], Tensor], at: State, *, name: str = "the loss") -> State:
    """∇loss at a state; where the loss ignores a tensor, zeros. Can itself be differentiated iff grad mode is on.

    loss: a function to a scalar. name: what error messages call it. Cost: one evaluation forward and one backward.

    Raises: SolveError for a loss that is no scalar, or that depends on none of the tensors.

    >>> gradient(lambda u: (u**2).sum(), torch.tensor([1.0, -3.0]))
    tensor([ 2., -6.], grad_fn=<MulBackward0>)
    >>> with torch.no_grad():
    ...     gradient(lambda u: (u**2).sum(), torch.tensor([1.0, -3.0]))
    tensor([ 2., -6.])
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        flat = [t if differentiable and t.requires_grad else t.detach().requires_grad_() for t in tensors(at)]
        value = scalar(loss(rebuild(at, flat)), name)
        found = slopes(value, flat, create_graph=differentiable)
    require_seen(found, name, "the parameters it is differentiated in")
    return rebuild(at, filled(found, flat))


def scalar(value: Any, name: str) -> Tensor:
    """The value of a loss, which must be a scalar tensor.

    >>> scalar(torch.ones(2), "the loss")
    Traceback (most recent call last):
    twofold.solve.params.SolveError: expected a scalar from the loss, got shape (2,); add .mean() or .sum()
    """
    if not isinstance(value, Tensor):
        raise SolveError(f"expected a scalar tensor from {name}, got a {type(value).__name__}; does it call .item()?")
    if value.ndim != 0:
        raise SolveError(f"expected a scalar from {name}, got shape {tuple(value.shape)}; add .mean() or .sum()")
    return value


def require_seen(found: list[Tensor | None], name: str, what: str) -> None:
    """Raises SolveError where every slope (tensors of any shape) is None: the gradient would be zero, always.

    >>> require_seen([None], "the lower loss", "the lower parameters")
    Traceback (most recent call last):
    twofold.solve.params.SolveError: the lower loss does not depend on the lower parameters, so its gradient in them is
    identically zero: does it call the network itself instead of `function(parameters, inputs)` (see as_function),
    or detach them?
    """
    if all(slope is None for slope in found):
        raise SolveError(
            f"{name} does not depend on {what}, so its gradient in them is identically zero: does it call the network "
            "itself instead of `function(parameters, inputs)` (see as_function), or detach them?"
        )


def slopes(
    outputs: Tensor | list[Tensor],
    inputs: list[Tensor],
    cotangents: list[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor | None]:
    """cotangentsᵀ ∂outputs/∂inputs, of the same shape as the inputs; None for those that no output depends on.

    >>> x, y = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> slopes(x**2, [x, y])
    [tensor(6.), None]
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    seen = [k for k, output in enumerate(outputs) if output.requires_grad]
    if not seen or not inputs:
        return [None] * len(inputs)
    found = torch.autograd.grad(
        [outputs[k] for k in seen],
        inputs,
        None if cotangents is None else [cotangents[k] for k in seen],
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return list(found)


def filled(found: list[Tensor | None], like: list[Tensor]) -> list[Tensor]:
    """The same with zeros for None, of the same shape as `like`.

    >>> filled([None], [torch.ones(2)])
    [tensor([0., 0.])]
    """
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, like, strict=True)]


def pull(
    outputs: Tensor | list[Tensor],
    inputs: list[Tensor],
    cotangents: list[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    """`slopes` with zeros, of the same shape, for the inputs that no output depends on.

    >>> x, y = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> pull(x**2, [x, y])
    [tensor(6.), tensor(0.)]
    """
    found = slopes(outputs, inputs, cotangents, create_graph=create_graph, retain_graph=retain_graph)
    return filled(found, inputs)


def _sorted(tree: dict[Any, Any]) -> list[Any]:
    try:
        return sorted(tree)
    except TypeError:  # keys of several types
        return sorted(tree, key=lambda key: (type(key).__name__, repr(key)))


def _structure(tree: State) -> str:
    if isinstance(tree, dict):
        return f"a dict with the keys {_sorted(tree)}"
    if isinstance(tree, (tuple, list)):
        return f"a {type(tree).__name__} of {len(tree)}"
    return f"a {type(tree).__name__}"


def _spread(a: float | Tensor, like: Tensor) -> float | Tensor:
    """`(B,)` in the shape that multiplies the samples of `like`."""
    return a.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(a, Tensor) and a.ndim == 1 else a


def _product(a: Tensor, b: Tensor, per_sample: bool) -> Tensor:
    return (a * b).flatten(1).sum(1) if per_sample and a.ndim > 1 else a * b if per_sample else (a * b).sum()
