"""Other runtimes compute what torch computes, and one is taken only where it was asked for or was chosen and kept."""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import untrained
from twofold import api, doctor, images, specs
from twofold.cli.app import run_command_line
from twofold.contracts import TwofoldError
from twofold.export import runtimes

for _library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_library, reason="the extra [onnx] is not installed")

NAMED = [
    "onnx",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("openvino") is None, reason="the extra [openvino] is not installed"
        ),
    ),
]
Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def with_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guided model whose guide and network see the whole picture."""
    net = specs.UNetSpec(widths=[8, 8], blocks=[1, 1], context=6)
    guide = specs.GuideSpec(unet=specs.UNetSpec(widths=[8, 8], blocks=[1, 1], context=4, output="map"))
    spec = specs.GuidedSpec(guidance="rain_region", guide=guide, net=net)
    return untrained(spec, tmp_path_factory.mktemp("models") / "context.safetensors")


def observed(height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("runtime", NAMED)
def test_a_runtime_restores_as_torch_does_in_tiles_and_by_a_map(runtime: Any, with_context: Path) -> None:
    plain, other = api.load(with_context, precision="exact"), api.load(with_context, runtime=runtime)
    assert other.graph is not None
    x, drawn = observed(), torch.rand(1, 1, 40, 56)
    for wishes in ({}, {"strength": 0.5}, {"strength": 0.05}, {"guidance": drawn}, {"guidance": 0.3, "strength": 1.5}):
        wanted, got = plain(x, **wishes), other(x, **wishes)
        assert (got.image - wanted.image).abs().max() < 1e-4
        assert got.guidance is not None
        assert (got.guidance - wanted.guidance).abs().max() < 1e-4
    assert (other(x, tile=16).image - plain(x).image).abs().max() < 1e-4
    assert torch.equal(other(x, strength=0.0).image, x)


@pytest.mark.parametrize("runtime", NAMED)
def test_a_model_in_a_runtime_can_be_pickled_and_its_graph_is_traced_once(
    runtime: Any, guided_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = api.load(guided_model, runtime=runtime)
    before = model(observed())
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(observed()).image, before.image)
    monkeypatch.setattr(runtimes.network, "trace", lambda whole: pytest.fail("the graph was kept"))
    api.load(guided_model, runtime=runtime)


def test_a_runtime_that_is_not_there_says_what_to_install(guided_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(runtimes.onnx_graph, "import_module", missing)
    with pytest.raises(TwofoldError, match=r"openvino is not installed; pip install 'twofold\[openvino\]'"):
        api.load(guided_model, runtime="openvino")
    with pytest.raises(TwofoldError, match=r"onnxruntime is not installed; pip install 'twofold\[onnx\]'"):
        api.load(guided_model, runtime="onnx")
    assert api.load(guided_model).graph is None


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"runtime": "onnx", "precision": "bf16"}, "no bfloat16 graph; take precision float32"),
        ({"runtime": "onnx", "precision": "exact"}, "precision exact is torch's own"),
        ({"runtime": "tensorrt"}, "expected auto, torch, onnx or openvino, got 'tensorrt'"),
    ],
)
def test_wishes_that_do_not_go_together_are_refused(wishes: dict[str, Any], reason: str, guided_model: Path) -> None:
    with pytest.raises(TwofoldError, match=reason):
        api.load(guided_model, **wishes)


def test_a_model_without_a_network_is_refused_by_name_and_left_alone_otherwise() -> None:
    with pytest.raises(TwofoldError, match="clahe is no network"):
        api.load("clahe", runtime="onnx")
    assert api.load("clahe").graph is None


@pytest.fixture
def no_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that were traced are kept, but nothing was chosen."""
    monkeypatch.setattr(runtimes, "choices_file", lambda: tmp_path / "cache" / "runtimes.json")


def keep(model: Path, **changes: Any) -> None:
    """As if a choice had been measured."""
    facts = {"model": model.name, "runtime": "onnx", "precision": "float32", "threads": 1, "left_out": {}}
    facts |= {"seconds": {"torch float32": 2.0, "onnx float32": 1.0}, "versions": runtimes.versions(), **changes}
    runtimes.choices_file().parent.mkdir(parents=True, exist_ok=True)
    runtimes.choices_file().write_text(json.dumps({runtimes._key(model): facts}))


