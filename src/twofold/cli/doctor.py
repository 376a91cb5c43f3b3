"""`twofold doctor`."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer


def command(
    test: Annotated[bool, typer.Option("--test/--no-test", help="Also restore a small picture, two seconds.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print all facts as JSON.")] = False,
) -> int:
    """Says what this machine and installation can do, and tests them: the text to paste into a bug report.

    twofold doctor

    Versions, processor and device, threads, matrix unit and bfloat16, free memory, the weights and their hashes, how
    each model is run here and why, and a photograph restored with its time. Exit code 1 if there is a problem.

    twofold doctor --json > report.json
    """
    from twofold import doctor

    report = doctor.examine(os.environ, test=test)
    print(json.dumps(report, indent=2) if as_json else doctor.report_text(report))
    return 1 if report["problems"] else 0
