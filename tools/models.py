"""Trains the shipped models from a data root, one after the other, and makes their cards.

    python tools/models.py --data DATA --runs runs                     # all of them
    python tools/models.py --data DATA --runs runs derain dehaze       # these
    python tools/models.py --data DATA --runs runs derain --stop-after 9.5 --no-cards   # on a machine lent for a time

Every run goes on where it was: after Ctrl-C, a kill, or on another machine with the folder of runs copied there. A run
that is finished is not trained again. The exit code is 3 while something is left to train.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from twofold import zoo

STOPPED = 3
"""Exit code of `twofold train --stop-after` before the last step, and of this script while something is left."""


def trained() -> list[str]:
    """The shipped models that have weights."""
    return [card.name for card in zoo.cards().values() if card.bytes]


def finished(run: Path) -> bool:
    """Whether a run has reached its last step."""
    return (run / "result.json").exists()


def train(name: str, options: argparse.Namespace, deadline: float | None) -> int:
    """The exit code of `twofold train`. deadline: of the clock `time.monotonic`."""
    run = options.runs / name
    command = [sys.executable, "-m", "twofold", "train", name, "--data", options.data, "--output", run]
    if deadline is not None:
        command += ["--stop-after", f"{max(deadline - time.monotonic(), 0) / 60:.2f}"]
    code = subprocess.run(list(map(str, command)), check=False).returncode
    if finished(run):
        facts = json.loads((run / "result.json").read_text())
        scores = ", ".join(f"{key} {value:.2f}" for key, value in facts["validation"].items() if key.endswith("/psnr"))
        print(f"{name}: {facts['hours']:.2f} hours, {facts['steps']:,} steps, {scores}", flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models; without them all that have weights")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--stop-after", type=float, help="minutes for all runs together")
    parser.add_argument("--no-cards", action="store_true", help="only train; cards are made where the data are")
    options = parser.parse_args()
    unknown = set(options.names) - set(trained())
    if unknown:
        parser.error(f"no shipped model with weights: {', '.join(sorted(unknown))}; known: {', '.join(trained())}")
    deadline = None if options.stop_after is None else time.monotonic() + 60 * options.stop_after
    for name in options.names or trained():
        if not finished(options.runs / name):
            code = train(name, options, deadline)
            if code:
                return code
        if not options.no_cards:
            cards = [sys.executable, Path(__file__).parent / "cards.py", options.runs / name, "--data", options.data]
            if subprocess.run(list(map(str, cards)), check=False).returncode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
