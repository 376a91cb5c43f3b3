"""`twofold restore`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from twofold import images
from twofold.cli.pictures import FORMATS, Job, each, jobs
from twofold.contracts import TwofoldError


def command(
    inputs: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them (sub-folders are kept).")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name from `twofold models`, or a .safetensors file.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File or folder. Without it: photo-restored.jpg, FOLDER-restored."),
    ] = None,
    guidance_out: Annotated[
        Path | None, typer.Option(help="Keep the guidance map: a file for one picture, a folder for several.")
    ] = None,
    guidance: Annotated[
        Path | None,
        typer.Option(help="Use this map (painted, or kept before and changed) instead of the estimated one."),
    ] = None,
    strength: Annotated[float, typer.Option(help="0 to 1.5: scales the guidance map. 0.5 does about half.")] = 1.0,
    tile: Annotated[str, typer.Option(help="auto, or the side of a tile in pixels. The result is the same.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; without it the input's own.")] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave outputs that are already there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> int:
    """Restores photographs.

    Examples:

    twofold restore rainy.jpg -o dry.jpg --model derain --guidance-out rain.png

    twofold restore holiday/ -o dry/ --model derain --format png --skip-existing
    """
    if format is not None and format not in FORMATS:
        raise TwofoldError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if tile != "auto" and not (tile.isdigit() and int(tile) > 0):
        raise TwofoldError(f"--tile takes auto or a number of pixels, got {tile!r}")
    suffix = FORMATS[format] if format else None
    work = jobs(inputs, output, suffix=suffix, marker="restored")
    maps = _map_places(work, guidance_out)
    from twofold import api

    loaded = api.load(model, device=None if device == "auto" else device)
    size = "auto" if tile == "auto" else int(tile)

    def act(job: Job, progress: Callable[[float], None]) -> dict[str, Any]:
        started = time.perf_counter()
        picture = images.read(job.source)
        restored, drawn = loaded.restore(
            picture,
            guidance=guidance,
            strength=strength,
            tile=size,
            progress=progress,  # type: ignore[arg-type]
        )
        images.write(job.target, restored)
        facts = {"input": str(job.source), "output": str(job.target), "model": model, "strength": strength}
        if drawn is not None and loaded.kind is not None:
            facts |= {"guidance": loaded.kind.name, "guidance_mean": round(float(drawn.mean()), 5)}  # type: ignore[dict-item]
            if job in maps:
                maps[job].parent.mkdir(parents=True, exist_ok=True)
                images.write(maps[job], images.Picture(drawn / loaded.kind.white, bits=16))
                facts["guidance_out"] = str(maps[job])
        height, width = picture.pixels.shape[-2:]
        return {**facts, "width": width, "height": height, "seconds": round(time.perf_counter() - started, 3)}

    return each(work, act, skip=skip_existing, what="restoring").close(as_json=as_json, verb="restored")


def _map_places(work: list[Job], place: Path | None) -> dict[Job, Path]:
    if place is None:
        return {}
    if place.suffix.lower() in images.SUFFIXES:
        if len(work) > 1:
            raise TwofoldError(f"--guidance-out {place} is one file, but there are {len(work)} pictures; name a folder")
        if place.suffix.lower() not in (".png", ".tif", ".tiff"):
            raise TwofoldError(f"--guidance-out {place}: a map needs 16 bits; name a .png or .tiff file")
        return {work[0]: place}
    return {job: (place / job.name).with_suffix(".png") for job in work}
