"""A page whose models cost nothing, and a server for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
    """Brightens where its map is white. calls: what it was called with."""

    kind: GuidanceKind | None
    takes_kernel: bool = False
    seconds: float = 0.0
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, image: torch.Tensor, **wishes: Any) -> Restored:
        self.calls.append(wishes)
        progress = wishes["progress"] or (lambda done, total: None)
        for tile in range(5):
            progress(tile, 5)
            time.sleep(self.seconds / 5)
        found = None
        if isinstance(wishes["kernel"], KernelSearch):
            size = wishes["kernel"].size
            found = KernelEstimate(torch.eye(size)[None, None] / size, 0.8)
        if self.kind is None:
            return Restored(image * 0.5 + 0.5, None, found)
        guidance = torch.full_like(image[:, :1], 0.25 * self.kind.white)
        if wishes["guidance"] is not None:
            guidance = guidance * 0 + wishes["guidance"]
        guidance = self.kind.scaled(guidance, wishes["strength"])
        return Restored(image + (1 - image) * guidance / self.kind.white, guidance, found)


def models(seconds: float = 0.0) -> Models:
    made = {
        "dry": Stub(RAIN_REGION, seconds=seconds),
        "sharp": Stub(NOISE_LEVEL, takes_kernel=True),
        "bright": Stub(None),
    }
    return Models(OFFERS, made.__getitem__)


def picture(height: int = 24, width: int = 32, seed: int = 0) -> Image.Image:
    """Soft colours, bright enough to be taken for nothing in particular."""
    samples = np.random.default_rng(seed).integers(30, 220, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(samples).resize((width, height), Image.Resampling.BICUBIC)


@contextlib.contextmanager
def serving(models: Models, limits: Limits | None = None) -> Iterator[tuple[str, Visits]]:
    """The address of a page on a free port, and its visits; both are gone at the end."""
    import uvicorn

    from twofold.ui import server

    visits = Visits(limits or Limits())
    with contextlib.closing(server.bound("127.0.0.1", 0)) as listening, _gradio_in(visits):
        app = server.application(visits, models)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            until(lambda: running.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/", visits
        finally:
            running.should_exit = True
            thread.join(20)
            visits.close()


@contextlib.contextmanager
def _gradio_in(visits: Visits) -> Iterator[None]:
    import os

    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    os.environ |= {"GRADIO_TEMP_DIR": str(visits.uploads), "GRADIO_ANALYTICS_ENABLED": "False"}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def until(done: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for something that another thread does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
