"""The same networks in torch, ONNX Runtime and OpenVINO, and how far each is from what the processor can do.

    python benchmarks/runtimes.py --json benchmarks/results/runtimes.json

One thread. The variants take turns, and the best round counts, in CPU seconds: other work on the machine disturbs those
least. "torch, float32" is the network as it was written; `restore` is the library's own way, which takes bfloat16 where
the model's card allows it. What is not installed is left out; the
extras are [onnx] and [openvino]. PReNet has random weights (`--prenet` names an imported file), so its pictures say
nothing about quality; `rms` is the deviation from plain float32 in grey levels, `change` that of PSNR in dB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from twofold import api, images, runtime, specs, zoo
from twofold.contracts import TwofoldError
from twofold.export import network, onnx_graph, precision
from twofold.files import write_text
from twofold.metrics import psnr

NETWORKS = ("derain", "prenet", "underwater", "dehaze")
Runner = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of models, and prenet; commas between")
    parser.add_argument("--prenet", type=Path, help="a weights file made by `twofold import`")
    parser.add_argument("--side", type=int, default=256, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    peak = {"float32": peak_rate(torch.float32), "bfloat16": peak_rate(torch.bfloat16)}
    result: dict[str, Any] = {
        "machine": f"{runtime.processor()}, 1 thread",
        "versions": versions(),
        "load": os.getloadavg()[0],
        "side": asked.side,
        "peak_gflop_per_second": {name: round(rate / 1e9, 1) for name, rate in peak.items()},
        "networks": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.networks.split(","):
            source = prenet(Path(folder), asked.prenet) if name == "prenet" else name
            result["networks"][name] = measure(source, name, asked.side, asked.rounds, peak)
            print(table(name, result["networks"][name]), flush=True)
    print("peak of one convolution, GFLOP/s:", result["peak_gflop_per_second"])
    if asked.json:
        write_text(asked.json, json.dumps(result, indent=1) + "\n")


def measure(source: str | Path, name: str, side: int, rounds: int, peak: Mapping[str, float]) -> dict[str, Any]:
    restorer: Any = zoo.load_restorer(source)
    whole = network.Whole(restorer)
    task = zoo.cards()[name].task if name in zoo.cards() else "rain"
    pair = precision.pairs(whole, task)[0]
    if whole.takes_kernel:
        raise SystemExit(f"{name} takes a kernel; this benchmark is of networks that see the picture alone")
    observed = nn.functional.interpolate(pair.inputs["observed"], (side, side), mode="bilinear", antialias=True)
    clean = nn.functional.interpolate(pair.clean, (side, side), mode="bilinear", antialias=True)
    runners, notes = variants(source, whole, observed, task)
    expected = runners["torch, float32"](observed).clamp(0, 1)
    seconds = dict.fromkeys(runners, (float("inf"), float("inf")))
    for _ in range(rounds):
        for variant, run in runners.items():
            seconds[variant] = min(seconds[variant], timed(run, observed))
    flop = count(restorer, observed)
    rows = {}
    for variant, run in runners.items():
        restored = run(observed).clamp(0, 1)
        cpu, wall = seconds[variant]
        rows[variant] = {
            "cpu_seconds": round(cpu, 4),
            "wall_seconds": round(wall, 4),
            "speedup": round(seconds["torch, float32"][0] / cpu, 2),
            "gflop_per_second": round(flop / cpu / 1e9, 1),
            "rms": round((restored - expected).square().mean().sqrt().item() * 255, 3),
            "change": round((psnr(restored, clean) - psnr(expected, clean)).item(), 4),
        }
    bound = {kind: round(flop / rate, 4) for kind, rate in peak.items()}
    return {"gflop": round(flop / 1e9, 2), "seconds_at_peak": bound, "variants": rows, **notes}


def variants(
    source: str | Path, whole: network.Whole, observed: Tensor, task: str
) -> tuple[dict[str, Runner], dict[str, Any]]:
    """Every way that is installed, by name, and what was found on the way."""

    def restored(model: api.Model) -> Runner:
        return lambda x: model.restore(images.from_any(x))[0].pixels

    found: dict[str, Runner] = {
        "torch, float32": restored(api.load(source, precision="exact")),
        "restore, float32": restored(api.load(source, precision="float32")),
        "restore, bf16": restored(api.load(source, precision="bf16")),
    }
    failed: dict[str, str] = {}
    model = onnx_graph.to_onnx(network.trace(whole), whole, {"written_by": "benchmark"})
    full = model.SerializeToString()
    calibration = [each.inputs for each in precision.pairs(whole, task)]
    forms = {"float32": full}
    try:
        forms["int8"] = precision.to_int8(model, calibration).SerializeToString()
    except (TwofoldError, RuntimeError, ValueError) as error:
        failed["int8"] = first_line(error)
    for form, data in forms.items():
        session = onnx_graph.Session(data)
        found[f"ONNX Runtime, {form}"] = lambda x, session=session: session({"observed": x})[0]
    try:
        import openvino
    except ImportError:
        failed["OpenVINO"] = "not installed"
        return found, {"left_out": failed}
    for form, data, hint in (
        ("float32", full, "f32"),
        ("bfloat16", full, "bf16"),
        *((form, data, "f32") for form, data in forms.items() if form == "int8"),
    ):
        try:
            found[f"OpenVINO, {form}"] = in_openvino(openvino, data, hint, observed)
        except RuntimeError as error:
            failed[f"OpenVINO, {form}"] = first_line(error)
    return found, {"left_out": failed}


def in_openvino(openvino: Any, data: bytes, hint: str, observed: Tensor) -> Runner:
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(data), "CPU", settings)
    request = compiled.create_infer_request()

    def run(x: Tensor) -> Tensor:
        request.infer({"observed": x.numpy()})
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    run(observed)
    return run


def prenet(folder: Path, weights: Path | None) -> Path:
    if weights is not None:
        return weights
    torch.manual_seed(0)
    spec = specs.PlainSpec(net=specs.PReNetSpec())
    restorer = spec.build()
    zoo.save_restorer(folder / "prenet.safetensors", restorer, spec)
    return folder / "prenet.safetensors"


def timed(run: Runner, observed: Tensor) -> tuple[float, float]:
    """(CPU seconds of the process, seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(observed)
    return time.process_time() - cpu, time.perf_counter() - wall


def count(restorer: nn.Module, observed: Tensor) -> int:
    """Floating-point operations of the convolutions and matrix products, a multiplication and a sum being two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        restorer(observed)
    return int(counter.get_total_flops())


def peak_rate(kind: torch.dtype) -> float:
    """FLOP/s of a convolution that is large enough to hide all else: 128 channels, 3 × 3, 160 × 160, channels last."""
    layer = nn.Conv2d(128, 128, 3, padding=1).to(kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(1, 128, 160, 160).to(kind).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = min(timed(layer, x)[0] for _ in range(8))
    return 2 * 128 * 128 * 9 * 160 * 160 / seconds


def versions() -> dict[str, str]:
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in ("torch", "onnxruntime", "openvino"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(name: str, facts: Mapping[str, Any]) -> str:
    lines = [f"{name}: {facts['gflop']} GFLOP; at the measured peak {facts['seconds_at_peak']} s"]
    lines.append(f"  {'variant':<24} {'CPU s':>8} {'faster':>7} {'GFLOP/s':>8} {'rms':>7} {'dB':>8}")
    for variant, row in facts["variants"].items():
        lines.append(
            f"  {variant:<24} {row['cpu_seconds']:>8.3f} {row['speedup']:>6.2f}× {row['gflop_per_second']:>8.0f} "
            f"{row['rms']:>7.3f} {row['change']:>+8.3f}"
        )
    lines += [f"  left out: {variant} ({reason})" for variant, reason in facts["left_out"].items()]
    return "\n".join(lines)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    main()
