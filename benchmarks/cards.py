"""The table of the shipped models, from what `twofold evaluate --all` measured.

twofold evaluate --all --data DATA --output benchmarks/results/models.json
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from harness import table
from twofold import zoo

RESULTS = ("models",)


def tables(result: dict[str, Any]) -> dict[str, str]:
    """One row a model: its sets, before and after."""
    cards, body = zoo.cards(), []
    for name, rows in groupby(result["models"]["evaluations"], key=lambda row: row["model"]):
        found = list(rows)
        sets = [
            f"{row['set']} ({s['pictures']}): {s['input_psnr']:.2f} → **{s['psnr']:.2f}**"
            for row in found
            for s in [row["summary"]]
        ]
        size = f"{cards[name].bytes / 1e6:.1f} MB" if cards[name].bytes else "–"
        body.append([f"`{name}`", cards[name].method, size, f"`{found[0]['protocol']['name']}`", ", ".join(sets)])
    return {"models": table(["model", "method", "size", "protocol", "set (images): PSNR before → after, dB"], body)}
