"""Writes the tables of README and docs from the files that commands made.

    python docs/tables.py            writes them
    python docs/tables.py --check    exits 1 if one is not what its file says

A table stands between `<!-- table NAME -->` and `<!-- end -->`; the function of that name below makes it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WEIGHTS = ROOT / "src" / "twofold" / "weights"


def rows(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def result(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def models() -> str:
    """Every card: validation pictures, before → after."""
    body = []
    for path in sorted(WEIGHTS.glob("*.json")):
        card = json.loads(path.read_text())
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
    return rows(["model", "size", "measured on", "protocol", "untouched (PSNR / SSIM)", "restored"], body)


def guidance() -> str:
    """Ways of training with and without guidance: PSNR with its interval over seeds, the gain, the guide's error."""
    ways = result("guidance")["summary"]["ways"]
    body = []
    for way, facts in ways.items():
        line = [f"`{way}`", f"{facts['theta_updates']:,}", f"{facts['cpu_seconds']:.0f} s"]
        for rain in ("light", "heavy"):
            found = facts[rain]
            line.append(f"{found['psnr']:.2f} ({span(found['psnr_interval'])})")
            gain = found.get("over_none")
            line.append("" if gain is None else f"{gain:+.2f} ({span(found['over_none_interval'], sign='+')})")
            line.append(f"{found['g']:.3f}" if "g" in found else "")
        body.append(line)
    constant = [f"{next(iter(ways.values()))[rain]['g_constant']:.3f}" for rain in ("light", "heavy")]
    body.append(["best constant map", "", "", "", "", constant[0], "", "", constant[1]])
    head = ["way", "θ-updates", "CPU time"]
    for rain in ("light", "heavy"):
        head += [f"{rain}: PSNR (95 %)", "over `none` (95 %)", "g"]
    return rows(head, body)


def guidance_rivals() -> str:
    """Every way against the guided scheme, paired by seed."""
    body = []
    for way, facts in result("guidance")["summary"]["ways"].items():
        gains = [facts[rain] for rain in ("light", "heavy") if "over_guided" in facts[rain]]
        if gains:
            shown = [f"{g['over_guided']:+.2f} ({span(g['over_guided_interval'], sign='+')})" for g in gains]
            body.append([f"`{way}` − `guided`", *shown])
    return rows(["PSNR, paired by seed (95 %)", "light", "heavy"], body)


def span(ends: list[float] | None, sign: str = "") -> str:
    return "one seed" if ends is None else " … ".join(f"{end:{sign}.2f}" for end in ends)


def restore_speed() -> str:
    """What each ingredient of running a network brings, PReNet at two sizes."""
    speed = result("restore")["speed"]
    body = []
    for variant, large in speed["512"]["variants"].items():
        small = speed["256"]["variants"][variant]
        cells = [f"{row['cpu_seconds']:.2f} s ({row['speedup']:.1f}×)" for row in (large, small)]
        body.append([variant, *cells])
    return rows(["PReNet, CPU seconds of one thread", "512 × 512", "256 × 256"], body)


def steering() -> str:
    """How much of the rain goes at each strength, and what that does to PSNR."""
    found = result("steering")["strengths"]
    head = ["strength", *found["light"]]
    body = []
    for rain, by in found.items():
        body.append([f"{rain}: share of the rain removed", *(f"{facts['removed']:.0%}" for facts in by.values())])
        body.append([f"{rain}: PSNR", *(f"{facts['psnr']:.2f}" for facts in by.values())])
    return rows(head, body)


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "guidance": guidance,
    "guidance_rivals": guidance_rivals,
    "restore_speed": restore_speed,
    "steering": steering,
}


def renewed(text: str) -> str:
    """The text with every table between its marks made anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}"

    return re.sub(r"(<!-- table (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


def main() -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        new = renewed(text)
        if new != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(new)
    for path in stale:
        print(f"{path}: {'not what its files say; run make docs' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
