"""The table of the shipped models, from the cards that `tools/cards.py` writes beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import table
from twofold import zoo

WEIGHTS = Path(zoo.__file__).parent / "weights"
RESULTS = ()


def tables(_: dict[str, Any]) -> dict[str, str]:
    """Every model on every validation set, before and after."""
    body = []
    for path in sorted(WEIGHTS.glob("*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        for dataset, n in card["numbers"].items():
            body.append(
                [
                    f"`{card['name']}`",
                    f"{card['bytes'] / 1e6:.1f} MB",
                    f"{dataset} ({n['pictures']:.0f} held-out pictures)",
                    f"`{card['protocol']}`",
                    f"{n['input_psnr']:.2f} / {n['input_ssim']:.4f}",
                    f"**{n['psnr']:.2f}** / {n['ssim']:.4f}",
                ]
            )
    head = ["model", "size", "measured on", "protocol", "untouched (PSNR / SSIM)", "restored"]
    return {"models": table(head, body)}
