"""`twofold demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofold.cli.options import place
from twofold.files import locked


def command(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", parser=place, help="Output folder for index.html, sheet.png and the images."),
    ] = Path("demo"),
    seconds: Annotated[float, typer.Option(min=0, help="Seconds of training; 0: no training.")] = 60.0,
) -> int:
    """Demonstrates the installation without other data: photographs of scikit-image are degraded and restored with the
    shipped weights, then a small network is trained on them for a minute.

    twofold demo --output demo --seconds 60
    """
    with locked(output):  # which also fails at once, not after the work, where nothing can be written
        return _shown_and_trained(output, seconds)


def _shown_and_trained(output: Path, seconds: float) -> int:
    from twofold import demo
    from twofold.cli.train import Bar

    shown = demo.run_demo(output, print, scenes=demo.SCENES)
    if shown:
        print(f"\nLook at {output / 'index.html'} or {output / 'sheet.png'}.")
    if seconds:
        print(f"\nGuided training of a small network on the same photographs, about {seconds:g} s:")
        bar = Bar()
        try:
            trained = demo.train_demo(output, seconds=seconds, reports=[bar])
        finally:
            bar.progress.stop()
        print(f"{trained.steps} steps in {trained.seconds:.0f} s; on the photographs:")
        print(f"  restoration loss  {trained.losses[0]:.4f} → {trained.losses[1]:.4f}")
        print(f"  PSNR              {trained.psnr[0]:.2f} → {trained.psnr[1]:.2f} dB (rainy → restored)")
        print(f"Restore with it: twofold restore PHOTO --model {trained.model}")
    return 0 if len(shown) == len(demo.SCENES) else 1
