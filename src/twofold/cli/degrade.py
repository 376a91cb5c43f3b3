"""`twofold degrade`."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from twofold import images
from twofold.cli.misuse import Misuse
from twofold.cli.options import (
    DryRunOption,
    FormatOption,
    JobsOption,
    JsonOption,
    QualityOption,
    QuietOption,
    RecursiveOption,
    SkipOption,
    place,
)
from twofold.cli.pictures import STREAM, Job, beside, check_places, run_of
from twofold.cli.pipeline import Advance, Computed, dry_run, run_jobs
from twofold.contracts import DEPTH, EXPOSURE, NOISE_LEVEL, RAIN_REGION, Degradation, ImageError

Options = Mapping[str, str]


@dataclass(frozen=True)
class Kind:
    """One kind of degradation. map: what its guidance is. white: the value that a white pixel of the saved map stands
    for. options: those it takes beside --set, with their defaults.
    """

    build: Callable[[Options], Degradation]
    map: str
    white: float
    options: Options = field(default_factory=dict)


def _noise(options: Options) -> Degradation:
    from twofold.degrade import additive

    layouts = (additive.uniform, additive.halves, additive.quadrants, additive.smooth)
    layout = _named("layout", options["layout"], {layout.__name__: layout for layout in layouts})
    return additive.GaussianNoise(_span(options["level"]), layout)


def _rain(options: Options) -> Degradation:
    from twofold.degrade.additive import RainStreaks

    return RainStreaks()


def _blur(options: Options) -> Degradation:
    from twofold.degrade import blur

    kernels: dict[str, blur.Kernels] = {
        "shake": blur.CameraShake(),
        "gaussian": blur.Gaussian(),
        "defocus": blur.Disc(),
        "motion": blur.Line(),
    }
    file = Path(options["kernel"])
    drawn = blur.Given((blur.read_kernel(file),)) if file.is_file() else _named("kernel", str(file), kernels)
    return blur.Blur(drawn, _noise(options))


def _haze(options: Options) -> Degradation:
    from twofold.degrade.hadamard import OUTDOOR_HAZE

    return OUTDOOR_HAZE


def _low_light(options: Options) -> Degradation:
    from twofold.degrade.hadamard import LowLight

    return LowLight()


def _underwater(options: Options) -> Degradation:
    from twofold.degrade.hadamard import Underwater

    return Underwater()


DEGRADATIONS = {
    "noise": Kind(_noise, NOISE_LEVEL.name, NOISE_LEVEL.white, {"level": "0.05", "layout": "uniform"}),
    "rain": Kind(_rain, RAIN_REGION.name, RAIN_REGION.white),
    "blur": Kind(_blur, NOISE_LEVEL.name, NOISE_LEVEL.white, {"level": "0.01", "layout": "uniform", "kernel": "shake"}),
    "haze": Kind(_haze, DEPTH.name, DEPTH.white),
    "low-light": Kind(_low_light, EXPOSURE.name, EXPOSURE.white),
    "underwater": Kind(_underwater, DEPTH.name, DEPTH.white),
}


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="Clean images, folders (with sub-folders), patterns, or - (stdin)."),
    ],
    kind: Annotated[
        str, typer.Option("--kind", "-k", help=f"{', '.join(DEGRADATIONS)}, or another degradation of the recipes.")
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="File, folder, or - (stdout). Default: photo-KIND.jpg, FOLDER-KIND."),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help="noise, blur: standard deviation on the [0, 1] scale, or a range to draw from for each image: "
            "from: 0.02:0.1. Without it 0.05, for blur 0.01."
        ),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="noise, blur: layout of the levels: uniform, halves, quadrants, smooth.")
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="blur: shake, gaussian, defocus, motion, or a kernel file. Default: shake."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting, as in recipes: --set beta=[0.5,1]. Repeatable."),
    ] = None,
    guidance_out: Annotated[
        Path | None,
        typer.Option(parser=place, help="Save the ground-truth map: a file for one image, a folder for several."),
    ] = None,
    kernel_out: Annotated[
        Path | None, typer.Option(parser=place, help="Save the blur kernel likewise; its maximum is white.")
    ] = None,
    clean_out: Annotated[
        Path | None,
        typer.Option(parser=place, help="Save the clean image likewise; for blur without the border that is lost."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed and file name give the same degradation.")] = 0,
    format: FormatOption = None,
    quality: QualityOption = None,
    parallel: JobsOption = 1,
    recursive: RecursiveOption = True,
    skip_existing: SkipOption = False,
    dry: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Degrades clean photographs with known parameters, to test and compare restorers.

    Rain, and the true rain map:

    twofold degrade photo.png -o rainy.png --kind rain --guidance-out region.png

    Noise whose level varies over the image (0.1 is 25.5 grey levels):

    twofold degrade photo.png -o noisy.png --kind noise --level 0.02:0.1 --layout smooth

    A folder with camera-shake blur, its kernels and the matching clean images:

    twofold degrade photos/ -o blurred/ --kind blur --format png --kernel-out kernels/ --clean-out clean/
    """
    import torch

    from twofold import metrics
    from twofold.data import degradations
    from twofold.nets.fourier import center_crop

    chosen = DEGRADATIONS.get(kind) or _of_recipes(kind)
    given = {"level": level, "layout": layout, "kernel": kernel}
    for name in [name for name, value in given.items() if value is not None] + ["kernel"] * (kernel_out is not None):
        if name not in chosen.options:
            raise Misuse(f"--kind {kind} has no {name}; leave the option out")
    try:
        degradation = chosen.build({name: given[name] or default for name, default in chosen.options.items()})
        if changes:
            degradation = degradations.changed(degradation, changes, Path())
    except ImageError:  # of a kernel's file
        raise
    except ValueError as error:
        raise Misuse(str(error)) from error
    outs = [guidance_out, kernel_out, clean_out]
    work = run_of(
        inputs,
        output,
        others=outs,
        format=format,
        marker=kind,
        recursive=recursive,
        quality=quality,
        as_json=as_json,
    )
    maps = beside(work, guidance_out, option="--guidance-out", deep=True)
    kernels = beside(work, kernel_out, option="--kernel-out", deep=True)
    cleans = beside(work, clean_out, option="--clean-out")
    check_places(work, maps, kernels, cleans, given=[Path(kernel)] if kernel else [])
    if dry:
        return dry_run(work, skip=skip_existing, as_json=as_json)

    def compute(job: Job, picture: images.Picture, advance: Advance) -> Computed:
        # By the name, so that an image's damage depends neither on the others nor on where a run was interrupted.
        # Hashed, because this generator looks at the lower 32 bits of a seed alone.
        name = os.fsencode(job.name.as_posix())  # as the disk has it: not every name is UTF-8
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} ".encode() + name))
        sample = degradation(picture.pixels, generator)
        height, width = sample.clean.shape[-2:]
        alpha = None if picture.alpha is None else center_crop(picture.alpha, (height, width))
        files = []
        if job in maps:
            if sample.guidance is None:
                raise ImageError(f"--kind {kind} has no guidance map; leave --guidance-out out")
            files.append((maps[job], images.Picture(sample.guidance / chosen.white, bits=16)))
        if job in cleans:
            files.append((cleans[job], replace(picture, pixels=sample.clean, alpha=alpha)))
        if job in kernels and sample.kernel is not None:
            files.append((kernels[job], images.Picture(sample.kernel / sample.kernel.max(), bits=16)))
        psnr = float(metrics.psnr(sample.observed.clamp(0, 1), sample.clean))
        facts = {
            "kind": kind,
            "seed": seed,
            "guidance": chosen.map,
            "guidance_mean": None if sample.guidance is None else round(float(sample.guidance.mean()), 5),
            "psnr": round(psnr, 3) if math.isfinite(psnr) else None,  # a small image may catch no drop of rain
            "width": width,
            "height": height,
        }
        return Computed(facts, files, replace(picture, pixels=sample.observed, alpha=alpha))

    outcome = run_jobs(
        work, compute, parallel=parallel, skip=skip_existing, quality=quality, quiet=quiet, what="degrading"
    )
    return outcome.close(as_json=as_json, verb="degraded", quiet=quiet or work[0].target == STREAM)


T = TypeVar("T")


def _named(what: str, name: str, known: dict[str, T]) -> T:
    from twofold.settings import nearest

    if name not in known:
        raise Misuse(f"unknown {what} {name!r}; {nearest(name, list(known))}")
    return known[name]


def _of_recipes(kind: str) -> Kind:
    """A kind that recipes can name and `DEGRADATIONS` does not, with default settings; its map is saved as it is."""
    from twofold.data.degradations import changed, degradation_kinds

    own = _named("kind", kind, {**dict.fromkeys(DEGRADATIONS, ""), **{name: name for name in degradation_kinds()}})
    return Kind(lambda options: changed({"kind": own}, [], Path()), kind, 1.0)


def _span(text: str) -> tuple[float, float]:
    """0.05 or 0.02:0.1."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high or low)
    except ValueError:
        raise Misuse(f"--level takes a number or a range such as 0.02:0.1, got {text!r}") from None
