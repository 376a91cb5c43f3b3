"""Compares what the shipped models restore before and after a refactoring, bit by bit, on one machine.

    python tools/golden.py --write /tmp/golden.json     # before: SHA-256 of the raw float32 outputs
    python tools/golden.py --check /tmp/golden.json     # after: exits with 1 if any output differs
    python tools/golden.py --pictures                   # stores the pictures of tests/test_golden.py anew

The pictures and their tolerance of one grey level hold across machines; the hashes do not, so they are not committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from golden_cases import FOLDER, restored
from twofold import images, zoo


def digest(values: Tensor) -> str:
    return hashlib.sha256(values.float().contiguous().numpy().tobytes()).hexdigest()


def digests() -> dict[str, str]:
    """Of the picture and, where there is one, of the guidance map, by model and photograph."""
    found = {}
    for name in zoo.cards():
        for photograph, _, result in restored(name):
            found[f"{name}/{photograph}/image"] = digest(result.image)
            if result.guidance is not None:
                found[f"{name}/{photograph}/guidance"] = digest(result.guidance)
    return found


def store_pictures() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in zoo.cards():
        for photograph, _, result in restored(name):
            images.write(FOLDER / f"{name}-{photograph}.png", images.Picture(result.image))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE", help="store the hashes of the outputs")
    action.add_argument("--check", type=Path, metavar="FILE", help="compare the outputs with the stored hashes")
    action.add_argument("--pictures", action="store_true", help="store the golden pictures anew")
    options = parser.parse_args()
    if options.pictures:
        store_pictures()
        return 0
    found = digests()
    if options.write:
        options.write.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{len(found)} outputs stored in {options.write}")
        return 0
    stored = json.loads(options.check.read_text())
    differ = sorted(name for name in stored.keys() | found.keys() if stored.get(name) != found.get(name))
    print(f"{len(found) - len(differ)} of {len(found)} outputs are the same bit by bit")
    for name in differ:
        print(f"differs: {name}")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
