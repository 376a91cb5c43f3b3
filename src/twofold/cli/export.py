"""`twofold export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from twofold.cli.misuse import Misuse

_FORMATS = ("onnx", "torch", "spandrel")
_PRECISIONS = ("float32", "float16", "int8")


def command(
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="File: .onnx, .pt2 or .safetensors. Or hf://user/name, to upload.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A name from `twofold models`, or a .safetensors file.")],
    format: Annotated[str | None, typer.Option(help=f"{', '.join(_FORMATS)}; without it by the suffix of OUT.")] = None,
    precision: Annotated[
        str, typer.Option(help=f"{', '.join(_PRECISIONS)}; the last two are written if they cost at most 0.1 dB.")
    ] = "float32",
    private: Annotated[bool, typer.Option("--private", help="For hf://: create a private repository.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Writes a model for other programs, and beside it a JSON file that says what to do before and after.

    For ONNX Runtime, OpenVINO, TensorRT and others; pictures of any size, the map an input that may be left out:

    twofold export derain.onnx --model derain

    twofold export derain-int8.onnx --model derain --precision int8

    For torch alone, without this library:

    twofold export derain.pt2 --model derain

    For spandrel, and on the hub, from where twofold.load("hf://user/rain") takes it:

    twofold export derain.safetensors --model derain

    twofold export hf://user/rain --model mine.safetensors
    """
    if format is not None and format not in _FORMATS:
        raise Misuse(f"unknown format {format!r}; known: {', '.join(_FORMATS)}")
    if precision not in _PRECISIONS:
        raise Misuse(f"unknown precision {precision!r}; known: {', '.join(_PRECISIONS)}")
    if not out.strip():
        raise Misuse("OUT is empty; name a file")
    if out.startswith("hf://"):
        facts = _pushed(out, model, private=private)
    elif Path(out).resolve() == Path(model).resolve():
        raise Misuse(f"{out} would replace the model itself; name another file")
    elif format == "spandrel" or (format is None and Path(out).suffix.lower() == ".safetensors"):
        facts = _for_spandrel(Path(out), model)
    else:
        from twofold.export import export

        facts = export(model, Path(out), format=format, bits=precision)  # type: ignore[arg-type]
    print(json.dumps(facts, indent=2) if as_json else _shown(out, facts))


def _shown(out: str, facts: dict[str, Any]) -> str:
    if "address" in facts:
        return f"{out}: {facts['address']}"
    lines = [f"{out}: {facts['model']}, {facts['format']}, {facts['precision']}, {facts['bytes'] / 1e6:.1f} MB"]
    check = facts.get("check", {})
    if "largest_deviation" in check:
        lines.append(f"  largest deviation of a pixel from the network: {check['largest_deviation']:.1e}")
    if "cost_in_db" in check:
        lines.append(f"  costs {check['cost_in_db']:.3f} dB on {check['pictures']} photographs of the task")
    if "inputs" in facts:
        names = [f"{each['name']}{' (optional)' if each.get('optional') else ''}" for each in facts["inputs"]]
        lines.append(f"  inputs: {', '.join(names)}; outputs: {', '.join(each['name'] for each in facts['outputs'])}")
        lines.append(f"  {Path(out).with_suffix('.json')} says what to do before and after")
    return "\n".join(lines)


def _for_spandrel(out: Path, model: str) -> dict[str, Any]:
    from safetensors.torch import save_file

    from twofold.files import replacing
    from twofold.interchange import spandrel_state, specified_restorer

    spec, restorer = specified_restorer(model)
    with replacing(out) as temporary:
        save_file(spandrel_state(restorer, spec), temporary)
    return {"model": model, "format": "spandrel", "precision": "float32", "bytes": out.stat().st_size}


def _pushed(place: str, model: str, *, private: bool) -> dict[str, Any]:
    from twofold import hub, zoo
    from twofold.interchange import weights_of

    hub.hub_place(place)  # before anything is loaded
    zoo.load_restorer(model)  # what is no model is not uploaded
    with weights_of(model) as file:
        return {
            "model": model,
            "address": hub.push_weights(file, place, private=private, message=f"Weights of {model}"),
        }
