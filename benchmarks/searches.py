"""Tables of the three shipped searches, from search-*, judge-* and undecayed-*.json, which `make searches` writes."""

from __future__ import annotations

from typing import Any

from harness import table

TASKS = ("lowlight", "underwater", "haze")
RESULTS = (*(f"{kind}-{task}" for kind in ("search", "judge", "undecayed") for task in TASKS), "search-128")


def searches_table(result: dict[str, Any]) -> str:
    """What the three shipped searches found, and their cost."""
    found = {task: result[f"search-{task}"] for task in TASKS}
    judges = [result[f"judge-{task}"] for task in TASKS]
    names = list(dict.fromkeys(name for facts in found.values() for name in facts["loss"]))
    stages = [facts["stages"].values() for facts in found.values()]
    seconds = [facts["cpu_seconds"] for facts in found.values()]  # None: one of the stages collapsed
    body = [
        ["judge, accuracy on held-out crops", *(f"{judge['accuracy']:.1%}" for judge in judges)],
        ["judge, counterfeits detected", *(f"{judge['caught']:.1%}" for judge in judges)],
        *([f"λ of `{name}`", *(f"{facts['loss'].get(name, 0.0):.2f}" for facts in found.values())] for name in names),
        [
            "feature layers",
            *(", ".join(map(str, next(iter(facts["layers"].values()), []))) for facts in found.values()),
        ],
        ["places given to SC", *(f"{facts['skip_ratio']:.0%}" for facts in found.values())],
        ["parameters of the network", *(f"{facts['parameters']:,}" for facts in found.values())],
        ["steps", *(" + ".join(str(stage["steps"]) for stage in both) for both in stages)],
        ["CPU seconds of one core", *("" if s is None else f"{s:.0f}" for s in seconds)],
        ["a tenth of the steps on crops of 128×128, CPU seconds", "", f"{result['search-128']['cpu_seconds']:.0f}", ""],
    ]
    return table(["", *found], body)


def decay_table(result: dict[str, Any]) -> str:
    """Stage 1 with the published weight decay of λ, and without."""
    pairs = {task: (result[f"search-{task}"]["loss"], result[f"undecayed-{task}"]["loss"]) for task in TASKS}
    names = list(dict.fromkeys(name for both in pairs.values() for name in both[0]))
    body = [[f"λ of `{name}`", *(f"{a[name]:.2f} / {b[name]:.2f}" for a, b in pairs.values())] for name in names]
    return table(["decay 0.0001 / 0", *pairs], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "searches": searches_table(result),
        "decay": decay_table(result),
    }
