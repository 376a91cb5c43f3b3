"""An exported model computes what the model computes, at every size, with and without what may be left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_models import TINY, untrained
from twofold import specs, zoo
from twofold.contracts import ConfigError, TwofoldError
from twofold.export import export, network, onnx_graph, precision
from twofold.export.network import Whole
from twofold.tiling import padded

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

NOISE = specs.GuidedSpec(
    guidance="noise_level",
    channels=1,
    guide=specs.GuideSpec(width=8),
    net=specs.DeconvolutionSpec(stages=2, unet=specs.UNetSpec(widths=[4, 8], blocks=[1, 1])),
)
GLOBAL = specs.GuidedSpec(
    guidance="depth",
    guide=specs.GuideSpec(unet=specs.UNetSpec(widths=[8, 8], blocks=[1, 1], context=4, output="map")),
    net=specs.UNetSpec(widths=[8, 8], blocks=[1, 1], context=6, output="hadamard"),
)
STAGES = specs.GuidedSpec(
    guidance="rain_region",
    guide=specs.GuideSpec(width=8, stage=True),
    net=specs.PReNetSpec(recurrences=2, width=8),
)


class Made:
    """An exported tiny model: the network, the session, the files."""

    def __init__(self, folder: Path, spec: specs.GuidedSpec | specs.PlainSpec) -> None:
        self.source = untrained(spec, folder / "tiny.safetensors")
        if spec is NOISE:  # how far a Fourier step amplifies rounding errors is as it is before training
            torch.manual_seed(0)
            steady = NOISE.build()
            state = zoo.read_weights(self.source)[1]
            kept = {name: value for name, value in state.items() if "prior_weight" not in name}
            steady.load_state_dict({**steady.state_dict(), **kept})
            zoo.save_restorer(self.source, steady, NOISE)
        self.file = folder / "out" / "tiny.onnx"
        self.facts = export(self.source, self.file)
        self.whole = Whole(zoo.load_restorer(self.source))
        self.run = onnx_graph.Session(self.file.read_bytes())


@pytest.fixture(scope="module")
def rain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    spec = specs.GuidedSpec(guidance="rain_region", guide=specs.GuideSpec(width=8), net=TINY)
    return Made(tmp_path_factory.mktemp("rain"), spec)


@pytest.fixture(scope="module")
def everything_global(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("global"), GLOBAL)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max().item() < tolerance


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (16, 16), (33, 48), (71, 39)])
def test_the_picture_alone_gives_what_the_model_gives_at_any_size(rain: Made, size: tuple[int, int]) -> None:
    observed = torch.rand(2, 3, *size)
    height, width = size
    with torch.no_grad():
        expected = rain.whole.restorer(padded(observed, rain.whole.restorer.multiple))
    restored, guidance = rain.run({"observed": observed})
    close(restored, expected.image[..., :height, :width])
    close(guidance, expected.guidance[..., :height, :width])


def test_a_map_that_is_given_is_used_and_returned(rain: Made) -> None:
    observed, given = torch.rand(1, 3, 20, 24), torch.rand(1, 1, 20, 24)
    with torch.no_grad():
        expected = rain.whole.restorer(observed, guidance=given).image
    restored, guidance = rain.run({"observed": observed, "guidance": given})
    close(restored, expected)
    close(guidance, given)


def test_one_number_is_a_map_and_negative_pixels_are_estimated(rain: Made) -> None:
    observed = torch.rand(1, 3, 20, 24)
    own = rain.run({"observed": observed})[1]
    close(rain.run({"observed": observed, "guidance": torch.full((1, 1, 1, 1), 0.25)})[1], torch.full_like(own, 0.25))
    half = torch.full((1, 1, 20, 24), 0.5)
    half[..., :10, :] = -1
    close(rain.run({"observed": observed, "guidance": half})[1], torch.where(half < 0, own, half))


def test_strength_scales_the_map(rain: Made) -> None:
    observed = torch.rand(1, 3, 20, 24)
    own = rain.run({"observed": observed})[1]
    close(rain.run({"observed": observed, "strength": torch.tensor([0.5])})[1], own / 2)
    assert rain.run({"observed": observed, "strength": torch.tensor([1.5])})[1].max() <= 1


def test_the_sidecar_says_what_to_do_before_and_after(rain: Made) -> None:
    facts = json.loads(rain.file.with_suffix(".json").read_text())
    assert facts == rain.facts
    assert [each["name"] for each in facts["inputs"]] == ["observed", "guidance", "strength"]
    assert [bool(each.get("optional")) for each in facts["inputs"]] == [False, True, True]
    assert [each["name"] for each in facts["outputs"]] == ["restored", "guidance_used"]
    assert facts["before"]["network_multiple"] == 2
    assert facts["tiles"] == {"possible": True, "halo": rain.whole.restorer.halo, "start_at_multiples_of": 2}
    assert facts["guidance"]["name"] == "rain_region"
    assert facts["check"]["largest_deviation"] < 1e-4
    inside = json.loads(onnx.load(rain.file).metadata_props[0].value)
    assert inside["inputs"] == facts["inputs"]
    assert set(rain.file.parent.iterdir()) == {rain.file, rain.file.with_suffix(".json")}


def test_the_file_is_a_valid_model(rain: Made) -> None:
    onnx.checker.check_model(onnx.load(rain.file), full_check=True)


def test_a_tile_with_the_context_of_the_whole_equals_the_whole(everything_global: Made) -> None:
    made = everything_global
    observed = torch.rand(1, 3, 96, 80)
    restored, guidance, context = made.run({"observed": observed})
    assert context.shape == (1, 10)
    halo = made.facts["tiles"]["halo"]
    assert halo % 2 == 0
    tile = {"observed": observed[..., 96 - 32 - halo :, :], "context": context}
    close(made.run(tile)[0][..., -32:, :], restored[..., -32:, :])
    close(made.run(tile)[1][..., -32:, :], guidance[..., -32:, :])
    alone = made.run({"observed": tile["observed"]})[0][..., -32:, :]
    assert (alone - restored[..., -32:, :]).abs().max() > 1e-3


def test_the_fourier_steps_hold_for_any_picture_and_kernel(tmp_path: Path) -> None:
    made = Made(tmp_path, NOISE)
    for size, kernel in (((40, 56), (5, 9)), ((43, 37), (12, 7)), ((64, 64), (1, 1))):
        given = network.example_inputs(made.whole, size=size, batch=3, kernel=kernel)
        with torch.no_grad():
            expected = made.whole.restorer(given["observed"], kernel=given["kernel"])
        restored, noise = made.run({name: given[name] for name in ("observed", "kernel")})
        close(restored, expected.image, 1e-3)
        close(noise, expected.guidance)


def test_a_guide_that_looks_at_every_stage_is_part_of_the_graph(tmp_path: Path) -> None:
    made = Made(tmp_path, STAGES)
    observed = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        expected = made.whole.restorer(observed)
    for got, wanted in zip(made.run({"observed": observed}), expected[:2], strict=True):
        close(got, wanted)


def test_torch_export_runs_without_this_library(tmp_path: Path, guided_model: Path) -> None:
    file = tmp_path / "tiny.pt2"
    facts = export(guided_model, file)
    assert facts["check"]["largest_deviation"] < 1e-4
    assert not any(each.get("optional") for each in facts["inputs"])
    given = network.example_inputs(Whole(zoo.load_restorer(guided_model)), size=(31, 22), batch=1)
    torch.save(given, tmp_path / "given.pt")
    code = (
        "import sys, torch; run = torch.export.load(sys.argv[1]).module(); given = torch.load(sys.argv[2]); "
        "torch.save(run(**given), sys.argv[3]); assert not any(n.startswith('twofold') for n in sys.modules)"
    )
    out = tmp_path / "out.pt"
    subprocess.run([sys.executable, "-c", code, str(file), str(tmp_path / "given.pt"), str(out)], check=True)
    with torch.no_grad():
        expected = Whole(zoo.load_restorer(guided_model))(**given)
    for got, wanted in zip(torch.load(out), expected, strict=True):
        close(got, wanted)


@pytest.mark.parametrize("bits", ["float16", "int8"])
def test_fewer_bits_are_in_the_file_and_cost_what_is_reported(
    bits: str, rain: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"{bits}.onnx"
    monkeypatch.setattr(precision, "LIMIT", 100.0)  # random weights bear no rounding
    facts: dict[str, Any] = export(rain.source, file, bits=bits)  # type: ignore[arg-type]
    kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer}
    assert (onnx.TensorProto.FLOAT16 if bits == "float16" else onnx.TensorProto.INT8) in kinds
    assert facts["check"]["pictures"] == 4
    observed = torch.rand(1, 3, 20, 24)
    reduced, full = onnx_graph.Session(file.read_bytes())({"observed": observed}), rain.run({"observed": observed})
    assert 0 < (reduced[0] - full[0]).abs().max() < 0.2
    given = {"observed": observed, "guidance": torch.full((1, 1, 1, 1), 0.25)}
    close(onnx_graph.Session(file.read_bytes())(given)[1], torch.full((1, 1, 20, 24), 0.25))


def test_fewer_bits_that_cost_too_much_are_not_written(
    rain: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cost", lambda *_, **__: float("nan"))
    with pytest.raises(TwofoldError, match="int8 costs nan dB"):
        export(rain.source, tmp_path / "new" / "x.onnx", bits="int8")
    assert not (tmp_path / "new").exists()


def test_a_graph_that_computes_something_else_is_not_written(
    rain: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(onnx_graph.Session):
        def __call__(self, inputs: Any) -> list[Tensor]:
            return [each + 0.01 for each in super().__call__(inputs)]

    monkeypatch.setattr(onnx_graph, "Session", Wrong)
    with pytest.raises(TwofoldError, match=r"deviates from the network by 0\.01"):
        export(rain.source, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_with_a_reason(tmp_path: Path, plain_model: Path) -> None:
    spec = specs.RainLayersSpec()
    file = tmp_path / "layers.safetensors"
    zoo.save_restorer(file, spec.build(), spec)
    with pytest.raises(TwofoldError, match="no network of a fixed length"):
        export(file, tmp_path / "layers.onnx")
    with pytest.raises(ConfigError, match="suffix says no format"):
        export(plain_model, tmp_path / "model.bin")
    with pytest.raises(ConfigError, match=r"torch\.export keeps float32"):
        export(plain_model, tmp_path / "model.pt2", bits="int8")


def test_the_cost_counts_the_worst_picture() -> None:
    clean = torch.full((1, 3, 8, 8), 0.5)
    found = [precision.DegradedPhotograph({"observed": clean}, clean)] * 2
    errors = iter([0.02, 0.01])

    def full(inputs: Any) -> list[Tensor]:
        return [clean + 0.01]

    def fewer(inputs: Any) -> list[Tensor]:
        return [clean + next(errors)]

    lost = precision.cost(full, fewer, found, known=True)  # type: ignore[arg-type]
    assert lost == pytest.approx(6.02, abs=0.01)


NETWORKS = [name for name, card in zoo.cards().items() if card.model.kind in ("guided", "plain")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_shipped_model_is_exported_and_computes_the_same(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.onnx"
    facts = export(name, file)
    assert facts["check"]["largest_deviation"] < 5e-4
    whole = Whole(zoo.load_restorer(name))
    given = network.example_inputs(whole, size=(45, 38), batch=1, kernel=(5, 5), seed=9)
    with torch.no_grad():
        expected = whole(**given)
    required = {key: given[key] for key in ("observed", "kernel") if key in given}
    for got, wanted in zip(onnx_graph.Session(file.read_bytes())(required), expected, strict=True):
        close(got, wanted, 5e-4)
