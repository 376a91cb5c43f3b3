"""What a strength does: how much of the rain the shipped model takes away when its map is scaled.

    python benchmarks/steering.py --data DATA --json benchmarks/results/steering.json

Share removed: the part of the true rain (observed − clean) that lies in what the model took (observed − restored), as a
projection; 0 is an untouched picture, 1 all of it. Held-out scenes of Rain100, every fifth by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import parser, table, write
from twofold import api
from twofold.data.pairs import every, find_pairs, read_pair
from twofold.metrics import PROTOCOLS

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def measured(model: api.Model, root: Path, rain: str) -> dict[str, dict[str, float]]:
    """By strength: mean share of the rain that is removed, and PSNR."""
    pairs = every(find_pairs(root, observed=rain, clean="clean"), 5, picked=True)
    total: dict[str, dict[str, float]] = {f"{s:g}": {"removed": 0.0, "psnr": 0.0} for s in STRENGTHS}
    for pair in pairs:
        observed, clean = read_pair(pair)
        fallen = observed - clean
        for strength in STRENGTHS:
            restored: Any = model(observed, strength=strength).image
            taken = observed - restored.clamp(0, 1)
            facts = total[f"{strength:g}"]
            facts["removed"] += float((taken * fallen).sum() / fallen.square().sum()) / len(pairs)
            facts["psnr"] += PROTOCOLS["y-matlab"].score(restored, clean).psnr.item() / len(pairs)
    return total


def steering_table(result: dict[str, Any]) -> str:
    """How much of the rain goes at each strength, and what that does to PSNR."""
    found = result["strengths"]
    head = ["strength", *found["light"]]
    body = []
    for rain, by in found.items():
        body.append([f"{rain}: share of the rain removed", *(f"{facts['removed']:.0%}" for facts in by.values())])
        body.append([f"{rain}: PSNR", *(f"{facts['psnr']:.2f}" for facts in by.values())])
    return table(head, body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "steering": steering_table(result),
    }


def main() -> None:
    options = parser(__doc__, data="rain/Rain100").parse_args()
    model = api.load("derain", precision="exact")  # a number should not depend on the machine
    results = {rain: measured(model, options.data / "rain" / "Rain100", rain) for rain in ("light", "heavy")}
    summary = {rain: {s: round(facts["removed"], 3) for s, facts in rows.items()} for rain, rows in results.items()}
    print(json.dumps(summary, indent=1))
    write(options.json, {"summary": summary, "strengths": results})


if __name__ == "__main__":
    main()
