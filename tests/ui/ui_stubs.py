"""A page whose models cost nothing, and a server for it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from twofold.contracts import NOISE_LEVEL, RAIN_REGION, GuidanceKind, Restored
from twofold.restorers.blind import KernelEstimate, KernelSearch
from twofold.ui.restoring import Models, Offer
from twofold.ui.visits import Limits, Visits

OFFERS = {
    "dry": Offer("dry", "rain", "rain, in a test", "Removes nothing."),
    "sharp": Offer("sharp", "deconvolution", "blur, in a test"),
    "bright": Offer("bright", "lowlight", "darkness, in a test"),
}


@dataclass
class Stub:
    """Brightens where its map is white. called: a file to make when it is. calls: what it was called with."""

    kind: GuidanceKind | None
    takes_kernel: bool = False
    seconds: float = 0.0
    called: Path | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, image: torch.Tensor, **wishes: Any) -> Restored:
        self.calls.append(wishes)
        if self.called:
            self.called.touch()
        progress = wishes["progress"] or (lambda done, total: None)
        for tile in range(5):
            progress(tile, 5)
            time.sleep(self.seconds / 5)
        found = None
        if isinstance(wishes["kernel"], KernelSearch):
            size = wishes["kernel"].size
            found = KernelEstimate(torch.eye(size)[None, None] / size, 0.8)
        if self.kind is None:
            return Restored(image + (1 - image) * 0.5 * wishes["strength"], None, found)
        guidance = torch.full_like(image[:, :1], 0.25 * self.kind.white)
        if wishes["guidance"] is not None:
            guidance = guidance * 0 + wishes["guidance"]
        guidance = self.kind.scaled(guidance, wishes["strength"])
        return Restored(image + (1 - image) * guidance / self.kind.white, guidance, found)


def models(seconds: float = 0.0, called: Path | None = None) -> Models:
    made = {
        "dry": Stub(RAIN_REGION, seconds=seconds, called=called),
        "sharp": Stub(NOISE_LEVEL, takes_kernel=True),
        "bright": Stub(None),
    }
    return Models(OFFERS, made.__getitem__)


def picture(height: int = 24, width: int = 32, seed: int = 0) -> Image.Image:
    """Squares of bright colours, which are taken for no damage."""
    samples = np.random.default_rng(seed).integers(30, 220, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(samples).resize((width, height), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Served:
    """A page on a free port of this machine. root: the folder of all visits. called: is there once a model was."""

    address: str
    root: Path
    called: Path
    process: subprocess.Popen[str]

    def visits(self) -> list[Path]:
        """Whatever is left of visits."""
        walked = os.walk(self.root)  # unlike rglob it goes on where a folder is deleted meanwhile
        return [Path(place) / name for place, _, names in walked if Path(place) != self.root for name in names]


@contextlib.contextmanager
def serving(folder: Path, limits: Limits | None = None, *, seconds: float = 0.0) -> Iterator[Served]:
    """A page in a process of its own, whose models take `seconds`; at the end it is asked to end, and must leave
    nothing.
    """
    facts = {"limits": vars(limits or Limits()), "seconds": seconds, "called": str(folder / "called")}
    environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(facts)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        said = json.loads(process.stdout.readline())
        root = Path(said["root"])
        yield Served(said["address"], root, folder / "called", process)
        process.terminate()
        assert process.wait(600) == 0
        assert not root.exists(), "the server left files"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main(facts: dict[str, Any]) -> None:
    visits = Visits(Limits(**facts["limits"]))
    os.environ["GRADIO_TEMP_DIR"] = str(visits.uploads)
    from twofold.ui import server

    def announce(address: str) -> None:
        print(json.dumps({"address": address, "root": str(visits.root)}), flush=True)

    made = models(facts["seconds"], Path(facts["called"]))
    server.serve(visits, made, host="127.0.0.1", port=0, announce=announce)


def until(done: Callable[[], object], seconds: float = 600.0) -> None:
    """Waits for something that another thread does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
