"""What several test files share: a tiny untrained model in a file, pictures on disk, and the real pictures, if any."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from tiny_models import TINY, untrained
from twofold import specs
from twofold.export import runtimes

# Neither the time of one example nor that of drawing them says anything on a machine that does other work too.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """What a test flushes to zero, the next one finds again: the setting is that of the whole process."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees which runtimes were chosen for the machine's user."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def guided_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guided model for rain, never trained."""
    spec = specs.GuidedSpec(guidance="rain_region", guide=specs.GuideSpec(width=8), net=TINY)
    return untrained(spec, tmp_path_factory.mktemp("models") / "guided.safetensors")


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a guidance map, never trained."""
    return untrained(specs.PlainSpec(net=TINY), tmp_path_factory.mktemp("models") / "plain.safetensors")


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """`picture("a/b.png", height, width)` writes a picture of random colours below the test's folder."""

    def make(name: str, height: int = 12, width: int = 17, channels: int = 3) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.random.default_rng(len(name)).integers(0, 256, (height, width, channels), np.uint8)
        Image.fromarray(samples.squeeze(2) if channels == 1 else samples).save(path)
        return path

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures, which are never part of the project: TWOFOLD_DATA, or shared/data beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TWOFOLD_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real pictures at {folder}; set TWOFOLD_DATA to their folder")
    return folder
