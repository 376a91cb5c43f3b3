"""The demonstration: degrades bundled photographs, restores them with the shipped weights, trains for a minute."""

from __future__ import annotations

import base64
import html
import io
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs
from torch import Tensor, nn

from twofold import api, images, losses, metrics, specs, zoo
from twofold.contracts import Degradation, Sample, WeightsError
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.sources import SyntheticCrops
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.degrade.hadamard import Haze, LowLight, Underwater
from twofold.files import write_text
from twofold.sheets import contact_sheet
from twofold.train.learner import Learner
from twofold.train.loop import Run, fit
from twofold.train.schemes import GuidedTraining, Report


@dataclass(frozen=True)
class Scene:
    """One photograph of the demonstration: the model that restores it, and how it is degraded."""

    photograph: str
    model: str
    degradation: Degradation

    @property
    def name(self) -> str:
        """Of its files and of its row: photograph and model."""
        return f"{self.photograph}-{Path(self.model).stem}"


SCENES = (
    Scene("coffee", "derain", RainStreaks()),
    Scene("chelsea", "derain", RainStreaks()),
    Scene("astronaut", "deblur", Blur(CameraShake(size=25, extent=(10.0, 16.0)), GaussianNoise((0.01, 0.01)))),
    Scene("chelsea", "deblur", Blur(CameraShake(size=25, extent=(10.0, 16.0)), GaussianNoise((0.03, 0.03)))),
    Scene("rocket", "dehaze", Haze(beta=(1.0, 1.0), airlight=(0.85, 0.85))),
    Scene("coffee", "lowlight", LowLight(exposure=(0.04, 0.04))),
    Scene("astronaut", "underwater", Underwater()),
)


@dataclass(frozen=True)
class Shown:
    """What came of a scene. PSNR in dB over RGB, before and after."""

    scene: Scene
    sample: Sample
    restored: Tensor
    guidance: Tensor | None
    before: float
    after: float
    seconds: float


