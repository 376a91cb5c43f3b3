"""The shipped models restore three small pictures as they did when those in `golden` were stored.

`python tools/golden.py --pictures` stores them anew, where a model changed on purpose.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from golden_cases import FOLDER, HEIGHT, WIDTH, restored
from twofold import zoo
from twofold.metrics import psnr

TOLERANCE = 1  # grey level of 255


def histogram(errors: np.ndarray) -> str:
    counts = np.bincount(errors.ravel())
    return "pixel values by error in grey levels: " + ", ".join(f"{e}: {n}" for e, n in enumerate(counts) if n)


@pytest.mark.parametrize("name", zoo.cards())
def test_a_shipped_model_restores_the_golden_pictures(name: str) -> None:
    scores = []
    for photograph, sample, result in restored(name):
        scores.append(psnr(result.image.clamp(0, 1), sample.clean).item())
        levels = (result.image.clamp(0, 1)[0].permute(1, 2, 0) * 255).round().to(torch.int64).numpy()
        golden = np.asarray(Image.open(FOLDER / f"{name}-{photograph}.png")).astype(np.int64)
        assert golden.shape == levels.shape == (HEIGHT, WIDTH, 3)
        errors = np.abs(levels - golden)
        assert errors.max() <= TOLERANCE, f"{name}, {photograph}: {histogram(errors)}"
    assert sum(scores) / len(scores) == pytest.approx(zoo.cards()[name].golden_psnr, abs=0.05)


def test_every_golden_picture_belongs_to_a_shipped_model() -> None:
    assert {path.stem.rsplit("-", 1)[0] for path in FOLDER.glob("*.png")} == set(zoo.cards())


def test_the_histogram_counts_each_error() -> None:
    assert histogram(np.array([0, 0, 3])) == "pixel values by error in grey levels: 0: 2, 3: 1"
