"""Models small enough for any test."""

from __future__ import annotations

from pathlib import Path

import torch

from twofold import zoo

TINY = zoo.UNetSpec(widths=[8, 8], blocks=[1, 1])


def untrained(spec: zoo.GuidedSpec | zoo.PlainSpec, path: Path) -> Path:
    """Random weights, all different from zero, so that everything the model sees shows in what it returns."""
    torch.manual_seed(0)
    restorer = spec.build()
    with torch.no_grad():
        for parameter in restorer.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    zoo.save(path, restorer, spec)
    return path
