"""`twofold import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofold.cli.misuse import Misuse


def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A checkpoint (.pth, .pt, .safetensors), or hf://user/name.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The weights file to write: NAME.safetensors.")],
) -> None:
    """Imports weights: the official files of PReNet and GridDehazeNet, or a model from the Hugging Face Hub.

    A file is recognised by its content and read as tensors only; a file that could execute code is refused.

    twofold import PReNet/logs/Rain100L/PReNet6/net_latest.pth prenet.safetensors

    twofold restore rainy.jpg -o dry.jpg --model prenet.safetensors

    twofold import hf://user/name mine.safetensors
    """
    if out.suffix.lower() != ".safetensors":
        raise Misuse(f"{out}: weights are kept as .safetensors; name such a file")
    if not source.strip():
        raise Misuse("SOURCE is empty; name a checkpoint")
    from twofold import hub

    if hub.is_hub_place(source):
        from twofold import zoo
        from twofold.interchange import specified_restorer

        spec, restorer = specified_restorer(source)
        zoo.save_restorer(out, restorer, spec)
        print(f"{source} → {out}: {spec.kind}")
        return
    if Path(source).resolve() == out.resolve():
        raise Misuse(f"{out} would replace the checkpoint; name another file")
    from twofold.interchange import import_weights

    net = import_weights(Path(source), out).net
    print(f"{source} → {out}: {net.kind}, {', '.join(f'{k} {v}' for k, v in net.model_dump().items() if k != 'kind')}")
