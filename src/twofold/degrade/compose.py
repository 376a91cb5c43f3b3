"""Several damages after one another, as they come in nature: rain over haze, noise over both, then a file of 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.contracts import ConfigError, Degradation, Sample
from twofold.nets.fourier import center_crop


@dataclass(frozen=True)
class Chain:
    """Each step degrades what the one before returned; the guidance is that of the step called `guidance`.

    steps: degradations by name, in their order. `kernel` is that of the only step that has one.
    A step that returns less than it was given (blur, at its borders) crops the clean picture and the maps likewise.

    Raises: ConfigError where there are no steps or none is called `guidance`; when called, where two steps tell
    a kernel, since one of the two would be lost.

    >>> from twofold.degrade.additive import GaussianNoise, RainStreaks
    >>> chain = Chain({"rain": RainStreaks(), "noise": GaussianNoise()}, guidance="noise")
    >>> sample = chain(torch.zeros(1, 3, 8, 8), torch.Generator().manual_seed(0))
    >>> bool(0.01 <= sample.guidance.max() <= 0.05)
    True
    """

    steps: Mapping[str, Degradation]
    guidance: str

    def __post_init__(self) -> None:
        if self.guidance not in self.steps:
            raise ConfigError(
                f"guidance: no step is called {self.guidance!r}; there are: {', '.join(self.steps) or 'none'}"
            )

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        observed, guidance, kernel = clean, None, None
        for name, step in self.steps.items():
            sample = step(observed, generator)
            observed = sample.observed
            if name == self.guidance:
                guidance = sample.guidance
            if sample.kernel is not None:
                if kernel is not None:
                    raise ConfigError(f"step {name!r}: a second step blurs with a kernel; only one may")
                kernel = sample.kernel
        size = (observed.shape[-2], observed.shape[-1])
        return Sample(
            center_crop(clean, size), observed, None if guidance is None else center_crop(guidance, size), kernel
        )
