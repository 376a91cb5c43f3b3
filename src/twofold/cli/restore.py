"""`twofold restore`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from twofold import images
from twofold.cli.cluster import check_options, on_cluster
from twofold.cli.misuse import Misuse
from twofold.cli.pictures import (
    FORMATS,
    Advance,
    Job,
    beside,
    check_places,
    check_suffix,
    frames_of,
    jobs,
    run_jobs,
    save_picture,
    tile_size,
    twin_of,
    twins,
)
from twofold.contracts import TwofoldError
from twofold.fleet import FleetWork
from twofold.sheets import contact_sheet, small


def command(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", help="Pictures, or folders of them (sub-folders are kept).")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A name from `twofold models`, or a .safetensors file.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File or folder. Without it: photo-restored.jpg, FOLDER-restored."),
    ] = None,
    guidance_out: Annotated[
        Path | None, typer.Option(help="Keep the guidance map: a file for one picture, a folder for several.")
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(help="Use this instead of the estimated map: a picture of it, a folder of them, or one number."),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="Of the blur: a picture, .npy or text file, a folder of them by name, or estimate."),
    ] = None,
    kernel_size: Annotated[
        int | None,
        typer.Option(help="For --kernel estimate: an odd side in pixels that surely holds the blur. Without it 31."),
    ] = None,
    kernel_out: Annotated[
        Path | None, typer.Option(help="Keep the kernel that was used: a file for one picture, a folder for several.")
    ] = None,
    noise_level: Annotated[
        float | None, typer.Option(help="Of the noise, a standard deviation where white is 1; 0.02 is 5 grey levels.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="0 to 1.5: scales the guidance map; of rain, 0.5 removes about half.")
    ] = 1.0,
    sheet: Annotated[
        Path | None, typer.Option(help="Also one picture of everything: before, map or kernel, and after, row by row.")
    ] = None,
    tile: Annotated[str, typer.Option(help="auto, or the side of a tile in pixels. The result is the same.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; without it the input's own.")] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave outputs that are already there.")
    ] = False,
    engine: Annotated[str, typer.Option(help="local, or ray: by workers on this machine or on a cluster.")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="For --engine ray: pictures at once. Without it, as many as cores."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="For --engine ray: a running cluster, such as auto. Without it, one here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> int:
    """Restores photographs. An input is never changed, and an output appears whole or not at all.

    One picture, with the map of what the model takes for rain:

    twofold restore rainy.jpg -o dry.jpg --model derain --guidance-out rain.png

    Half of the effect, or by a map you painted (white is rain):

    twofold restore rainy.jpg -o dry.jpg --model derain --strength 0.5

    twofold restore rainy.jpg -o dry.jpg --model derain --guidance rain.png

    Out of a blur, its kernel found in the picture and kept to look at, or given:

    twofold restore shaken.jpg -o sharp.jpg --model deblur --kernel estimate --kernel-out kernel.png

    twofold restore shaken.jpg -o sharp.jpg --model deblur --kernel kernel.png --noise-level 0.02

    A folder at one glance:

    twofold restore holiday/ -o dry/ --model derain --sheet holiday.jpg

    A whole folder; after an interruption the same command goes on:

    twofold restore holiday/ -o dry/ --model derain --format png --skip-existing

    By eight workers at once, or on a cluster (docs/many-machines.md):

    twofold restore holiday/ -o dry/ --model derain --engine ray --workers 8
    """
    size = tile_size(tile)
    if noise_level is not None and guidance is not None:
        raise Misuse("--noise-level is a --guidance of one number; leave one of them out")
    if kernel_size is not None and kernel != "estimate":
        raise Misuse("--kernel-size is for --kernel estimate; leave one out or add the other")
    for option, name in (("--guidance", guidance), ("--kernel", kernel)):
        if name is not None and not name.strip():  # as of a variable of the shell that is not set
            raise Misuse(f"{option} is empty; name a file or a folder, or leave it out")
    work = jobs(inputs, output, others=[guidance_out, kernel_out], format=format, marker="restored")
    if sheet is not None:
        check_suffix(sheet)
    maps = beside(work, guidance_out, option="--guidance-out", deep=True)
    kernels = beside(work, kernel_out, option="--kernel-out", deep=True)
    level = noise_level if noise_level is not None else _number(guidance)
    painted = {} if guidance is None or level is not None else twins(work, Path(guidance))
    blurs = {} if kernel is None or kernel == "estimate" else twins(work, Path(kernel))
    check_places(work, maps, kernels, sheet=sheet, given=[*painted.values(), *blurs.values(), Path(model)])
    if engine == "ray":
        single: dict[str, Any] = {"--guidance": guidance, "--guidance-out": guidance_out, "--noise-level": noise_level}
        single |= {"--kernel-out": kernel_out, "--kernel-size": kernel_size, "--sheet": sheet}
        check_options(single, kernel)
        plan = FleetWork(model, kernel=kernel, strength=strength, tile=size, gpus=float(device.startswith("cuda")))
        return on_cluster(work, plan, workers=workers, address=address, skip=skip_existing, as_json=as_json)
    if engine != "local" or workers is not None or address is not None:
        raise Misuse("--engine is local or ray; --workers and --address are for ray")
    from twofold import api
    from twofold.restorers.blind import KernelSearch

    loaded = api.load(model, device=device)
    kind = loaded.kind
    api.check_strength(strength)
    if kind is None and (maps or guidance is not None or noise_level is not None):
        raise TwofoldError(f"{model} has no guidance map; leave --guidance and --guidance-out out")
    if noise_level is not None and (kind is None or kind.name != "noise_level"):
        raise TwofoldError(f"--noise-level is for models that are steered by it; {model} is not")
    if loaded.takes_kernel and kernel is None:
        raise TwofoldError(f"{model} needs --kernel FILE, or --kernel estimate")
    if not loaded.takes_kernel and (kernel is not None or kernel_out is not None):
        raise TwofoldError(f"{model} removes no blur; leave --kernel and --kernel-out out")
    search = KernelSearch() if kernel_size is None else KernelSearch(size=kernel_size)

    def kernel_of(job: Job) -> api.Kernel | None:
        if kernel is None or kernel == "estimate":
            return search if kernel else None
        return blurs.get(job) or twin_of(Path(kernel), job.name)  # which says what is amiss with the one there is not

    def guidance_of(job: Job) -> Path | float | None:
        if guidance is None or level is not None:
            return level
        return painted.get(job) or twin_of(Path(guidance), job.name)

    rows: list[list[Tensor]] = []

    def act(job: Job, step: Advance) -> dict[str, Any]:
        started = time.perf_counter()
        picture = images.read(job.source)
        blur, estimate = api.kernel_for(picture, kernel_of(job))
        restored, drawn = loaded.restore(
            picture, kernel=blur, guidance=guidance_of(job), strength=strength, tile=size, progress=step
        )
        facts: dict[str, Any] = {"input": str(job.source), "output": str(job.target), "model": model}
        if blur is not None:
            facts["kernel"] = "given" if estimate is None else "estimated"
            if estimate is not None:
                facts["kernel_confidence"] = round(estimate.confidence, 3)
            if job in kernels:
                save_picture(kernels[job], images.Picture(blur / blur.max(), bits=16))
                facts["kernel_out"] = str(kernels[job])
        if drawn is not None and kind is not None:
            facts |= {"guidance": kind.name, "guidance_mean": round(float(drawn.mean()), 5), "strength": strength}
            if job in maps:  # before the picture: where that is there, the map is too, so --skip-existing loses none
                save_picture(maps[job], images.Picture(drawn / kind.white, bits=16))
                facts["guidance_out"] = str(maps[job])
        save_picture(job.target, restored)
        if sheet is not None:
            between = [] if drawn is None or kind is None else [drawn / kind.white]
            between += [] if blur is None else [blur / blur.max()]
            rows.append([small(pixels) for pixels in (picture.pixels, *between, restored.pixels)])
        height, width = picture.pixels.shape[-2:]
        facts |= {"width": width, "height": height, **frames_of(picture)}
        return {**facts, "seconds": round(time.perf_counter() - started, 3)}

    def show_again(job: Job) -> None:
        """The row of a picture that an earlier run restored; a map or kernel that was not kept stays blank."""
        before, after = images.read(job.source).pixels, images.read(job.target).pixels
        kept = ([] if kind is None else [maps.get(job)]) + ([kernels.get(job)] if kernel else [])
        blank = torch.ones_like(before[:, :1])
        between = [images.read(path).pixels if path and path.exists() else blank for path in kept]
        rows.append([small(pixels) for pixels in (before, *between, after)])

    passing = None if sheet is None else show_again
    outcome = run_jobs(work, act, skip=skip_existing, passing=passing, what="restoring")
    code = outcome.close(as_json=as_json, verb="restored")
    if sheet is not None and rows:  # after the report, which a sheet that cannot be written must not cost
        between = ([] if kind is None else [kind.name.replace("_", " ")]) + (["kernel"] if kernel else [])
        save_picture(sheet, images.Picture(contact_sheet(["before", *between, "after"], rows)))
    return code


def _number(text: str | None) -> float | None:
    """What --guidance says, if it is a number for all pixels of all pictures."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
