"""A restorer as one function of tensors, traced for pictures of any size.

What `restore` does around a network is part of the trace: the mirror image at the borders, the guidance map and its
strength, the global context, the Fourier steps. What it does to files is not; the sidecar says it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from twofold.contracts import Guidance, GuidanceKind, Restorer, TwofoldError
from twofold.nets.guide import is_function
from twofold.restorers.guided import Guided, Plain
from twofold.restorers.tile import FULL_STRENGTH, blended, scaled

aten = torch.ops.aten
ESTIMATE = -1.0
"""A guidance value below 0 stands for the model's own estimate at that pixel."""
_SIDES = (67, 85)  # no multiples of anything, so that padding is part of what is traced
_KERNEL = (9, 13)


class Whole(nn.Module):
    """observed `(B, C, H, W)` → restored `(B, C, H, W)`, and where the model has them the guidance map `(B, 1, H, W)`
    that was used and the context `(B, K)`.

    kernel: `(1, 1, h, w)`, for models that take one. guidance: `(B, 1, H, W)`, where negative values stand for the
    estimate. strength: `(1,)`, scales the map, or without a map the change of the picture. context: `(B, K)` of the
    picture that `observed` is a tile of; NaN stands for the context of `observed` itself.
    """

    def __init__(self, restorer: Restorer | nn.Module) -> None:
        super().__init__()
        if not isinstance(restorer, Guided | Plain):
            raise TwofoldError(
                f"{type(restorer).__name__} has no network of a fixed length (it may iterate until it has converged); "
                "export a model that is guided or plain"
            )
        self.restorer = restorer

    @property
    def kind(self) -> GuidanceKind | None:
        """What the guidance map means; None for a model without one."""
        return self.restorer.kind

    @property
    def takes_kernel(self) -> bool:
        """Whether the blur kernel is an input."""
        return self.restorer.takes_kernel

    @property
    def context_length(self) -> int:
        """Length K of the context vector, 0 for a local model."""
        with torch.no_grad():
            context = self.restorer.context(torch.zeros(1, self.restorer.channels, 8, 8))
        return 0 if context is None else context.shape[1]

    def outputs(self) -> tuple[str, ...]:
        """The names of what `forward` returns, in its order."""
        names = (
            ["restored"] + ["guidance_used"] * (self.kind is not None) + ["context_used"] * bool(self.context_length)
        )
        return tuple(names)

    def forward(
        self,
        observed: Tensor,
        kernel: Tensor | None = None,
        guidance: Tensor | None = None,
        strength: Tensor | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        height, width = observed.shape[-2:]
        seen = self.restorer.context(observed)
        if seen is not None and context is not None:
            seen = torch.where(context.isnan(), seen, context)
        pad = _Mirror(observed, self.restorer.multiple)
        whole = pad(observed)
        given: Any = None
        if guidance is not None:
            given = pad(torch.maximum(guidance, torch.full_like(observed[:, :1], ESTIMATE)))
        image, used = self.restore(whole, kernel, given, strength, seen)
        results = [each[..., :height, :width] for each in (image, used) if each is not None]
        return tuple(results) if seen is None else (*results, seen)

    def restore(
        self,
        observed: Tensor,
        kernel: Tensor | None,
        given: Tensor | None,
        strength: Tensor | None,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """What `restorers.tile` does to a tile, with a map of which some pixels are given: (image, map).

        Shapes as in `forward`: images `(B, C, H, W)`, maps `(B, 1, H, W)`.
        """
        more: dict[str, Any] = {"context": context} if kernel is None else {"context": context, "kernel": kernel}
        estimate = self.restorer.estimate(observed, context)
        if self.kind is None or estimate is None:
            image = self.restorer(observed, **more).image
            return (image if strength is None else blended(observed, image, strength)), None
        guidance = _chosen(estimate, given)
        if strength is None:
            image, used, _ = self.restorer(observed, guidance=guidance, **more)
            return image, used
        image, used, _ = self.restorer(observed, guidance=scaled(guidance, strength, self.kind), **more)
        return blended(observed, image, (strength / FULL_STRENGTH).clamp(max=1.0)), used


def _chosen(estimate: Guidance, given: Tensor | None) -> Guidance:
    """`given` where it is not negative, else the estimate."""
    if given is None:
        return estimate
    if is_function(estimate):
        return lambda observed, current: torch.where(given < 0, estimate(observed, current), given)
    return torch.where(given < 0, estimate, given)


class _Mirror:
    """Mirrors pictures at the right and the bottom until their sides are multiples of `multiple`, as `tiling.padded`,
    without decisions that depend on the size."""

    def __init__(self, images: Tensor, multiple: int) -> None:
        self.at = []
        if multiple > 1:
            for axis in (-2, -1):
                length = images.shape[axis]
                period = torch.scalar_tensor(2 * (length - 1), dtype=torch.int64, device=images.device).clamp(min=1)
                there = torch.arange((length + multiple - 1) // multiple * multiple, device=images.device) % period
                self.at.append((axis, torch.minimum(there, period - there)))

    def __call__(self, images: Tensor) -> Tensor:
        for axis, index in self.at:
            images = images.index_select(axis, index)
        return images


def example_inputs(
    whole: Whole, *, size: Sequence[int] = _SIDES, batch: int = 2, kernel: Sequence[int] = _KERNEL, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of a picture of random colours, with the defaults of those that may be left out."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {"observed": torch.rand(batch, whole.restorer.channels, *size, generator=generator)}
    if whole.takes_kernel:
        blur = torch.rand(1, 1, *kernel, generator=generator)
        inputs["kernel"] = blur / blur.sum()
    if whole.kind is not None:
        inputs["guidance"] = torch.full((batch, 1, *size), ESTIMATE)
    inputs["strength"] = torch.ones(1)
    if whole.context_length:
        inputs["context"] = torch.full((batch, whole.context_length), torch.nan)
    return inputs


def trace(whole: Whole) -> torch.export.ExportedProgram:
    """`whole` as a graph of ATen operations for any batch, size of picture and size of kernel."""
    free = torch.export.Dim.DYNAMIC
    sizes = {"observed": (0, 2, 3), "guidance": (0, 2, 3), "kernel": (2, 3), "strength": (), "context": (0,)}
    inputs = example_inputs(whole)
    shapes = {name: dict.fromkeys(sizes[name], free) for name in inputs}
    with warnings.catch_warnings(), torch.enable_grad():  # without gradients large pictures would be cut into pieces
        warnings.simplefilter("ignore")  # of torch's own deprecations
        program = torch.export.export(
            whole.eval(),
            (),
            inputs,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.remainder.Scalar:
            with graph.inserting_before(node):
                node.replace_all_uses_with(_remainder(graph, *node.args))
        elif node.target is torch.ops.aten.roll.default:
            with graph.inserting_before(node):
                node.replace_all_uses_with(_rolled(graph, *node.args))
    program.graph_module.graph = _copied(graph)  # in which nodes and those who use them agree again
    _drop_unused(program.graph_module.graph)
    program.graph_module.recompile()
    return program


def _copied(graph: fx.Graph) -> fx.Graph:
    fresh = fx.Graph(tracer_cls=graph._tracer_cls)
    nodes: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        nodes[node] = fresh.node_copy(node, nodes.__getitem__)
    fresh._codegen = graph._codegen
    return fresh


def _drop_unused(graph: fx.Graph) -> None:
    """Removes what is not used, and what the tracer asserts of sizes: that they are no multiples, as those of the
    example, and such. The graph is right for multiples too, and `export` runs it on both.
    """
    asserting = (torch.ops.aten._assert_scalar.default, torch.ops.aten._assert_tensor_metadata.default)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and (not node.users or node.target in asserting):
            graph.erase_node(node)


def _call(graph: fx.Graph, value: Any, operation: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node, and as its meta a `value` of the shape that it returns."""
    node = graph.call_function(operation, args, kwargs)
    node.meta["val"] = value
    return node


def _remainder(graph: fx.Graph, x: fx.Node, other: Any) -> fx.Node:
    """With the divisor as a tensor: ONNX translates no other kind where it depends on a size."""
    value = x.meta["val"]
    divisor = _call(graph, value.new_empty(()), aten.scalar_tensor.default, other, dtype=value.dtype)
    return _call(graph, torch.empty_like(value), aten.remainder.Tensor, x, divisor)


def _rolled(graph: fx.Graph, x: fx.Node, shifts: Sequence[Any], dims: Sequence[int]) -> fx.Node:
    """By an index: ONNX translates no shift that depends on a size."""
    for shift, axis in zip(shifts, dims, strict=True):
        value = x.meta["val"]
        length = _call(graph, value.shape[axis], aten.sym_size.int, x, axis)
        index = value.new_empty(value.shape[axis], dtype=torch.int64)
        there = _call(graph, index, aten.arange.default, length)
        moved = _call(graph, index, aten.sub.Tensor, there, shift)
        x = _call(graph, torch.empty_like(value), aten.index_select.default, x, axis, _remainder(graph, moved, length))
    return x
