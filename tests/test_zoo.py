"""Models in files: what is written is read, and what is no model is refused before anything in it runs."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tiny_models import TINY, untrained
from twofold import specs, tiling, zoo
from twofold.contracts import TwofoldError, WeightsError


def states_equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("net", [TINY, specs.PReNetSpec(recurrences=2, width=4)])
@pytest.mark.parametrize("guided", [True, False])
def test_a_file_alone_rebuilds_the_model(tmp_path: Path, net: specs.UNetSpec | specs.PReNetSpec, guided: bool) -> None:
    spec = specs.GuidedSpec(guidance="depth", net=net) if guided else specs.PlainSpec(net=net)
    path = untrained(spec, tmp_path / "model.safetensors")
    torch.manual_seed(0)
    first, second = zoo.load_restorer(path), zoo.load_restorer(path)
    assert states_equal(first, second)
    assert not first.training
    observed = torch.rand(1, 3, 8, 8)
    assert torch.equal(first(observed).image, second(observed).image)
    assert (first.kind is not None) == guided


def test_saving_and_loading_keeps_every_bit(tmp_path: Path) -> None:
    restorer = specs.PlainSpec(net=TINY).build()
    zoo.save_restorer(tmp_path / "model.safetensors", restorer, specs.PlainSpec(net=TINY))
    assert states_equal(zoo.load_restorer(tmp_path / "model.safetensors"), restorer)


def test_half_the_size_costs_less_than_a_thousandth(tmp_path: Path) -> None:
    restorer, spec = specs.PlainSpec(net=TINY).build(), specs.PlainSpec(net=TINY)
    zoo.save_restorer(tmp_path / "full.safetensors", restorer, spec)
    zoo.save_restorer(tmp_path / "half.safetensors", restorer, spec, half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    half = zoo.load_restorer(tmp_path / "half.safetensors")
    for a, b in zip(half.parameters(), restorer.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_an_unknown_name_offers_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "cards", lambda: {"derain": SimpleNamespace(name="derain"), "dehaze": None})
    with pytest.raises(WeightsError, match="unknown model 'derian'; did you mean 'derain'"):
        zoo.load_restorer("derian")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights at .*nowhere\.safetensors"):
        zoo.load_restorer(tmp_path / "nowhere.safetensors")


def test_a_folder_is_no_model_and_the_file_in_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(WeightsError, match=r"runs is a folder; name .* e\.g\. .*runs/model\.safetensors$"):
        zoo.load_restorer(tmp_path / "runs")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(WeightsError, match=r"name of the model is empty; .* known: "):
        zoo.load_restorer(name)


@pytest.mark.parametrize("name", ["model.safetensors", "model"])
@pytest.mark.parametrize("where", ["open", "stat"])
def test_weights_that_may_not_be_read_are_one_line(
    guided_model: Path, tmp_path: Path, name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(guided_model.read_bytes())

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    shipped = zoo.cards()
    monkeypatch.setattr(zoo, "cards", lambda: shipped)
    with monkeypatch.context() as patch:
        patch.setattr(Path, where, denied)
        with pytest.raises(WeightsError, match=r"model.* cannot be read \(Permission denied\)") as caught:
            zoo.load_restorer(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(guided_model: Path, tmp_path: Path, kept: float) -> None:
    content = guided_model.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        zoo.load_restorer(path)


@pytest.mark.parametrize("widths", [[16, 8], [8]])
def test_weights_of_another_model_are_refused(tmp_path: Path, widths: list[int]) -> None:
    other = specs.PlainSpec(net=specs.UNetSpec(widths=widths, blocks=[1] * len(widths)))
    zoo.save_restorer(tmp_path / "model.safetensors", other.build(), specs.PlainSpec(net=TINY))
    with pytest.raises(WeightsError, match="do not fit") as caught:
        zoo.load_restorer(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "does not say which model"),
        ({"kind": "oracle"}, "does not know"),
        ({"kind": "plain", "net": {"kind": "unet", "depth": 3}}, "does not know"),
        ({"kind": "plain", "net": {"kind": "unet", "widths": [8, 8], "blocks": [1]}}, "do not fit"),
        ({"kind": "plain", "net": {"kind": "unet", "widths": [], "blocks": []}}, "do not fit"),
    ],
)
def test_a_header_that_builds_nothing_is_refused(tmp_path: Path, header: object, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, None if header is None else {"twofold_model": json.dumps(header)})
    with pytest.raises(WeightsError, match=reason):
        zoo.load_restorer(path)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model"])
@pytest.mark.parametrize("form", ["torch", "old torch", "pickle 0", "pickle 2", "pickle 5"])
def test_a_pickle_is_refused_and_never_unpickled(tmp_path: Path, name: str, form: str) -> None:
    path, sprung = tmp_path / name, tmp_path / "sprung"
    if "torch" in form:
        torch.save({"weight": Trap(sprung)}, path, _use_new_zipfile_serialization=form == "torch")
    else:
        path.write_bytes(pickle.dumps(Trap(sprung), int(form[-1])))
    with pytest.raises(WeightsError, match="pickle" if form != "pickle 0" else "safetensors"):
        zoo.load_restorer(path)
    assert not sprung.exists()
    if "torch" not in form:
        pickle.loads(path.read_bytes())
        assert sprung.exists()  # the trap works


def test_a_full_disk_leaves_the_former_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = untrained(specs.PlainSpec(net=TINY), tmp_path / "model.safetensors")
    before = path.read_bytes()

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TwofoldError, match="No space left"):
        zoo.save_restorer(path, specs.PlainSpec(net=TINY).build(), specs.PlainSpec(net=TINY))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("card", zoo.cards().values(), ids=lambda card: card.name)
def test_a_shipped_model_is_what_its_card_says(card: zoo.Card) -> None:
    restorer = zoo.load_restorer(card.name)
    weights = list(restorer.parameters()) if isinstance(restorer, nn.Module) else []
    assert sum(p.numel() for p in weights) == card.parameters
    assert card.bytes < 5_000_000
    assert card.numbers
    observed = tiling.padded(torch.rand(1, restorer.channels, 19, 23), restorer.multiple)
    restored = restorer(observed, kernel=torch.full((1, 1, 3, 3), 1 / 9) if restorer.takes_kernel else None)
    assert restored.image.shape == observed.shape
    assert torch.isfinite(restored.image).all()
