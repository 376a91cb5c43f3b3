"""`twofold evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from twofold.cli.misuse import Misuse
from twofold.cli.pictures import bar, tile_size, twin_of
from twofold.contracts import ConfigError


def command(
    data: Annotated[Path, typer.Option(help="The folder that holds the pairs.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name from `twofold models`, or a .safetensors file.")],
    protocol: Annotated[str, typer.Option(help="How numbers are made; docs/protocols.md explains each.")] = "rgb",
    observed: Annotated[
        str | None, typer.Option(help="Sub-folder of degraded pictures; common layouts are recognised without.")
    ] = None,
    clean: Annotated[str | None, typer.Option(help="Sub-folder of clean pictures.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take only each n-th scene by name, the first included.")] = 1,
    kernels: Annotated[
        Path | None, typer.Option(help="Of the blur: one file for all pictures, or a folder of them by name.")
    ] = None,
    paper: Annotated[str, typer.Option(help="Set the papers' rows of this data set beside, such as Rain100L.")] = "",
    tile: Annotated[str, typer.Option(help="auto, or the side of a tile in pixels. The result is the same.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    json: Annotated[Path | None, typer.Option(help="Write the whole table as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown.")] = None,
) -> int:
    """Measures a model on pairs: every picture, means with 95 % intervals, the untouched input's own score beside.

    Each fifth scene of a data set, by the protocol of its papers:

    twofold evaluate -m derain --data Rain100 --observed light --clean clean --every 5 --protocol y-matlab
    """
    from torch import Tensor

    from twofold import api
    from twofold.contracts import Restored
    from twofold.data import pairs as layouts
    from twofold.degrade.blur import read_kernel
    from twofold.evaluate import Files, evaluate
    from twofold.files import write_text
    from twofold.metrics import PROTOCOLS
    from twofold.settings import nearest

    if protocol not in PROTOCOLS:
        raise Misuse(f"unknown protocol {protocol!r}; {nearest(protocol, list(PROTOCOLS))}")
    size = tile_size(tile)
    found = layouts.find_pairs(data, observed=observed, clean=clean)
    pairs = layouts.every(found, every, picked=True)  # by scene, as recipes leave them out of training
    loaded = api.load(model, device=device, precision="exact")  # a number should not depend on the machine
    if loaded.takes_kernel != (kernels is not None):
        raise ConfigError(f"{model} {'needs --kernels' if loaded.takes_kernel else 'takes no --kernels'}")

    def kernel_of(pair: Files) -> Tensor:
        assert kernels is not None
        return read_kernel(twin_of(kernels, Path(pair.observed.name)) if kernels.is_dir() else kernels)

    with bar(len(pairs), "evaluating") as show:
        result = evaluate(
            lambda image, kernel=None: Restored(loaded(image, kernel=kernel, tile=size).image),
            pairs,
            PROTOCOLS[protocol],
            model=model,
            dataset=paper,
            kernel_of=None if kernels is None else kernel_of,
            progress=lambda done, total: show(done),
        )
    print(result.to_markdown(), end="")
    for failure in result.failures:
        print(f"twofold: {failure.name}: {failure.error}", file=sys.stderr)
    # After the report, which a file that cannot be written must not cost.
    for path, text in ((json, result.to_json()), (markdown, result.to_markdown())):
        if path is not None:
            write_text(path, text)
    return 1 if result.failures else 0
