"""A run on disk: what went in comes out, whole or not at all."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from twofold.contracts import TwofoldError, WeightsError
from twofold.train import checkpoint

TENSORS = st.builds(
    lambda shape, seed, kind: (100 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))).to(kind),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 9),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | TENSORS
KEYS = st.text(max_size=4) | st.integers()
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[key], second[key]) for key in first)
    return type(first) is type(second) and first == second


@given(TREES)
def test_unpack_undoes_pack(tree: Any) -> None:
    tensors: dict[str, Tensor] = {}
    assert equal(checkpoint.unpack(checkpoint.pack(tree, tensors), tensors), tree)


def test_a_state_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {"a": [shared, shared[:3], shared.view(2, 3).t()], 3: {"b": None, "c": 0.1, "d": "ω", "e": True}}
    path = tmp_path / "run" / "state.safetensors"
    checkpoint.write_state(path, state)
    assert equal(checkpoint.read_state(path), state)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_json_cannot_hold_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match="cannot store a set at /a/1"):
        checkpoint.pack({"a": [1, {2}]}, {})


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """Files may not grow beyond `left` bytes: the same refusal of `write_state` as on a full disk."""
    kept, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_a_clear_error_and_leaves_the_former_state_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.write_state(path, {"done": 1, "weights": torch.ones(10)})
    with full_disk(4096), pytest.raises(TwofoldError, match=r"cannot write .*state\.safetensors") as caught:
        checkpoint.write_state(path, {"done": 2, "weights": torch.ones(100_000)})
    assert "\n" not in str(caught.value)
    assert checkpoint.read_state(path)["done"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with pytest.raises(WeightsError, match="is not a training state that can be resumed"):
        checkpoint.read_state(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="is not a training state that can be resumed"):
        checkpoint.read_state(path)
    checkpoint.write_state(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match="is not a training state that can be resumed"):
        checkpoint.read_state(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="is not a training state that can be resumed"):
        checkpoint.read_state(path)
