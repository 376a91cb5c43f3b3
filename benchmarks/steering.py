"""What a strength does: how much of the rain the shipped model takes away when its map is scaled.

    python benchmarks/steering.py --data DATA --json benchmarks/results/steering.json

Share removed: the part of the true rain (observed − clean) that lies in what the model took (observed − restored), as a
projection; 0 is an untouched picture, 1 all of it. Held-out scenes of Rain100, every fifth by name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from twofold import api
from twofold.data.pairs import every, find_pairs, read_pair
from twofold.files import write_text
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = api.load("derain", precision="exact")  # a number should not depend on the machine
    results = {rain: measured(model, options.data / "rain" / "Rain100", rain) for rain in ("light", "heavy")}
    summary = {rain: {s: round(facts["removed"], 3) for s, facts in rows.items()} for rain, rows in results.items()}
    print(json.dumps(summary, indent=1))
    if options.json:
        write_text(options.json, json.dumps({"summary": summary, "strengths": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