def test_auto_takes_what_was_kept_for_this_model_and_these_versions(guided_model: Path, no_choices: None) -> None:
    assert api.load(guided_model).graph is None
    keep(guided_model)
    graph = api.load(guided_model).graph
    assert graph is not None
    assert graph.name == "onnx"
    assert api.load(guided_model, runtime="torch").graph is None
    assert api.load(guided_model, precision="float32").graph is None  # asked for by name
    assert "onnx float32 1000 ms, torch float32 2000 ms" in doctor._runtime(str(guided_model))["reason"]
    keep(guided_model, versions={"torch": "1.0"})
    assert api.load(guided_model).graph is None
    keep(guided_model, runtime="abacus")
    assert api.load(guided_model).graph is None
    runtimes.choices_file().write_text("{")
    assert api.load(guided_model).graph is None


def test_a_choice_is_the_fastest_of_those_that_keep_the_picture(
    guided_model: Path, no_choices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the runtimes is wrong by a grey level, however fast it is."""
    now = [0.0]
    took = {"torch exact": 4.0, "torch float32": 2.0, "onnx float32": 1.0, "wrong float32": 0.1}
    made = runtimes._candidates

    def candidates(*given: Any, **wishes: Any) -> Any:
        found, left_out = made(*given, **wishes)
        found = {name: run for name, run in found.items() if name in took}
        found["wrong float32"] = lambda *x: found["torch exact"](*x) + 2 / 255

        def timed(name: str, run: Any) -> Any:
            def called(*x: Any) -> Any:
                now[0] += took[name]
                return run(*x)

            return called

        return {name: timed(name, run) for name, run in found.items()}, left_out

    monkeypatch.setattr(runtimes, "_candidates", candidates)
    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(runtimes.time, clock, lambda: now[0])
    choice = runtimes.choose(guided_model, rounds=2)
    assert (choice.runtime, choice.precision) == ("onnx", "float32")
    assert choice.seconds == {name: took[name] for name in ("torch exact", "torch float32", "onnx float32")}
    assert "changes a photograph by " in choice.left_out["wrong float32"]
    assert runtimes.kept_choice(guided_model) == choice
    took["onnx float32"] = 1.95  # within the scatter of a measurement
    assert runtimes.choose(guided_model, rounds=1).runtime == "torch"
    took["torch float32"] = 5.0  # never slower than plain float32
    took["onnx float32"] = 6.0
    choice = runtimes.choose(guided_model, rounds=1)
    assert (choice.runtime, choice.precision) == ("torch", "exact")


def test_the_command_line_names_a_runtime(
    guided_model: Path, tmp_path: Path, picture: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    source, places = picture("a.png", 20, 24), [tmp_path / f"{name}.png" for name in ("torch", "onnx")]
    for place in places:
        arguments = ["restore", str(source), "-o", str(place), "-m", str(guided_model), "--runtime", place.stem]
        assert run_command_line(arguments) == 0
    one, other = (images.read(place).pixels for place in places)
    assert (one - other).abs().max() <= 1.01 / 255
    assert run_command_line(["restore", str(source), "-m", "derain", "--runtime", "abacus"]) == 2
    assert "--runtime is auto, torch, onnx or openvino, got 'abacus'" in capsys.readouterr().err


def test_doctor_measures_and_reports_when_asked(
    guided_model: Path, no_choices: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["doctor", "--no-test", "--model", str(guided_model)]) == 2
    assert "--model is for --choose" in capsys.readouterr().err
    run_command_line(["doctor", "--no-test", "--choose", "--model", str(guided_model), "--json"])
    report = json.loads(capsys.readouterr().out)
    chosen = report["runtimes"][str(guided_model)]
    assert chosen["reason"].startswith("measured with 1 thread: ")
    assert "onnx float32" in chosen["reason"]
    assert report["runtimes"]["derain"]["runtime"] == "torch"
    run_command_line(["doctor", "--no-test"])
    assert "derain, " in capsys.readouterr().out.split("runtime of ")[1]
