"""`twofold doctor`."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from twofold.cli.misuse import Misuse


def command(
    test: Annotated[bool, typer.Option("--test/--no-test", help="Also restore a small image (two seconds).")] = True,
    choose: Annotated[
        bool, typer.Option("--choose", help="First measure the installed runtimes, and store the fastest.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="For --choose: models to measure. Default: all shipped models."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all facts as JSON.")] = False,
) -> int:
    """Reports on this machine and installation, and tests them. Paste the text into a bug report.

    twofold doctor

    Versions, processor and device, threads, matrix unit and bfloat16, free memory, the weights and their hashes, how
    each model is run here and why, and a photograph restored with its time. Exit code 1 if there is a problem.

    twofold doctor --json > report.json

    Measure which of torch, ONNX Runtime and OpenVINO is fastest here, and use it from now on (some minutes):

    twofold doctor --choose
    """
    from twofold import doctor

    if model and not choose:
        raise Misuse("--model is for --choose; leave it out, or add --choose")
    chosen = (model or doctor.with_weights()) if choose else ()
    report = doctor.examine(os.environ, test=test, choose=chosen)
    print(json.dumps(report, indent=2) if as_json else doctor.report_text(report))
    return 1 if report["problems"] else 0
