"""The same networks in torch, ONNX Runtime and OpenVINO, and how far each is from what the processor can do.

    python benchmarks/runtimes.py --threads 1 --json benchmarks/results/runtimes.json
    python benchmarks/runtimes.py --threads 2 --json benchmarks/results/runtimes.json

A number of threads is a part of the file, and so is a network; the other parts stay. The variants take turns, and the
best round counts: in CPU seconds with one thread, else in seconds, for which the machine has to be idle otherwise.
"torch, exact" is the network as it was written; "torch, float32" and "torch, bf16" are the library's recipe. What is
not installed is left out; the extras are [onnx] and [openvino]. PReNet has random weights (`--prenet` names an imported
file), so its pictures say nothing about quality; `rms` is the deviation from exact in grey levels, `change` that of
PSNR in dB.

The limit is a roofline: each convolution takes at least its operations at the processor's peak, and at least the bytes
of its input, output and weights at the bandwidth of its memory; the two peaks are measured here. All that is not a
convolution counts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import parser, read, table, write
from twofold import api, images, specs, zoo
from twofold.contracts import TwofoldError
from twofold.export import network, onnx_graph, precision, runtimes
from twofold.metrics import psnr

NETWORKS = ("derain", "prenet", "dehaze", "lowlight")
Runner = Callable[[Tensor], Tensor]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--networks", default=",".join(NETWORKS), help="names of models, and prenet; commas between")
    made.add_argument("--prenet", type=Path, help="a weights file made by `twofold import`")
    made.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=1)
    asked = made.parse_args()
    torch.set_num_threads(asked.threads)
    torch.set_flush_denormal(True)
    peak = {"float32": peak_rate(torch.float32), "bfloat16": peak_rate(torch.bfloat16)}
    bandwidth = memory_rate()
    part: dict[str, Any] = {
        "versions": runtimes.versions(),
        "side": asked.side,
        "gflop_per_second": {name: round(rate / 1e9, 1) for name, rate in peak.items()},
        "gbyte_per_second": round(bandwidth / 1e9, 1),
        "networks": {},
    }
    found = read(asked.json).get("threads", {})
    former = found.get(str(asked.threads), {})
    if former.get("side") == asked.side:
        part["networks"] |= former["networks"]
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.networks.split(","):
            source = prenet(Path(folder), asked.prenet) if name == "prenet" else name
            part["networks"][name] = measure(source, name, asked, peak, bandwidth)
            print(name, part["networks"][name], flush=True)
            write(asked.json, {"threads": {**found, str(asked.threads): part}})


def measure(
    source: str | Path, name: str, asked: argparse.Namespace, peak: Mapping[str, float], bandwidth: float
) -> dict[str, Any]:
    restorer: Any = zoo.load_restorer(source)
    whole = network.Whole(restorer)
    if whole.takes_kernel:
        raise SystemExit(f"{name} takes a kernel; this benchmark is of networks that see the picture alone")
    task = zoo.cards()[name].task if name in zoo.cards() else "rain"
    pair, size = precision.pairs(whole, task)[0], (asked.side, asked.side)
    observed = nn.functional.interpolate(pair.inputs["observed"], size, mode="bilinear", antialias=True)
    clean = nn.functional.interpolate(pair.clean, size, mode="bilinear", antialias=True)
    runners, left_out = variants(source, whole, task)
    expected = runners["torch, exact"](observed).clamp(0, 1)
    seconds = dict.fromkeys(runners, float("inf"))
    for _ in range(asked.rounds):
        for variant, run in runners.items():
            seconds[variant] = min(seconds[variant], best(lambda run=run: run(observed), 1))
    layers = convolutions(restorer, observed)
    rows = {}
    for variant, run in runners.items():
        restored = run(observed).clamp(0, 1)
        rows[variant] = {
            "seconds": round(seconds[variant], 4),
            "rms": round((restored - expected).square().mean().sqrt().item() * 255, 3),
            "change": round((psnr(restored, clean) - psnr(expected, clean)).item(), 4),
        }
    return {
        "gflop": round(sum(flop for flop, _ in layers) / 1e9, 2),
        "limit_seconds": {
            kind: round(sum(max(flop / rate, count * size / bandwidth) for flop, count in layers), 4)
            for kind, rate, size in (("float32", peak["float32"], 4), ("bfloat16", peak["bfloat16"], 2))
        },
        "variants": rows,
        "left_out": left_out,
    }


def variants(source: str | Path, whole: network.Whole, task: str) -> tuple[dict[str, Runner], dict[str, str]]:
    """Every way that is installed, by name, and why the others are not there."""
    found: dict[str, Runner] = {}
    left_out: dict[str, str] = {}
    wishes: list[tuple[str, dict[str, Any]]] = [
        (f"torch, {computed}", {"precision": computed, "runtime": "torch"}) for computed in ("exact", "float32", "bf16")
    ]
    wishes += [("ONNX Runtime, float32", {"runtime": "onnx"}), ("OpenVINO, float32", {"runtime": "openvino"})]
    wishes += [("OpenVINO, bf16", {"runtime": "openvino", "precision": "bf16"})]
    for name, wish in wishes:
        try:
            model = api.load(source, **wish)
        except TwofoldError as error:
            left_out[name] = str(error)
        else:
            found[name] = lambda x, model=model: model.restore(images.from_any(x), tile=None)[0].pixels
    try:
        graph = onnx_graph.to_onnx(network.trace(whole), whole, {"written_by": "benchmark"})
        int8 = precision.to_int8(graph, [each.inputs for each in precision.pairs(whole, task)]).SerializeToString()
        session = onnx_graph.Session(int8, threads=torch.get_num_threads())
        found["ONNX Runtime, int8"] = lambda x: session({"observed": x})[0]
    except (TwofoldError, RuntimeError, ValueError) as error:
        left_out["ONNX Runtime, int8"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return found, left_out


def prenet(folder: Path, weights: Path | None) -> Path:
    if weights is not None:
        return weights
    torch.manual_seed(0)
    spec = specs.PlainSpec(net=specs.PReNetSpec())
    zoo.save_restorer(folder / "prenet.safetensors", spec.build(), spec)
    return folder / "prenet.safetensors"


def convolutions(restorer: nn.Module, observed: Tensor) -> list[tuple[int, int]]:
    """Of every convolution that is computed: floating-point operations (a multiplication and a sum are two), and
    numbers in its input, output and weights.
    """
    found: list[tuple[int, int]] = []

    def seen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        pixels = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        flop = 2 * layer.weight.numel() * pixels.shape[0] * pixels.shape[-2] * pixels.shape[-1]
        found.append((flop, inputs[0].numel() + output.numel() + layer.weight.numel()))

    layers = [each for each in restorer.modules() if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(seen) for layer in layers]
    with torch.no_grad():
        restorer(observed)
    for hook in hooks:
        hook.remove()
    return found


def peak_rate(kind: torch.dtype) -> float:
    """FLOP/s of a convolution that is large enough to hide all else: 128 channels, 3 × 3, 160 × 160, channels last."""
    layer = nn.Conv2d(128, 128, 3, padding=1).to(kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(1, 128, 160, 160).to(kind).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return 2 * 128 * 128 * 9 * 160 * 160 / best(lambda: layer(x))


def memory_rate() -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source, target = torch.rand(2**26), torch.empty(2**26)
    return 2 * 4 * 2**26 / best(lambda: target.copy_(source))


def best(work: Callable[[], object], rounds: int = 8) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = float("inf")
    for _ in range(rounds):
        began = clock()
        work()
        seconds = min(seconds, clock() - began)
    return seconds


def tables(result: dict[str, Any]) -> dict[str, str]:
    """`runtimes`: milliseconds of every network and variant. `roofline`: the peaks, and the limit beside the best."""
    parts = result["threads"]
    body, limits = [], []
    for threads, part in parts.items():
        names = [variant for facts in part["networks"].values() for variant in facts["variants"]]
        for variant in dict.fromkeys(names):
            cells = []
            for facts in part["networks"].values():
                row = facts["variants"].get(variant)
                cells.append("" if row is None else f"{1000 * row['seconds']:.0f} ms, {row['rms']:.2f}")
            body.append([threads, variant, *cells])
        for kind, rate in part["gflop_per_second"].items():
            cells = [f"{1000 * facts['limit_seconds'][kind]:.0f} ms" for facts in part["networks"].values()]
            limits.append([threads, f"{kind}: {rate:.0f} GFLOP/s, {part['gbyte_per_second']:.0f} GB/s", *cells])
    networks = [f"`{name}`" for name in next(iter(parts.values()))["networks"]]
    return {
        "runtimes": table(["threads", "runtime", *networks], body),
        "roofline": table(["threads", "measured peaks", *networks], limits),
    }


if __name__ == "__main__":
    main()
