"""Weights files whose header and tensors do not belong together are refused at once, and all others are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tiny_models import untrained
from twofold import specs, zoo
from twofold.contracts import ImageError, WeightsError
from twofold.degrade.blur import read_kernel


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return untrained(specs.PlainSpec(net=specs.UNetSpec(widths=[8, 8], blocks=[1, 1])), tmp_path / "m.safetensors")


def with_header(model: Path, net: dict[str, object], **tensors: torch.Tensor) -> Path:
    spec = specs.PlainSpec(net=specs.UNetSpec(widths=[8, 8], blocks=[1, 1])).model_dump(mode="json")
    spec["net"] |= net
    save_file({**load_file(model), **tensors}, model, metadata={"twofold_model": json.dumps(spec)})
    return model


@pytest.mark.parametrize(
    "net",
    [
        {"blocks": [1_000_000, 1]},
        {"blocks": [1, 10**9]},
        {"widths": [10**6, 10**6]},
        {"widths": [10**9, 8]},
        {"widths": [16, 16]},
        {"blocks": [2, 1]},
    ],
    ids=str,
)
def test_a_header_that_names_another_model_is_refused_before_it_is_built(model: Path, net: dict[str, object]) -> None:
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += 1

    handle = register_module_parameter_registration_hook(count)
    try:
        with pytest.raises(WeightsError, match="the weights do not fit the model its header names"):
            zoo.load_restorer(with_header(model, net))
    finally:
        handle.remove()
    assert made < 1000


def test_integer_weights_are_refused(model: Path) -> None:
    name, tensor = next(iter(load_file(model).items()))
    with pytest.raises(WeightsError, match=r"is of torch.int32, expected torch.float32"):
        zoo.load_restorer(with_header(model, {}, **{name: tensor.int()}))


def test_a_tensor_too_many_is_refused(model: Path) -> None:
    with pytest.raises(WeightsError, match="has an unexpected extra"):
        zoo.load_restorer(with_header(model, {}, extra=torch.zeros(3)))


@pytest.mark.parametrize("name", list(zoo.cards()))
def test_every_shipped_model_passes(name: str) -> None:
    zoo.load_restorer(name)


def test_a_damaged_card_disables_no_other_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil
    from importlib import resources

    whole = resources.files("twofold") / "weights"
    names = [name for name, card in zoo.cards().items() if card.bytes]  # classical models have no weights
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in names[:2]:
        for suffix in (".json", ".safetensors"):
            shutil.copy(str(whole / f"{name}{suffix}"), folder)
    (folder / f"{names[0]}.json").write_text('{"name": 1')
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    assert list(zoo.cards()) == [names[1]]
    with pytest.raises(WeightsError, match=f"the card of '{names[0]}' is damaged"):
        zoo.load_restorer(names[0])


def test_a_kernel_file_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.npy"
    np.save(path, np.ones((3, 3)))
    path.write_bytes(path.read_bytes().replace(b"(3, 3), }", b"(100000, 100000), }"))
    with pytest.raises(ImageError, match=r"k\.npy cannot be read"):
        read_kernel(path)
    np.save(path, np.ones((1, 4097 * 4097), np.uint8))
    with pytest.raises(ImageError, match="more than a kernel can have"):
        read_kernel(path)
