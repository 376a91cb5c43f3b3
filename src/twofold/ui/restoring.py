"""The library's two calls, `load` a model and call it, as the page makes them: all it knows of models is here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

import twofold
from twofold import zoo
from twofold.contracts import GuidanceKind, Restored
from twofold.guess import MODELS
from twofold.images import Picture
from twofold.restorers.blind import KernelSearch

TASKS = {
    "rain": "Rain",
    "haze": "Haze or fog",
    "deconvolution": "Blur",
    "lowlight": "Low light",
    "underwater": "Under water",
}
"""The tasks of the model cards as the page calls them, in its order."""

PageProgress = Callable[[int, int], None]


class Restoring(Protocol):
    """What the page needs of a loaded model: a part of `twofold.api.Model`."""

    @property
    def kind(self) -> GuidanceKind | None:
        """What the guidance map means; None for a model without one."""

    @property
    def takes_kernel(self) -> bool:
        """Whether the model needs the blur kernel."""

    def __call__(
        self,
        image: Tensor,
        *,
        kernel: Path | KernelSearch | None = None,
        guidance: Tensor | float | None = None,
        strength: float = 1.0,
        progress: PageProgress | None = None,
    ) -> Restored: ...


@dataclass(frozen=True)
class Offer:
    """A model as the page offers it. task: the key of `TASKS`, or another word of a card. trained: it has weights."""

    name: str
    task: str
    about: str
    notes: str = ""
    trained: bool = True


@dataclass(frozen=True)
class Wishes:
    """What to restore with. noise_level: a standard deviation where white is 1; None estimates it. kernel: a file, or
    the side in pixels of the square in which it is searched for. guidance: a map `(1, 1, H, W)` to be used instead of
    the estimated one, in its own unit.
    """

    strength: float = 1.0
    noise_level: float | None = None
    kernel: Path | int = 31
    guidance: Tensor | None = None


@dataclass(frozen=True)
class PageResult:
    """A restored picture; its map `(1, 1, H, W)` and kernel `(1, 1, h, w)`, where the model has them; and how sure the
    search for the kernel is, from 0 to 1.
    """

    picture: Picture
    guidance: Tensor | None = None
    kernel: Tensor | None = None
    confidence: float | None = None


def offers() -> dict[str, Offer]:
    """The shipped models by name."""
    cards = zoo.cards().values()
    return {card.name: Offer(card.name, card.task, card.about, card.notes, card.parameters > 0) for card in cards}


@dataclass(eq=False)
class Models:
    """Models by name, each loaded once and kept. shipped: what is offered. load: as `twofold.load`, of a name."""

    shipped: Mapping[str, Offer] = field(default_factory=offers)
    load: Callable[[str], Restoring] = twofold.load
    _loaded: dict[str, Restoring] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __getitem__(self, name: str) -> Restoring:
        """Raises: WeightsError for a name that is unknown."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self.load(name)
            return self._loaded[name]

    def tasks(self) -> dict[str, str]:
        """The tasks that something is offered for, with their names on the page."""
        known = [task for task in TASKS if any(offer.task == task for offer in self.shipped.values())]
        others = [offer.task for offer in self.shipped.values() if offer.task not in TASKS]
        return {task: TASKS.get(task, task.capitalize()) for task in dict.fromkeys([*known, *others])}

    def of_task(self, task: str) -> list[str]:
        """The models of a task: the one in `guess.MODELS`, then the trained ones, then those without weights."""
        firsts = MODELS.values()
        offered = [offer for offer in self.shipped.values() if offer.task == task]
        return [
            offer.name for offer in sorted(offered, key=lambda offer: (offer.name not in firsts, not offer.trained))
        ]

    def restore(self, name: str, picture: Picture, wishes: Wishes, progress: PageProgress | None = None) -> PageResult:
        """Raises: TwofoldError for wishes that the model or the picture does not allow."""
        model = self[name]
        kernel: Path | KernelSearch | None = None
        if model.takes_kernel:
            kernel = wishes.kernel if isinstance(wishes.kernel, Path) else KernelSearch(size=wishes.kernel)
        restored = model(
            picture.pixels,
            kernel=kernel,
            guidance=wishes.noise_level if wishes.guidance is None else wishes.guidance,
            strength=wishes.strength,
            progress=progress,
        )
        found = restored.report
        return PageResult(
            replace(picture, pixels=restored.image),
            restored.guidance,
            None if found is None else found.kernel,
            None if found is None else found.confidence,
        )


def is_noise(kind: GuidanceKind | None) -> bool:
    """Whether a map is the level of noise, which can also be given as one number."""
    return kind is not None and kind.name == "noise_level"
