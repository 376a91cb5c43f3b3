"""`twofold restore --engine ray`: the same jobs, restored by workers on one machine or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twofold.cli.misuse import Misuse
from twofold.cli.pictures import Job
from twofold.cli.pipeline import Outcome, bar, is_done
from twofold.contracts import TwofoldError
from twofold.fleet import FleetWork, ray_module, restore_all


def check_options(single: Mapping[str, Any], kernel: str | None) -> None:
    """Raises: Misuse for options that hold for one picture, which workers are not given."""
    given = [option for option, value in single.items() if value is not None]
    if kernel is not None and Path(kernel).is_dir():
        given.append("--kernel FOLDER")
    if given:
        raise Misuse(f"{', '.join(given)}: not with --engine ray; leave it out, or take --engine local")


def on_cluster(
    work: Sequence[Job], plan: FleetWork, *, workers: int | None, address: str | None, skip: bool, as_json: bool
) -> int:
    """Restores the jobs and prints the summary; returns the exit code. skip: jobs whose target is there."""
    ray_module()  # before the model is loaded, so that what is missing is said at once
    from twofold import api

    api.check_strength(plan.strength)
    model = api.load(plan.model, device="cpu")
    if model.takes_kernel != (plan.kernel is not None):
        raise TwofoldError(
            f"{plan.model} needs --kernel FILE, or --kernel estimate"
            if model.takes_kernel
            else f"{plan.model} removes no blur; leave --kernel out"
        )
    outcome = Outcome(len(work))
    left = [job for job in work if not (skip and is_done(job))]
    outcome.skipped = [str(job.source) for job in work if job not in set(left)]
    with bar(len(left), "restoring") as show:
        results = restore_all(
            [(job.source, job.target) for job in left],
            plan,
            workers=workers,
            address=address,
            progress=lambda done, _: show(done),
        )
    for job, result in zip(left, results, strict=True):
        if result.error is not None:
            source = str(job.source)
            outcome.failed[source] = result.error if source in result.error else f"{source}: {result.error}"
        else:
            facts: dict[str, Any] = {"input": str(job.source), "output": str(job.target), "format": job.suffix[1:]}
            facts |= {"models": [plan.model], "strength": plan.strength}
            outcome.done.append({**facts, **result.facts})
    return outcome.close(as_json=as_json, verb="restored")