def photograph(name: str) -> Tensor:
    """A photograph that comes with scikit-image, `(1, 3, H, W)` in [0, 1], its sides multiples of 8."""
    picture = images.from_any(np.asarray(getattr(photographs, name)())).pixels
    height, width = (side // 8 * 8 for side in picture.shape[-2:])
    return picture[..., :height, :width]


def show(scene: Scene, *, seed: int = 0) -> Shown:
    """Raises: WeightsError where the scene's model is not shipped."""
    sample = scene.degradation(photograph(scene.photograph), torch.Generator().manual_seed(seed))
    model = api.load(scene.model)
    started = time.perf_counter()
    restored, guidance, _ = model(sample.observed, kernel=sample.kernel)
    seconds = time.perf_counter() - started
    restored = restored.clamp(0, 1)
    before, after = (metrics.psnr(picture, sample.clean).item() for picture in (sample.observed, restored))
    return Shown(scene, sample, restored, guidance, before, after, seconds)


TITLES = ("observed", "guidance", "restored", "clean")


def demo_sheet(results: Sequence[Shown]) -> Tensor:
    """Observed, guidance, restored, clean: a row a scene; the place of a map that there is none of stays white."""
    blank = torch.ones(1, 1, 1, 1)
    return contact_sheet(TITLES, [[blank if p is None else p for p in _pictures(r)] for r in results])


def _pictures(result: Shown) -> list[Tensor | None]:
    """What `TITLES` names; None where the model has no guidance map."""
    guidance = result.guidance
    seen = None if guidance is None else guidance / guidance.max().clamp(min=1e-6)
    return [result.sample.observed, seen, result.restored, result.sample.clean]


def page(results: Sequence[Shown], table: str) -> str:
    """One HTML page that needs nothing beside it."""
    figures = []
    for r in results:
        cells = "".join(
            f'<figure><img src="data:image/jpeg;base64,{_jpeg(p)}" alt="{t}"><figcaption>{t}</figcaption></figure>'
            for t, p in zip(TITLES, _pictures(r), strict=True)
            if p is not None
        )
        figures.append(
            f"<h2>{html.escape(r.scene.name)}: {r.before:.2f} → {r.after:.2f} dB</h2><div class=row>{cells}</div>"
        )
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><title>twofold: demonstration</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }}
.row {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .5rem }}
figure {{ margin: 0 }} img {{ width: 100% }} pre {{ background: #f4f4f4; padding: 1rem; overflow: auto }}
</style>
<h1>twofold</h1>
<p>Photographs that come with scikit-image, degraded by the library's own degradations and restored with the
shipped weights. The guidance map is what the model believes of the cause; it can be replaced or scaled.</p>
<pre>{html.escape(table)}</pre>
{"".join(figures)}
"""


def _jpeg(picture: Tensor) -> str:
    array = (picture.detach().clamp(0, 1).expand(-1, 3, -1, -1)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()


def table(results: Sequence[Shown]) -> str:
    """PSNR before and after, and seconds, as aligned text: a row a scene."""
    lines = [f"{'photograph':<12} {'model':<10} {'before':>8} {'after':>8} {'seconds':>8}"]
    lines += [
        f"{r.scene.photograph:<12} {r.scene.model:<10} {r.before:8.2f} {r.after:8.2f} {r.seconds:8.2f}" for r in results
    ]
    return "\n".join(lines)


def run_demo(folder: Path, say: Callable[[str], None], *, scenes: Sequence[Scene] = SCENES) -> list[Shown]:
    """Restores every scene; writes sheet.png, index.html and the pictures into `folder`.

    A scene whose model cannot be loaded is left out, and the reason said.
    """
    results = []
    for scene in scenes:
        try:
            results.append(show(scene))
        except WeightsError as error:
            say(f"{scene.name} is left out: {error}")
    if not results:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    images.write(folder / "sheet.png", images.Picture(demo_sheet(results)))
    write_text(folder / "index.html", page(results, table(results)))
    for r in results:
        images.write(folder / f"{r.scene.name}.png", images.Picture(r.sample.observed))
        images.write(folder / f"{r.scene.name}-restored.png", images.Picture(r.restored))
    say(table(results))
    return results


MODEL = specs.GuidedSpec(
    guidance="rain_region", guide=specs.GuideSpec(width=16), net=specs.UNetSpec(widths=[16, 32], blocks=[1, 1])
)
"""What the demonstration trains: small enough to learn something in a minute."""


@dataclass(frozen=True)
class Trained:
    """Summary of a training run. losses: restoration loss, mean of the first and of the last ten steps. psnr: dB over
    RGB, mean over the photographs: as they are observed, and restored. model: the file that can be restored with.
    """

    steps: int
    seconds: float
    losses: tuple[float, float]
    psnr: tuple[float, float]
    model: Path


@dataclass
class _Losses:
    """A report that keeps what the summary needs."""

    losses: list[float] = field(default_factory=list)

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        self.losses.append(losses["restoration"])

    def validated(self, done: int, scores: dict[str, float]) -> None:
        pass


def train_demo(
    folder: Path,
    *,
    seconds: float = 60.0,
    reports: Sequence[Report] = (),
    names: Sequence[str] = ("coffee", "chelsea", "astronaut"),
    seed: int = 0,
) -> Trained:
    """Guided training (Gao et al. 2022, Algorithm 1) of a small network on rain drawn on the photographs `names`.

    seconds: about as long as it takes; the number of steps is chosen by a short measurement. Leaves
    trained.safetensors in `folder`.
    """
    clean = [photograph(name) for name in names]
    tests = [RainStreaks()(p, torch.Generator().manual_seed(seed + i)) for i, p in enumerate(clean)]
    source = SyntheticCrops(CropCache([(p[0] * 255).round().byte() for p in clean]), RainStreaks(), 64)
    causes, pairs = Batches(source, 4, seed=seed + 1), Batches(source, 4, seed=seed)

    def batches(n: int) -> tuple[Sequence[Sample], ...]:
        return [causes(n)], [pairs(n)]

    def scheme(steps: int) -> GuidedTraining:
        torch.manual_seed(seed)
        restorer = MODEL.build()

        def learner(module: nn.Module) -> Learner:
            schedule = lambda n: 0.5 + 0.5 * math.cos(math.pi * min(n / steps, 1.0))  # noqa: E731
            return Learner(module.parameters(), lambda p: torch.optim.Adam(p, 2e-3), schedule=schedule, clip=0.5)

        return GuidedTraining(restorer, losses.l1, learner(restorer.guide), learner(restorer.net))

    steps = max(int(seconds / _seconds_a_step(scheme(100), batches)), 1)
    learned, kept = scheme(steps), _Losses()
    with tempfile.TemporaryDirectory() as place:  # every demonstration starts from scratch
        spent = fit(learned, batches, until=steps, run=Run(Path(place)), reports=[*reports, kept])
    restorer = learned.restorer.eval()
    with torch.inference_mode():
        before = mean(metrics.psnr(test.observed, test.clean).item() for test in tests)
        after = mean(metrics.psnr(restorer(test.observed).image.clamp(0, 1), test.clean).item() for test in tests)
    model = folder / "trained.safetensors"
    zoo.save_restorer(model, restorer, MODEL)
    return Trained(steps, spent.seconds, (mean(kept.losses[:10]), mean(kept.losses[-10:])), (before, after), model)


def _seconds_a_step(scheme: GuidedTraining, batches: Callable[[int], tuple[Sequence[Sample], ...]]) -> float:
    """Of the fastest half of eight steps, after two that warm up."""
    took = []
    for n in range(10):
        started = time.perf_counter()
        scheme.step(*batches(n))
        took.append(time.perf_counter() - started)
    return mean(sorted(took[2:])[:4])
