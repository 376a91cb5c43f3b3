"""`twofold evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twofold.cli.misuse import Misuse
from twofold.cli.options import MODEL_HELP, DeviceOption, JsonOption, check_device, place
from twofold.cli.pictures import tile_size, twin_of
from twofold.cli.pipeline import bar
from twofold.contracts import DataError
from twofold.printing import printable

if TYPE_CHECKING:
    from twofold.data.pairs import Pair


def command(
    data: Annotated[Path, typer.Option(parser=place, help="The folder that holds the pairs.")],
    model: Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)],
    protocol: Annotated[str, typer.Option(help="How numbers are made; docs/protocols.md explains each.")] = "rgb",
    observed: Annotated[
        str | None, typer.Option(help="Sub-folder of degraded pictures; common layouts are recognised without.")
    ] = None,
    clean: Annotated[str | None, typer.Option(help="Sub-folder of clean pictures.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take only each n-th scene by name, the first included.")] = 1,
    kernels: Annotated[
        Path | None,
        typer.Option(parser=place, help="Of the blur: one file for all, or a folder of them by name."),
    ] = None,
    paper: Annotated[str, typer.Option(help="Set the papers' rows of this data set beside, such as Rain100L.")] = "",
    features: Annotated[
        Path | None, typer.Option(parser=place, help="Folder of network weights: measures LPIPS too.")
    ] = None,
    perceptual: Annotated[str, typer.Option(help="Which distance; the protocol's without this option.")] = "",
    tile: Annotated[str, typer.Option(help="auto, or the side of a tile in pixels. The result is the same.")] = "auto",
    device: DeviceOption = "auto",
    output: Annotated[
        list[Path] | None,
        typer.Option("-o", "--output", parser=place, help="Also write the table: a .json or .md file; repeatable."),
    ] = None,
    as_json: JsonOption = False,
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
    from twofold.nets.perceptual import DISTANCES
    from twofold.settings import nearest
    from twofold.train.loop import interruption

    if protocol not in PROTOCOLS:
        raise Misuse(f"unknown protocol {protocol!r}; {nearest(protocol, list(PROTOCOLS))}")
    if (perceptual or PROTOCOLS[protocol].perceptual) not in DISTANCES:
        raise Misuse(f"unknown distance {perceptual!r}; {nearest(perceptual, list(DISTANCES))}")
    if perceptual and features is None:
        raise Misuse("--perceptual needs --features, the folder that holds its weights")
    size = tile_size(tile)
    for path in output or []:
        if path.suffix.lower() not in (".json", ".md"):
            raise Misuse(f"--output {path}: name a .json or a .md file")
    check_device(device)
    found = layouts.find_pairs(data, observed=observed, clean=clean)
    pairs = layouts.every(found, every, picked=True)  # by scene, as recipes leave them out of training
    distance = None if features is None else DISTANCES[perceptual or PROTOCOLS[protocol].perceptual](features)
    loaded = api.load(model, device=device, precision="exact")  # a number should not depend on the machine
    if loaded.takes_kernel != (kernels is not None):
        raise Misuse(f"{model} {'needs --kernels' if loaded.takes_kernel else 'takes no --kernels'}")

    def kernel_of(pair: Files) -> Tensor:
        assert kernels is not None
        return read_kernel(twin_of(kernels, Path(pair.observed.name)) if kernels.is_dir() else kernels)

    with interruption() as interrupted, bar(len(pairs), "evaluating") as show:
        part = _UntilInterrupted(pairs, interrupted)
        try:
            result = evaluate(
                lambda image, kernel=None: Restored(loaded(image, kernel=kernel, tile=size).image),
                part,
                PROTOCOLS[protocol],
                model=model,
                dataset=paper,
                kernel_of=None if kernels is None else kernel_of,
                distance=distance,
                progress=lambda done, total: show(done),
            )
        except DataError:
            if interrupted():
                raise KeyboardInterrupt from None
            raise
    print(result.to_json() if as_json else result.to_markdown(), end="")
    for failure in result.failures:
        print(f"twofold: {printable(failure.name)}: {printable(failure.error)}", file=sys.stderr)
    for path in output or []:  # after the report, which a file that cannot be written must not cost
        write_text(path, result.to_json() if path.suffix.lower() == ".json" else result.to_markdown())
    if interrupted():
        done = len(result.rows) + len(result.failures)
        print(f"twofold: interrupted; the table is of the first {done} of {len(pairs)} pairs", file=sys.stderr)
        return 130
    return 1 if result.failures else 0


@dataclass(frozen=True)
class _UntilInterrupted:
    """The pairs one by one; none more after Ctrl-C, so that those which are measured make a table."""

    pairs: Sequence[Pair]
    interrupted: Callable[[], bool]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return takewhile(lambda _: not self.interrupted(), self.pairs)
