"""Whether a weights file holds the model that its header names, found out before memory or time is spent on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook


class _TooLarge(ValueError):
    pass


def check_size(build: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> None:
    """Compares the tensors of a file, of any shape, with those of the model that `build` makes: names, shapes, and
    whether they are floating-point.

    The model is made on the device `meta`, which needs no memory, and given up as soon as it has several times more
    parameters than the file. So a header of a few bytes that names a million layers is refused at once.

    Raises: ValueError for the first difference.
    """
    most = 4 * sum(tensor.numel() for tensor in state.values()) + 1_000_000
    layers = 4 * len(state) + 100
    count = elements = 0
    here = threading.get_ident()

    def watch(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, elements
        if parameter is not None and threading.get_ident() == here:
            count, elements = count + 1, elements + parameter.numel()
            if count > layers or elements > most:
                raise _TooLarge(f"the header names a model far larger than the {len(state)} tensors of the file")

    handle = register_module_parameter_registration_hook(watch)
    try:
        with torch.device("meta"):
            expected = build().state_dict()
    finally:
        handle.remove()
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unexpected:
        what, name = ("lacks", min(missing)) if missing else ("has an unexpected", min(unexpected))
        raise ValueError(f"the file {what} {name}")
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise ValueError(f"{name} is of {state[name].dtype}, expected {tensor.dtype}")
