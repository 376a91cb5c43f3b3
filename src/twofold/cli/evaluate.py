"""`twofold evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twofold.cli.misuse import Misuse
from twofold.cli.options import MODEL_HELP, DeviceOption, JsonOption, check_device, place
from twofold.cli.pictures import tile_size, twin_of
from twofold.cli.pipeline import bar
from twofold.contracts import DataError, Restored
from twofold.printing import printable

if TYPE_CHECKING:
    from torch import Tensor

    from twofold.data.pairs import Pair
    from twofold.evaluate import Evaluation


def command(
    data: Annotated[Path, typer.Option(parser=place, help="The folder that holds the pairs.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"{MODEL_HELP} none: score the unrestored images.")
    ] = None,
    every_model: Annotated[
        bool, typer.Option("--all", help="Every shipped model, on the validation sets of its recipe below --data.")
    ] = False,
    protocol: Annotated[str, typer.Option(help="How scores are computed; see docs/protocols.md.")] = "rgb",
    observed: Annotated[
        str | None, typer.Option(help="Sub-folder of degraded pictures; common layouts are recognised without.")
    ] = None,
    clean: Annotated[str | None, typer.Option(help="Sub-folder of clean pictures.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Use only every n-th scene by name, starting with the first.")] = 1,
    kernels: Annotated[
        Path | None,
        typer.Option(parser=place, help="Blur kernels: one file for all images, or a folder of them by image name."),
    ] = None,
    paper: Annotated[str, typer.Option(help="Also show the papers' scores on this data set, such as Rain100L.")] = "",
    features: Annotated[Path | None, typer.Option(parser=place, help="Folder of network weights, for LPIPS.")] = None,
    perceptual: Annotated[str, typer.Option(help="Perceptual distance. Default: the protocol's.")] = "",
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

    Every shipped model on its own held-out images, each set by its protocol (folders: docs/data.md):

    twofold evaluate --all --data DATA -o models.json
    """
    from twofold import api
    from twofold.data import pairs as layouts
    from twofold.degrade.blur import read_kernel
    from twofold.evaluate import Files, evaluate
    from twofold.files import write_text
    from twofold.metrics import PROTOCOLS
    from twofold.nets.perceptual import DISTANCES
    from twofold.settings import nearest
    from twofold.train.loop import interruption

    for path in output or []:
        if path.suffix.lower() not in (".json", ".md"):
            raise Misuse(f"--output {path}: name a .json or a .md file")
    if every_model:
        single = {"--model": model, "--observed": observed, "--clean": clean, "--kernels": kernels, "--paper": paper}
        single |= {"--perceptual": perceptual, "--features": features}
        given = [option for option, value in single.items() if value]
        if given or every != 1 or protocol != "rgb":
            named = given[0] if given else "--every and --protocol"
            raise Misuse(f"--all takes sets and protocols from the recipes; leave {named} out")
        check_device(device)
        return _evaluate_all(data, device=device, output=output or [], as_json=as_json)
    if model is None:
        raise Misuse("name a model with --model, or measure every shipped one with --all")
    if protocol not in PROTOCOLS:
        raise Misuse(f"unknown protocol {protocol!r}; {nearest(protocol, list(PROTOCOLS))}")
    if (perceptual or PROTOCOLS[protocol].perceptual) not in DISTANCES:
        raise Misuse(f"unknown distance {perceptual!r}; {nearest(perceptual, list(DISTANCES))}")
    if perceptual and features is None:
        raise Misuse("--perceptual needs --features, the folder that holds its weights")
    size = tile_size(tile)
    check_device(device)
    found = layouts.find_pairs(data, observed=observed, clean=clean)
    pairs = layouts.every(found, every, picked=True)  # by scene, as recipes leave them out of training
    distance = None if features is None else DISTANCES[perceptual or PROTOCOLS[protocol].perceptual](features)
    # A number should not depend on the machine, hence "exact".
    loaded = Untouched() if model == "none" else api.load(model, device=device, precision="exact")
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


def _evaluate_all(data: Path, *, device: str, output: Sequence[Path], as_json: bool) -> int:
    """Every shipped model on the validation sets of its recipe; a set that is not there costs only its own rows."""
    from twofold import api, zoo
    from twofold.files import write_text
    from twofold.train import reading
    from twofold.train.data import held_out, validation

    results: list[tuple[str, str, Evaluation]] = []
    missing: list[str] = []
    for card in zoo.cards().values():
        recipe = reading.read_recipe(card.recipe)
        loaded = api.load(card.name, device=device, precision="exact")
        try:
            with bar(sum(map(len, validation(recipe, data).values())), f"evaluating {card.name}") as show:
                done = count(1)
                for name, found in held_out(
                    loaded, recipe, data, model=card.name, progress=lambda *_, d=done, s=show: s(next(d))
                ):
                    results.append((card.name, name, found))
                    missing += [f"{card.name}, {name}: {f.name}: {f.error}" for f in found.failures]
        except DataError as error:
            missing.append(f"{card.name}: {error}")
    facts = [{"set": name} | json.loads(found.to_json()) for _, name, found in results]
    texts = {
        ".json": json.dumps({"evaluations": facts}, indent=1, ensure_ascii=False) + "\n",
        ".md": zoo_table(results),
    }
    print(texts[".json" if as_json else ".md"], end="")
    for message in missing:
        print(f"twofold: {printable(message)}", file=sys.stderr)
    for path in output:
        write_text(path, texts[path.suffix.lower()])
    return 1 if missing else 0


def zoo_table(results: Sequence[tuple[str, str, Evaluation]]) -> str:
    """Markdown: PSNR in dB with its 95 % interval over the images, and SSIM, of every model on every set."""
    lines = ["| model | set | images | protocol | input PSNR | PSNR | 95 % | input SSIM | SSIM |", "|" + "---|" * 9]
    for model, name, found in results:
        s = found.summary()
        span = "" if s.psnr_interval is None else "{:.2f} … {:.2f}".format(*s.psnr_interval)
        lines.append(
            f"| {model} | {name} | {s.pictures} | {found.protocol.name} | {s.input_psnr:.2f} | {s.psnr:.2f} | {span} "
            f"| {s.input_ssim:.4f} | {s.ssim:.4f} |"
        )
    return "\n".join(lines) + "\n"


class Untouched:
    """Stands in for a model where pictures are scored as they are."""

    takes_kernel = False

    def __call__(self, image: Tensor, **_: object) -> Restored:
        return Restored(image)


@dataclass(frozen=True)
class _UntilInterrupted:
    """The pairs one by one; none more after Ctrl-C, so that those which are measured make a table."""

    pairs: Sequence[Pair]
    interrupted: Callable[[], bool]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return takewhile(lambda _: not self.interrupted(), self.pairs)
