"""A network as a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from twofold.solve.params import SolveError


def as_function(module: nn.Module) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A module as `(function, parameters)`: `function(parameters, *inputs)` computes what `module(*inputs)` does.

    The parameters are those that require a gradient; frozen ones (`requires_grad=False`) stay inside the function as
    they are. They share the module's memory and nothing is written to them; buffers are used as they are.

    Raises: SolveError for a module without parameters that require a gradient; and at every call while a BatchNorm or
    InstanceNorm of the module would write its running statistics: the lower problem would be another one after each
    step.

    >>> import torch
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> function, parameters = as_function(layer)
    >>> function({"weight": torch.tensor([[1.0, 10.0]])}, torch.tensor([[2.0, 3.0]]))
    tensor([[32.]])
    """
    norms = [(name, m) for name, m in module.named_modules() if isinstance(m, _NormBase) and m.track_running_stats]

    def function(parameters: dict[str, Tensor], *inputs: Any) -> Any:
        for name, layer in norms:
            if layer.training:
                kind = type(layer).__name__.rstrip("123d")
                raise SolveError(f"{kind} '{name}' is in training mode, which {TRAINING_BATCH_NORM}")
        return functional_call(module, parameters, inputs)

    parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        raise SolveError(
            f"{type(module).__name__} has no parameter that requires a gradient; call .requires_grad_() on what is to "
            "be learned"
        )
    return function, parameters


TRAINING_BATCH_NORM = (
    "changes its running statistics at every evaluation, so no two evaluations belong to the same problem; build it "
    "with track_running_stats=False (then it uses the statistics of the batch), call .eval() if its statistics are "
    "learned already, or use GroupNorm"
)
