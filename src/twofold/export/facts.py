"""The sidecar of an exported model: inputs, outputs, and what to do before and after, for a program without twofold."""

from __future__ import annotations

from typing import Any

import torch

import twofold
from twofold.export.network import ESTIMATE, Whole
from twofold.zoo import Card


def facts_of(whole: Whole, *, model: str, card: Card | None, bits: str, format: str) -> dict[str, Any]:
    """Plain data for JSON."""
    channels, halo, multiple = whole.restorer.channels, whole.restorer.halo, whole.restorer.multiple
    optional = format == "onnx"
    facts: dict[str, Any] = {
        "written_by": twofold.__version__,
        "torch": str(torch.__version__),
        "model": model,
        "format": format,
        "precision": bits,
        "inputs": _inputs(whole, optional=optional),
        "outputs": _outputs(whole),
        "before": {
            "colour": "RGB, red first" if channels == 3 else "grey; run the three colours as a batch of three",
            "encoding": "as stored in a photograph (sRGB); nothing is linearised, no mean is subtracted",
            "scale": "divide 8-bit samples by 255, 16-bit ones by 65535",
            "layout": "batch, channel, row, column; float32",
            "sides": "any from 1 pixel on; the graph mirrors the picture itself where the network needs a multiple",
            "network_multiple": multiple,
        },
        "after": {
            "clamp": [0.0, 1.0],
            "scale": "times 255 and rounded to the nearest for 8 bits, times 65535 for 16",
        },
        "tiles": _tiles(whole, halo, multiple),
    }
    if card is not None:
        facts |= {"about": card.about, "task": card.task, "terms": card.terms, "weights_sha256": card.sha256}
    kind = whole.kind
    if kind is not None:
        facts["guidance"] = {
            "name": kind.name,
            "meaning": kind.meaning,
            "range": [kind.low, kind.high],
            "white": kind.white,
            "strength": kind.strength,
        }
    return facts


def _inputs(whole: Whole, *, optional: bool) -> list[dict[str, Any]]:
    channels = whole.restorer.channels
    found = [_entry("observed", ["batch", channels, "height", "width"], "the degraded picture", range=[0.0, 1.0])]
    if whole.takes_kernel:
        found.append(
            _entry(
                "kernel",
                [1, 1, "kernel_height", "kernel_width"],
                "of the blur, a true convolution, sum 1, middle at side // 2; smaller than the picture",
            )
        )
    if whole.kind is not None:
        shape = ["batch or 1", 1, "height or 1", "width or 1"] if optional else ["batch", 1, "height", "width"]
        meaning = "the map to restore by; below 0: the model's estimate"
        found.append(_entry("guidance", shape, meaning, optional=optional, default=ESTIMATE))
    scales = "the change of the picture" if whole.kind is None else "the map; 0 leaves the picture as it is"
    found.append(_entry("strength", [1], f"0 to 1.5, scales {scales}", optional=optional, default=1.0))
    if whole.context_length:
        length = whole.context_length
        found.append(
            _entry(
                "context",
                ["batch", length] if not optional else ["batch or 1", f"{length} or 1"],
                "of the whole picture that observed is a tile of, as context_used gives it; NaN: of observed itself",
                optional=optional,
                default="NaN",
            )
        )
    return found


def _outputs(whole: Whole) -> list[dict[str, Any]]:
    shapes: dict[str, tuple[list[Any], str]] = {
        "restored": (["batch", whole.restorer.channels, "height", "width"], "the picture, not clamped"),
        "guidance_used": (["batch", 1, "height", "width"], "the map that was used, times the strength"),
        "context_used": (["batch", whole.context_length], "facts about the whole picture that steer the network"),
    }
    return [_entry(name, *shapes[name]) for name in whole.outputs()]


def _tiles(whole: Whole, halo: int | None, multiple: int) -> dict[str, Any]:
    if halo is None:
        return {"possible": False, "reason": "every pixel depends on the whole picture"}
    facts: dict[str, Any] = {"possible": True, "halo": halo, "start_at_multiples_of": multiple}
    if whole.context_length:
        facts["context"] = (
            "give every tile the context_used of the whole picture, or of the picture shrunk with antialiasing"
        )
    return facts


def _entry(name: str, shape: list[Any], meaning: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": "float32", "meaning": meaning, **more}
