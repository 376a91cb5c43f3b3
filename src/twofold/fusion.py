"""A network's convolutions, each with the sum and the activation behind it, as one operation of oneDNN.

This saves the memory traffic of the intermediate features. CPU only, without gradients.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, nn.ReLU, "relu"), "relu"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, nn.Sigmoid, "sigmoid"), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, nn.Tanh, "tanh"), "tanh"),
}
_SUMS = (operator.add, torch.add)
_PRODUCTS = (operator.mul, torch.mul)
_IN_PLACE = {"relu": torch.relu_, "sigmoid": torch.sigmoid_, "tanh": torch.tanh_}


def fused(network: nn.Module, *, dtype: torch.dtype = torch.float32, inputs: int = 1) -> fx.GraphModule:
    """`network` with every convolution, and the sum and activation that follow it, as one operation of oneDNN.

    A convolution whose output is split into parts with different activations (the gates of an LSTM) becomes one for
    each part, activations of what is never negative are left out, and sums and products overwrite what is not used
    again. inputs: how many arguments of `forward` are given; the others keep their defaults.

    Needs a network that `torch.fx` can trace: no decisions that depend on pixels.
    """
    parameters = list(inspect.signature(network.forward).parameters.items())
    graph = _Tracer().trace(network, {name: parameter.default for name, parameter in parameters[inputs:]})
    traced = fx.GraphModule(network, graph)
    layers = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        layer = layers.get(node.target) if node.op == "call_module" else None
        if getattr(layer, "full_precision", False):
            continue
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
            for part, channels in _parts(node, layer):
                _fuse(traced, layers, part, node.args[0], layer, channels, dtype)
    traced.graph.eliminate_dead_code()
    layers = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if _activation(node, layers) == "relu" and _never_negative(node.args[0], layers):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    for node in traced.graph.nodes:
        _overwrite(node, layers)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    """Enters every module but torch's own, and those that say `full_precision`: they run as they are, in float32."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or getattr(m, "full_precision", False)


class FusedConvolution(nn.Module):
    """activation(convolution(x) + other), in one pass; computes and returns `dtype`.

    x: `(B, C, H, W)`. other: `(B, D, H, W)`, as the result, or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, channels: slice, activation: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach()[channels].to(dtype))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach()[channels].to(dtype))
        self.settings = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        self.activation = activation

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        convolution = torch.ops.mkldnn._convolution_pointwise
        layer = (self.weight, self.bias, *self.settings)
        x = x.to(self.weight.dtype)
        result: Tensor
        if other is None:
            result = convolution(x, *layer, self.activation or "none", [], "")
        else:
            result = convolution.binary(x, other.to(x.dtype), *layer, "add", 1.0, self.activation, [], "")
        return result


def _parts(node: fx.Node, layer: nn.Conv2d) -> list[tuple[fx.Node, slice]]:
    """The convolution `node` itself, or the parts that it is split into, each with its output channels."""
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_method" and users[0].target == "chunk" and users[0].args[2:] == (1,):
        count: Any = users[0].args[1]
        step, rest = divmod(layer.out_channels, count)
        parts = list(users[0].users)
        if layer.groups == 1 and rest == 0 and all(part.target is operator.getitem for part in parts):
            starts: list[Any] = [part.args[1] for part in parts]
            return [(part, slice(i * step, (i + 1) * step)) for part, i in zip(parts, starts, strict=True)]
    return [(node, slice(None))]


def _fuse(
    traced: fx.GraphModule,
    layers: dict[str, nn.Module],
    part: fx.Node,
    x: Any,
    layer: nn.Conv2d,
    channels: slice,
    dtype: torch.dtype,
) -> None:
    """Replaces `part`, and what may follow it, by one convolution that stands where the last of them stood."""
    last, other = part, None
    follower = _only_user(part)
    activation = _activation(follower, layers)
    if activation and follower is not None:
        last = follower
    elif follower is not None and follower.target in _SUMS and len(follower.args) == 2 and not follower.kwargs:
        # Only where an activation comes next: a bare sum may be the network's output, to be kept in float32.
        end = _only_user(follower)
        addends = [addend for addend in follower.args if addend is not part]
        if end is not None and (activation := _activation(end, layers)) and len(addends) == 1:
            last, other = end, addends[0]
    if not isinstance(other, fx.Node):  # a number is no picture
        other, last, activation = None, last if last is follower else part, activation if last is follower else ""
    name = f"fused_{part.name}"
    traced.add_submodule(name, FusedConvolution(layer, channels, activation, dtype))
    with traced.graph.inserting_before(last):
        last.replace_all_uses_with(traced.graph.call_module(name, (x,) if other is None else (x, other)))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node | None, layers: dict[str, nn.Module]) -> str:
    """The name of the activation that `node` computes, empty if it does anything else."""
    if node is None or node.op not in ("call_function", "call_method", "call_module"):
        return ""
    return _ACTIVATIONS.get(type(layers[str(node.target)]) if node.op == "call_module" else node.target, "")


def _never_negative(node: Any, layers: dict[str, nn.Module]) -> bool:
    if not isinstance(node, fx.Node):
        return False
    layer = layers.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(layer, FusedConvolution):
        return layer.activation in ("relu", "sigmoid")
    if node.target in _SUMS + _PRODUCTS:
        return len(node.args) == 2 and not node.kwargs and all(_never_negative(part, layers) for part in node.args)
    return _activation(node, layers) in ("relu", "sigmoid")


def _overwrite(node: fx.Node, layers: dict[str, nn.Module]) -> None:
    """Lets `node` write over its first operand if that is a new tensor with no other reader."""

    def fresh(operand: Any) -> bool:
        if not isinstance(operand, fx.Node) or _only_user(operand) is not node:
            return False
        if operand.op == "call_module":
            return isinstance(layers[str(operand.target)], FusedConvolution)
        return operand.target in (*_SUMS, *_PRODUCTS, _sum_into, _product_into, *_IN_PLACE.values())

    if node.op != "call_function":
        return
    if node.target in _SUMS + _PRODUCTS and len(node.args) == 2 and not node.kwargs:
        first, second = node.args
        if fresh(second) and not fresh(first):
            first, second = second, first
        if fresh(first) and isinstance(second, fx.Node):
            node.args = (first, second)
            node.target = _sum_into if node.target in _SUMS else _product_into
    elif (activation := _activation(node, layers)) and fresh(node.args[0]):
        node.target, node.args, node.kwargs = _IN_PLACE[activation], node.args[:1], {}


def _sum_into(a: Tensor, b: Tensor) -> Tensor:
    return a.add_(b) if _holds(a, b) else a + b


def _product_into(a: Tensor, b: Tensor) -> Tensor:
    return a.mul_(b) if _holds(a, b) else a * b


def _holds(a: Tensor, b: Tensor) -> bool:
    """Whether `a` can take the result of an operation with `b`: same shape, and no loss of precision."""
    return a.shape == b.shape and torch.promote_types(a.dtype, b.dtype) == a.dtype
