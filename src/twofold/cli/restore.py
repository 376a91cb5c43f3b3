"""`twofold restore`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from twofold import images
from twofold.cli.cluster import check_options, on_cluster
from twofold.cli.misuse import Misuse
from twofold.cli.options import (
    AUTO,
    MODEL_HELP,
    DeviceOption,
    DryRunOption,
    FormatOption,
    JobsOption,
    JsonOption,
    QualityOption,
    QuietOption,
    RecursiveOption,
    RuntimeOption,
    SkipOption,
    check_device,
    check_runtime,
    place,
)
from twofold.cli.pictures import (
    STREAM,
    Job,
    beside,
    check_places,
    check_suffix,
    run_of,
    save_picture,
    tile_size,
    twin_of,
    twins,
)
from twofold.cli.pipeline import Advance, Computed, dry_run, run_jobs
from twofold.contracts import TwofoldError, part_of
from twofold.fleet import FleetWork
from twofold.sheets import contact_sheet, small


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="Images, folders (with sub-folders), patterns, or - (standard input)."),
    ],
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help=f"{MODEL_HELP} auto: chosen for each image. Repeatable: applied in order."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="File, folder, or - (stdout). Default: photo-restored.jpg, FOLDER-restored.",
        ),
    ] = None,
    guidance_out: Annotated[
        Path | None, typer.Option(parser=place, help="Save the guidance map: a file for one image, otherwise a folder.")
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(help="Map to use instead of the estimate: an image, a folder of images, or a number."),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="Blur kernel: an image, .npy or text file, a folder of them by image name, or estimate."),
    ] = None,
    kernel_size: Annotated[
        int | None,
        typer.Option(help="For --kernel estimate: odd side in pixels, larger than the blur. Default: 31."),
    ] = None,
    kernel_out: Annotated[
        Path | None,
        typer.Option(parser=place, help="Save the kernel used: a file for one image, otherwise a folder."),
    ] = None,
    noise_level: Annotated[
        float | None, typer.Option(help="Standard deviation of the noise on the [0, 1] scale; 0.02 is 5 grey levels.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="0 to 1.5: factor on the guidance map; 0.5 removes about half of the rain.")
    ] = 1.0,
    self_ensemble: Annotated[
        bool,
        typer.Option("--self-ensemble", help="Average over eight orientations: better, in eight times the time."),
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            parser=place, help="Also save a contact sheet: input, map or kernel, and result, one row per image."
        ),
    ] = None,
    tile: Annotated[str, typer.Option(help="auto, or the side of a tile in pixels. The result is the same.")] = "auto",
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    format: FormatOption = None,
    quality: QualityOption = None,
    parallel: JobsOption = 1,
    recursive: RecursiveOption = True,
    skip_existing: SkipOption = False,
    dry: DryRunOption = False,
    quiet: QuietOption = False,
    engine: Annotated[str, typer.Option(help="local, or ray: workers on this machine or on a cluster.")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="For --engine ray: images at once. Default: the number of cores, or of GPUs on cuda."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="For --engine ray: address of a running cluster, or auto. Default: this machine."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Restores photographs. An input is never changed, and an output file is complete or absent.

    One image, with the estimated rain map:

    twofold restore rainy.jpg -o dry.jpg --model derain --guidance-out rain.png

    Half strength, or with your own map (white is rain):

    twofold restore rainy.jpg -o dry.jpg --model derain --strength 0.5

    twofold restore rainy.jpg -o dry.jpg --model derain --guidance rain.png

    Deblurring, with the kernel estimated from the image and saved, or given:

    twofold restore shaken.jpg -o sharp.jpg --model deblur --kernel estimate --kernel-out kernel.png

    twofold restore shaken.jpg -o sharp.jpg --model deblur --kernel kernel.png --noise-level 0.02

    A folder, with a contact sheet:

    twofold restore holiday/ -o dry/ --model derain --sheet holiday.jpg

    A folder; after an interruption the same command continues:

    twofold restore holiday/ -o dry/ --model derain --format png --skip-existing

    Two models in sequence, in a pipe:

    cat photo.jpg | twofold restore - -o - --model derain --model lowlight --format jpg > out.jpg

    A folder, with a model chosen for the degradation of each photograph (none may be found):

    twofold restore holiday/ -o restored/ --model auto

    With eight workers, or on a cluster (docs/many-machines.md):

    twofold restore holiday/ -o dry/ --model derain --engine ray --workers 8
    """
    size = tile_size(tile)
    if noise_level is not None and guidance is not None:
        raise Misuse("--noise-level is a --guidance of one number; leave one of them out")
    if AUTO in model:
        steering = {"--guidance": guidance, "--guidance-out": guidance_out, "--noise-level": noise_level}
        _check_auto(model, engine, {**steering, "--kernel": kernel, "--kernel-out": kernel_out})
    if kernel_size is not None and kernel != "estimate":
        raise Misuse("--kernel-size is for --kernel estimate; leave one out or add the other")
    for option, name in (("--guidance", guidance), ("--kernel", kernel)):
        if name is not None and not name.strip():  # as of a variable of the shell that is not set
            raise Misuse(f"{option} is empty; name a file or a folder, or leave it out")
    if sheet is not None:
        check_suffix(sheet)
    work = run_of(
        inputs,
        output,
        others=[guidance_out, kernel_out],
        format=format,
        marker="restored",
        recursive=recursive,
        quality=quality,
        as_json=as_json,
    )
    maps = beside(work, guidance_out, option="--guidance-out", deep=True)
    kernels = beside(work, kernel_out, option="--kernel-out", deep=True)
    level = noise_level if noise_level is not None else _number(guidance)
    painted = {} if guidance is None or level is not None else twins(work, Path(guidance))
    blurs = {} if kernel is None or kernel == "estimate" else twins(work, Path(kernel))
    check_places(work, maps, kernels, sheet=sheet, given=[*painted.values(), *blurs.values(), *map(Path, model)])
    check_device(device)
    computed_by = check_runtime(runtime)
    if dry:
        return dry_run(work, skip=skip_existing, as_json=as_json)
    if engine == "ray":
        single: dict[str, Any] = {"--guidance": guidance, "--guidance-out": guidance_out, "--noise-level": noise_level}
        single |= {"--kernel-out": kernel_out, "--kernel-size": kernel_size, "--sheet": sheet}
        single |= {"--self-ensemble": self_ensemble or None}
        single |= {"--jobs": parallel if parallel > 1 else None}  # workers read and write at the same time as it is
        check_options(single, kernel)
        if len(model) > 1:
            raise Misuse("--engine ray runs one model; restore by one after the other")
        plan = FleetWork(
            model[0],
            kernel=kernel,
            strength=strength,
            tile=size,
            gpus=float(device.startswith("cuda")),
            runtime=computed_by,
            quality=quality,
        )
        return on_cluster(work, plan, workers=workers, address=address, skip=skip_existing, as_json=as_json)
    if engine != "local" or workers is not None or address is not None:
        raise Misuse("--engine is local or ray; --workers and --address are for ray")
    from twofold import api
    from twofold.guess import MODELS, guess
    from twofold.restorers import blind

    loaded: dict[str, api.Model] = {}

    def load(name: str) -> api.Model:
        if name not in loaded:
            loaded[name] = api.load(name, device=device, runtime=computed_by)
        return loaded[name]

    chain = [load(name) for name in model if name != AUTO]
    named = " + ".join(Path(name).stem if Path(name).suffix else name for name in model)
    steered = [one for one in chain if one.kind is not None]
    kind = steered[0].kind if len(steered) == 1 else None
    if not 0 <= strength <= 1.5:
        raise Misuse(f"--strength goes from 0 to 1.5, got {strength:g}")
    if not steered and (maps or guidance is not None or noise_level is not None):
        raise Misuse(f"{named} has no guidance map; leave --guidance and --guidance-out out")
    if kind is None and (maps or guidance is not None or noise_level is not None):
        raise Misuse(f"several of {named} have a guidance map; leave --guidance out, or restore with one at a time")
    if noise_level is not None and (kind is None or kind.name != "noise_level"):
        raise Misuse(f"--noise-level is for models that are steered by it; {named} is not")
    takes_kernel = [one for one in chain if one.takes_kernel]
    if takes_kernel and kernel is None:
        raise Misuse(f"{takes_kernel[0].name} needs --kernel FILE, or --kernel estimate")
    if not takes_kernel and (kernel is not None or kernel_out is not None):
        raise Misuse(f"{named} removes no blur; leave --kernel and --kernel-out out")
    if len(takes_kernel) > 1:
        raise Misuse(f"several of {named} take a kernel; restore with one at a time")
    try:
        search = blind.KernelSearch() if kernel_size is None else blind.KernelSearch(size=kernel_size)
    except ValueError as error:
        raise Misuse(f"--kernel-size: {error}") from error

    def chain_of(picture: images.Picture) -> tuple[list[api.Model], str]:
        """The models for a picture, and why those were guessed."""
        if chain:
            return chain, ""
        guessed = guess(picture.pixels)
        if guessed.task is None:
            raise TwofoldError(f"auto finds {guessed.reason}; name a model, or leave the image as it is")
        return [load(MODELS[guessed.task])], guessed.reason

    def kernel_of(job: Job) -> blind.Kernel | None:
        if kernel is None or kernel == "estimate":
            return search if kernel or not chain else None
        return blurs.get(job) or twin_of(Path(kernel), job.name)  # which reports the missing file

    def guidance_of(job: Job) -> Path | float | None:
        if guidance is None or level is not None:
            return level
        return painted.get(job) or twin_of(Path(guidance), job.name)

    rows: list[list[Tensor]] = []
    # Of several models, or of those that are guessed, a sheet shows only the first image and the last.
    columns = [] if kind is None or len(chain) != 1 else [kind.name.replace("_", " ")]
    columns += ["kernel"] if kernel and len(chain) == 1 else []

    def compute(job: Job, picture: images.Picture, advance: Advance) -> Computed:
        models, reason = chain_of(picture)
        facts: dict[str, Any] = {"models": [one.name for one in models], "strength": strength}
        facts |= {"guess": reason} if reason else {}
        files: list[tuple[Path, images.Picture]] = []
        between: list[Tensor] = []
        restored = picture
        for index, one in enumerate(models):
            if index:  # as if a file lay between two models
                restored = replace(restored, pixels=restored.pixels.clamp(0, 1))

            part = part_of(advance, index / len(models), (index + 1) / len(models))
            wanted = kernel_of(job) if one.takes_kernel else None
            blur, estimate = blind.kernel_for(restored, wanted, progress=part_of(part, 0, blind.SEARCH_SHARE))
            restored, drawn = one.restore(
                restored,
                kernel=blur,
                guidance=guidance_of(job) if one.kind is not None and kind is not None else None,
                strength=strength,
                self_ensemble=self_ensemble,
                tile=size,
                progress=part_of(part, blind.SEARCH_SHARE if estimate else 0, 1),
            )
            if drawn is not None and one.kind is not None:
                between.insert(0, drawn / one.kind.white)
                facts |= {"guidance": one.kind.name, "guidance_mean": round(float(drawn.mean()), 5)}
                if job in maps:
                    files.append((maps[job], images.Picture(between[0], bits=16)))
                    facts["guidance_out"] = str(maps[job])
            if blur is not None:
                between.append(blur / blur.max())
                facts["kernel"] = "given" if estimate is None else "estimated"
                facts |= {} if estimate is None else {"kernel_confidence": round(estimate.confidence, 3)}
                if job in kernels:
                    files.append((kernels[job], images.Picture(between[-1], bits=16)))
                    facts["kernel_out"] = str(kernels[job])
        if sheet is not None:
            shown = between if columns else []
            rows.append([small(pixels) for pixels in (picture.pixels, *shown, restored.pixels)])
        height, width = picture.pixels.shape[-2:]
        return Computed({**facts, "width": width, "height": height}, files, restored)

    def show_again(job: Job) -> None:
        """The row of an image that an earlier run restored; a map or kernel that was not saved stays blank."""
        before, after = images.read(job.source, partial=True).pixels, images.read(job.target).pixels
        kept = [kernels.get(job) if column == "kernel" else maps.get(job) for column in columns]
        blank = torch.ones_like(before[:, :1])
        between = [images.read(path).pixels if path and path.exists() else blank for path in kept]
        rows.append([small(pixels) for pixels in (before, *between, after)])

    outcome = run_jobs(
        work,
        compute,
        parallel=parallel,
        skip=skip_existing,
        passing=None if sheet is None else show_again,
        quality=quality,
        quiet=quiet,
        what="restoring",
    )
    if sheet is not None and rows:
        try:
            save_picture(sheet, images.Picture(contact_sheet(["before", *columns, "after"], rows)))
        except TwofoldError as error:
            outcome.errors.append(str(error))
    return outcome.close(as_json=as_json, verb="restored", quiet=quiet or work[0].target == STREAM)


def _check_auto(model: list[str], engine: str, others: dict[str, Any]) -> None:
    """Raises: Misuse for what needs one model that is known beforehand."""
    if len(model) > 1:
        raise Misuse("--model auto is alone: it takes one model for each image; leave it or the others out")
    given = [option for option, value in others.items() if value is not None]
    given += ["--engine ray"] if engine == "ray" else []
    if given:
        raise Misuse(f"--model auto and {', '.join(given)} do not go together; name a model")


def _number(text: str | None) -> float | None:
    """What --guidance says, if it is a number for all pixels of all pictures."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
