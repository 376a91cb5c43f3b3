"""Fewer bits for an exported model, and what they cost in decibels on photographs of its task."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from skimage import data as photographs
from torch import Tensor

from twofold.contracts import DEPTH, EXPOSURE, NOISE_LEVEL, RAIN_REGION, Degradation, GuidanceKind
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.degrade.hadamard import Haze, LowLight, Underwater
from twofold.export.network import Whole
from twofold.export.onnx_graph import Session, installed, quiet
from twofold.metrics import psnr

LIMIT = 0.1
"""Decibels that fewer bits may cost."""
UNKNOWN = 40.0
"""PSNR in dB that a model of an unknown task is taken to reach; the better a result, the more an error shows."""
_NAMES = ("astronaut", "coffee", "chelsea", "rocket")
_SIDE = 192
_CONVOLUTIONS = ("Conv", "ConvTranspose")


class DegradedPhotograph(NamedTuple):
    """Inputs of the network by name, and the clean picture `(N, C, H, W)`."""

    inputs: dict[str, Tensor]
    clean: Tensor


def degradation_of(task: str, kind: GuidanceKind | None) -> Degradation | None:
    """What a model undoes, by the task on its card or else by the kind of its map; None where neither says."""
    by_task: dict[str, Degradation] = {
        "rain": RainStreaks(),
        "haze": Haze(),
        "lowlight": LowLight(),
        "underwater": Underwater(),
        "deconvolution": Blur(CameraShake(size=15, extent=(6.0, 10.0)), GaussianNoise((0.01, 0.03))),
    }
    by_kind = {RAIN_REGION: "rain", DEPTH: "haze", NOISE_LEVEL: "deconvolution", EXPOSURE: "lowlight"}
    return by_task.get(task or ("" if kind is None else by_kind[kind]))


def pairs(whole: Whole, task: str, *, seed: int = 0) -> list[DegradedPhotograph]:
    """Four bundled photographs of 192 × 192 pixels, degraded as the model expects; at random where it does not say."""
    generator = torch.Generator().manual_seed(seed)
    degradation = degradation_of(task, whole.kind) or GaussianNoise((0.02, 0.02))
    found = []
    for name in _NAMES:
        array = np.asarray(getattr(photographs, name)())
        top, left = (max(side - _SIDE, 0) // 2 for side in array.shape[:2])
        cut = torch.from_numpy(array[top : top + _SIDE, left : left + _SIDE].copy()).permute(2, 0, 1)
        sample = degradation(cut[None].float() / 255, generator)
        shape = (-1, whole.restorer.channels, _SIDE, _SIDE)
        inputs = {"observed": sample.observed.clamp(0, 1).reshape(shape).contiguous()}
        if whole.takes_kernel:
            kernel = sample.kernel
            inputs["kernel"] = torch.ones(1, 1, 1, 1) if kernel is None else kernel[:1, :1].contiguous()
        found.append(DegradedPhotograph(inputs, sample.clean.reshape(shape)))
    return found


def cost(full: Session, fewer: Session, found: Sequence[DegradedPhotograph], *, known: bool) -> float:
    """Decibels of PSNR that the second model loses against the first, the most over the pictures.

    known: whether the pictures are degraded as the model expects, so that `clean` is what it should return. Where they
    are not, the deviation of the two models is taken as an error independent of one of `UNKNOWN` dB.
    """
    worst = -np.inf
    for pair in found:
        before, after = (model(pair.inputs)[0].clamp(0, 1) for model in (full, fewer))
        if known:
            lost = psnr(before, pair.clean).mean() - psnr(after, pair.clean).mean()
        else:
            lost = 10 * torch.log10(1 + (after - before).square().mean() * 10 ** (UNKNOWN / 10))
        worst = max(worst, lost.item())
    return float(worst)


def to_float16(model: Any) -> Any:
    """The same with convolutions, and what lies between them, in 16-bit floats; inputs and outputs stay float32.

    What lies outside the chains of convolutions, such as Fourier steps, keeps float32, and so do the convolutions and
    the sum that give the picture. It halves the file; it is faster on graphics cards, and not on processors.
    """
    onnx = installed("onnx")
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    chosen = _between_convolutions(model)
    initial = {value.name: value for value in graph.initializer}
    nodes: list[Any] = []
    there: set[str] = set()  # names of tensors that exist in the other kind, or were made in 16 bits

    def cast(name: str, kind: str) -> str:
        other = f"{name}_{kind}"
        if other not in there:
            to = onnx.TensorProto.FLOAT16 if kind == "float16" else onnx.TensorProto.FLOAT
            nodes.append(onnx.helper.make_node("Cast", [name], [other], name=f"cast_{other}", to=to))
            there.add(other)
        return other

    for node in graph.node:
        for number, name in enumerate(node.input):
            if node.name not in chosen:
                node.input[number] = cast(name, "float32") if name in there else name
            elif name in initial:
                node.input[number] = f"{name}_float16"
                if f"{name}_float16" not in there:
                    values = onnx.numpy_helper.to_array(initial[name]).astype(np.float16)
                    graph.initializer.append(onnx.numpy_helper.from_array(values, f"{name}_float16"))
                    there.add(f"{name}_float16")
            elif name and name not in there:
                node.input[number] = cast(name, "float16")
        if node.name in chosen:
            there.update(node.output)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    needed = {name for node in graph.node for name in node.input} | {value.name for value in graph.input}
    kept = [value for value in graph.initializer if value.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return half


def _between_convolutions(model: Any) -> set[str]:
    """Names of the convolutions, activations and sums whose results go to such nodes alone: not the last of a chain."""
    initial = {value.name for value in model.graph.initializer} - {value.name for value in model.graph.input}
    constants = {node.output[0] for node in model.graph.node if node.op_type == "Constant"} | initial
    inside: set[str] = set()
    chosen = {}
    for node in model.graph.node:
        seen = [name for name in node.input if name and name not in constants]
        follows = node.op_type in ("Relu", "Add") and seen and all(name in inside for name in seen)
        if node.op_type in _CONVOLUTIONS or follows:
            chosen[node.name] = node
            inside.update(node.output)
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    given = {value.name for value in model.graph.output}
    last = {
        name
        for name, node in chosen.items()
        if any(out in given or any(user.name not in chosen for user in users.get(out, [])) for out in node.output)
    }
    return chosen.keys() - last


def to_int8(model: Any, calibration: Iterable[Mapping[str, Tensor]]) -> Any:
    """The same with the weights and inputs of convolutions in 8 bits, by the ranges seen in `calibration`: inputs
    of the network by name, images `(B, C, H, W)`.

    The first and the last convolution of every path keep float32: the one sees the picture itself, the other makes it.
    """
    onnx = installed("onnx")
    quantization = installed("onnxruntime.quantization")
    convolutions = {n.name for n in model.graph.node if n.op_type == "Conv"}
    kept = convolutions - _inner(model)
    feeds = [{name: value.numpy() for name, value in inputs.items()} for inputs in calibration]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            nodes_to_exclude=sorted(kept),
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        quantised = onnx.load(target)
    del quantised.graph.value_info[:]
    return quantised


def _inner(model: Any) -> set[str]:
    """Convolutions whose input comes from one and whose output goes to one, activations and sums passed over."""
    inside = _between_convolutions(model)
    made: dict[str, Any] = {out: node for node in model.graph.node for out in node.output}

    def from_inside(node: Any) -> bool:
        source = made.get(node.input[0])
        return source is not None and source.name in inside

    return {n.name for n in model.graph.node if n.op_type == "Conv" and n.name in inside and from_inside(n)}
