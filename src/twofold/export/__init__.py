"""Models for other runtimes: ONNX and torch.export, with a sidecar that says what to do before and after.

    facts = export("derain", Path("derain.onnx"))

The file is written only if it computes what the model computes: the traced graph is run beside the network on pictures
of other sizes than the one it was traced with.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import twofold
from twofold import zoo
from twofold.contracts import ConfigError, TwofoldError
from twofold.export import network, onnx_graph, precision
from twofold.export.facts import facts_of
from twofold.export.network import Whole
from twofold.files import replacing, write_text

GraphFormat = Literal["onnx", "torch"]
Bits = Literal["float32", "float16", "int8"]
GRAPH_SUFFIXES: dict[str, GraphFormat] = {".onnx": "onnx", ".pt2": "torch"}
LARGEST_DEVIATION = 1e-3
"""Largest deviation of a pixel from the network, a quarter of a grey level: Fourier transforms differ by runtime."""
_SIZES = ((64, 96), (70, 51))


def export(
    model: str | Path,
    out: Path,
    *,
    format: GraphFormat | None = None,
    bits: Bits = "float32",
) -> dict[str, Any]:
    """Writes the model as `out` and its sidecar as `out` with the suffix .json; returns what the sidecar says.

    model: a name or a weights file. format: "onnx" or "torch" (torch.export's .pt2); without it by the suffix of `out`.
    bits: "float32"; "float16" and "int8" for ONNX, written where they cost at most 0.1 dB on photographs of the task.

    Raises: TwofoldError where a library is missing, the model has no graph of fixed length, what was traced computes
    something else, or fewer bits cost too much; nothing is written then.
    """
    chosen = format or GRAPH_SUFFIXES.get(out.suffix.lower())
    if chosen is None:
        raise ConfigError(f"{out}: the suffix says no format; name it .onnx or .pt2, or give --format")
    if chosen == "torch" and bits != "float32":
        raise ConfigError(f"{bits} is for ONNX; torch.export keeps float32")
    if out.suffix.lower() == ".json":
        raise ConfigError(f"{out}: this name is for the sidecar; name the model .onnx or .pt2")
    if chosen == "onnx":
        for needed in ("onnx", "onnxscript", "onnxruntime"):
            onnx_graph.installed(needed)
    restorer = zoo.load_restorer(model)
    card = zoo.cards().get(str(model))
    whole = Whole(restorer)
    program = network.trace(whole)
    facts = facts_of(whole, model=str(model), card=card, bits=bits, format=chosen)
    if chosen == "torch":
        data, checked = _torch_bytes(program, whole)
    else:
        data, checked = _onnx_bytes(program, whole, facts, bits, "" if card is None else card.task)
    facts |= {"check": checked, "file": out.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with replacing(out) as temporary:
        temporary.write_bytes(data)
    write_text(out.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    return facts


def _torch_bytes(program: torch.export.ExportedProgram, whole: Whole) -> tuple[bytes, dict[str, Any]]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"twofold": twofold.__version__})
    again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), {"largest_deviation": deviation(lambda given: again(**given), whole, full=True)}


def _onnx_bytes(
    program: torch.export.ExportedProgram, whole: Whole, facts: Mapping[str, Any], bits: Bits, task: str
) -> tuple[bytes, dict[str, Any]]:
    model = onnx_graph.to_onnx(program, whole, facts)
    data: bytes = model.SerializeToString()
    session = onnx_graph.Session(data)
    checked: dict[str, Any] = {"largest_deviation": deviation(session, whole, full=False)}
    if bits == "float32":
        return data, checked
    found = precision.pairs(whole, task)
    if bits == "float16":
        model = precision.to_float16(model)
    else:
        model = precision.to_int8(model, [pair.inputs for pair in found])
    onnx_graph.note(model, facts)
    data = model.SerializeToString()
    known = precision.degradation_of(task, whole.kind) is not None
    lost = precision.cost(session, onnx_graph.Session(data), found, known=known)
    if not lost <= precision.LIMIT:  # also NaN
        raise TwofoldError(
            f"{bits} costs {lost:.2f} dB on photographs of the task, more than {precision.LIMIT} dB; nothing was "
            "written; export float32" + (" or float16" if bits == "int8" else "")
        )
    return data, {**checked, "cost_in_db": round(lost, 4), "pictures": len(found)}


def deviation(run: Any, whole: Whole, *, full: bool) -> float:
    """Largest deviation of what `run` returns from the network, over sizes, maps and strengths other than those traced.

    run: named tensors → outputs. full: whether it needs every input.

    Raises: TwofoldError if it is over `LARGEST_DEVIATION`.
    """
    worst = 0.0
    for number, size in enumerate(_SIZES):
        given = network.example(whole, size=size, batch=1 + number, kernel=(7, 11), seed=number)
        cases = [given]
        if whole.kind is not None:
            chosen = torch.rand_like(given["guidance"]) * whole.kind.white
            half = torch.where(torch.rand_like(chosen) < 0.5, chosen, given["guidance"])
            cases.append({**given, "guidance": half})
        # A small strength makes a Fourier step amplify rounding errors without limit.
        strengths = (0.5,) if whole.takes_kernel else (0.05, 0.5)
        cases.extend({**given, "strength": torch.full((1,), strength)} for strength in strengths)
        if whole.context_length:
            cases.append({**given, "context": torch.randn_like(given["context"])})
        for case in cases:
            with torch.no_grad():
                expected = whole(**case)
            needed = case if full else _without_defaults(case, given)
            for got, wanted in zip(run(needed), expected, strict=True):
                worst = max(worst, (got - wanted).abs().max().item())
    if not worst <= LARGEST_DEVIATION:  # also NaN
        raise TwofoldError(f"the exported graph deviates from the network by {worst:.2g}; nothing was written")
    return worst


def _without_defaults(case: Mapping[str, Tensor], defaults: Mapping[str, Tensor]) -> dict[str, Tensor]:
    optional = onnx_graph.OPTIONAL
    return {name: value for name, value in case.items() if name not in optional or value is not defaults[name]}
