"""The demonstration: bundled photographs are spoilt, restored with the shipped weights, and trained on for a minute."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs
from torch import Tensor

from twofold import api, images, metrics
from twofold.contracts import Degradation, Sample
from twofold.degrade.additive import RainStreaks
from twofold.sheets import contact_sheet


@dataclass(frozen=True)
class Scene:
    """One photograph of the demonstration: the model that restores it, and how it is spoilt."""

    name: str
    model: str
    degradation: Degradation


SCENES = (
    Scene("coffee", "derain", RainStreaks()),
    Scene("chelsea", "derain", RainStreaks()),
    Scene("astronaut", "derain", RainStreaks()),
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
    sample = scene.degradation(photograph(scene.name), torch.Generator().manual_seed(seed))
    model = api.load(scene.model)
    started = time.perf_counter()
    restored, guidance, _ = model(sample.observed)
    seconds = time.perf_counter() - started
    restored = restored.clamp(0, 1)
    before, after = (metrics.psnr(picture, sample.clean).item() for picture in (sample.observed, restored))
    return Shown(scene, sample, restored, guidance, before, after, seconds)


TITLES = ("observed", "guidance", "restored", "clean")


def sheet(results: Sequence[Shown]) -> Tensor:
    """Observed, guidance, restored, clean: a row a scene."""
    rows = [[r.sample.observed, _visible(r), r.restored, r.sample.clean] for r in results]
    return contact_sheet(TITLES, rows)


def _visible(result: Shown) -> Tensor:
    if result.guidance is None:
        return torch.zeros_like(result.sample.observed[:, :1])
    return result.guidance / result.guidance.max().clamp(min=1e-6)


def page(results: Sequence[Shown], table: str) -> str:
    """One HTML page that needs nothing beside it."""
    figures = []
    for r in results:
        pictures = zip(TITLES, [r.sample.observed, _visible(r), r.restored, r.sample.clean], strict=True)
        cells = "".join(
            f'<figure><img src="data:image/jpeg;base64,{_jpeg(p)}" alt="{t}"><figcaption>{t}</figcaption></figure>'
            for t, p in pictures
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
<p>Photographs that come with scikit-image, spoilt by the library's own degradations and restored with the
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
    lines = [f"{'photograph':<12} {'model':<10} {'before':>8} {'after':>8} {'seconds':>8}"]
    lines += [
        f"{r.scene.name:<12} {r.scene.model:<10} {r.before:8.2f} {r.after:8.2f} {r.seconds:8.2f}" for r in results
    ]
    return "\n".join(lines)


def run(folder: Path, say: Callable[[str], None]) -> list[Shown]:
    """Restores every scene; writes sheet.png, index.html and the pictures into `folder`."""
    results = [show(scene) for scene in SCENES]
    folder.mkdir(parents=True, exist_ok=True)
    images.write(folder / "sheet.png", images.Picture(sheet(results)))
    (folder / "index.html").write_text(page(results, table(results)))
    for r in results:
        images.write(folder / f"{r.scene.name}.png", images.Picture(r.sample.observed))
        images.write(folder / f"{r.scene.name}-restored.png", images.Picture(r.restored))
    say(table(results))
    return results
