"""A training run on disk: one safetensors file with the tensors, their arrangement in its header, written whole or
not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twofold.contracts import TwofoldError, WeightsError
from twofold.files import replacing


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The JSON skeleton of a tree of dicts, lists and plain values; each tensor moves to `tensors` under its path.

    >>> tensors = {}
    >>> pack({"a": [1, torch.ones(2)], 3: "b"}, tensors), list(tensors)
    ({'dict': [['a', {'list': [1, {'tensor': '/a/1'}]}], [3, 'b']]}, ['/a/1'])
    """
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().contiguous()
        return {"tensor": path}
    if isinstance(tree, Mapping):
        return {"dict": [[key, pack(value, tensors, f"{path}/{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [pack(value, tensors, f"{path}/{i}") for i, value in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"cannot store a {type(tree).__name__} at {path or 'the top'}")


def unpack(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree `pack` took apart; tuples come back as lists."""
    if not isinstance(skeleton, dict):
        return skeleton
    if "tensor" in skeleton:
        return tensors[skeleton["tensor"]]
    if "list" in skeleton:
        return [unpack(value, tensors) for value in skeleton["list"]]
    return {key: unpack(value, tensors) for key, value in skeleton["dict"]}


def write_state(path: Path, state: Any) -> None:
    """Writes `state` under a temporary name, then renames it: an interruption leaves the former file whole.

    Raises: TwofoldError if the folder cannot be written or the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = pack(state, tensors)
    # shared storage (tied weights, views of one buffer) is stored once for each name
    tensors = {name: t.clone() if t.untyped_storage().nbytes() != t.nbytes else t for name, t in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"twofold_state": json.dumps(skeleton)})
        except SafetensorError as error:
            raise TwofoldError(f"cannot write {path}: {error}") from error


def read_state(path: Path, device: torch.device | str = "cpu") -> Any:
    """What `write_state` stored. Raises: WeightsError for a file that is missing, damaged or not a training state."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return unpack(json.loads(metadata["twofold_state"]), tensors)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise WeightsError(
            f"{path} is not a training state that can be resumed ({error}); remove it to start again"
        ) from error
