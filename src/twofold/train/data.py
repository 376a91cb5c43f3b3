"""The material of a run: sources and pairs from the folders a recipe names, scores and sample pictures on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from twofold import evaluate, images, tiling
from twofold.contracts import ConfigError, DataError, Degradation, Restored, Restorer, Sample
from twofold.data import pairs as layouts
from twofold.data.batches import SECOND_STREAM, Batches, Shard
from twofold.data.crops import CropCache, as_floats, read_all, read_bytes, read_pairs
from twofold.data.depth import HazyCrops, made_up_depth, read_depth
from twofold.data.digests import copies
from twofold.data.pairs import Pair
from twofold.data.sources import PairCrops, Source, SourceMixture, SyntheticCrops
from twofold.degrade import additive
from twofold.degrade.blur import Blur
from twofold.degrade.hadamard import exposure
from twofold.evaluate import Case
from twofold.metrics import PROTOCOLS
from twofold.restorers.classical import UnderwaterStretch
from twofold.sheets import contact_sheet
from twofold.train import recipe as recipes
from twofold.train.damage import pair
from twofold.zoo import nearest

PAIR_GUIDANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rain_region": additive.rain_region,
    "exposure": exposure,
}
"""How the guidance map of a real pair is derived from it."""


def files_of(folders: Sequence[recipes.Folder], root: Path) -> list[Path]:
    """Raises: DataError for a folder that is not there or holds no picture."""
    found: list[Path] = []
    for folder in folders:
        place = root / folder.path
        if not place.is_dir():
            raise DataError(f"{place}: no such folder; --data names the folder that the recipe's paths start from")
        files = images.find([place])
        kept = files
        if folder.every:
            picked = files[:: folder.every]
            held = {*picked, *copies(files, picked)}  # the same scene under another name stays on its side of the split
            kept = picked if folder.keep == "picked" else [file for file in files if file not in held]
        if not kept:
            raise DataError(f"{place}: no pictures to train on; known suffixes: {' '.join(images.SUFFIXES)}")
        found += kept
    return found


def pairs_of(groups: Sequence[recipes.Pairs], root: Path) -> list[Pair]:
    """Raises: DataError for a folder without pairs, or one of which none is left."""
    found: list[Pair] = []
    for group in groups:
        pairs = layouts.find_pairs(root / group.root, observed=group.observed, clean=group.clean)
        kept = layouts.every(pairs, group.every, picked=group.keep == "picked")
        if not kept:
            raise DataError(f"{root / group.root}: every pair was left out; change every or keep")
        found += kept
    return found


def build_degradation(settings: recipes.DegradationSpec, root: Path) -> Degradation:
    if not isinstance(settings, recipes.Harvested):
        return settings.build(root)
    rainy, clean = read_pairs(pairs_of(settings.pairs, root))
    return additive.HarvestedRain(additive.streak_layers(zip(map(_floats, rainy), map(_floats, clean), strict=True)))


def _floats(picture: Tensor) -> Tensor:
    return as_floats([picture])


def build_source(settings: recipes.SourceSpec, data: recipes.Data, root: Path, *, channels: int) -> Source:
    """channels: 1 takes the luma of every picture."""
    if isinstance(settings, recipes.Synthetic):
        cache = CropCache.of(files_of(settings.clean, root), rotate=settings.rotate, channels=channels)
        degradation = build_degradation(settings.degradation, root)
        return SyntheticCrops(cache, degradation, data.crop, _lost(degradation), pair(data.zoom))
    if isinstance(settings, recipes.WithDepth):
        return hazy_crops(settings, data, root)
    if isinstance(settings, recipes.Taught):
        pictures = read_all(files_of(settings.observed, root))
        targets = [taught(picture, TEACHERS[settings.teacher]) for picture in pictures]
        return PairCrops(CropCache(pictures), CropCache(targets), data.crop, None, pair(data.zoom))
    observed, clean = map(CropCache, read_pairs(pairs_of(settings.pairs, root), channels=channels))
    guidance = None if settings.guidance is None else PAIR_GUIDANCE[settings.guidance]
    return PairCrops(observed, clean, data.crop, guidance, pair(data.zoom))


TEACHERS: dict[str, Restorer] = {"underwater-stretch": UnderwaterStretch()}


def taught(picture: Tensor, teacher: Restorer) -> Tensor:
    """What the teacher makes of an image, both as bytes `(3, H, W)`."""
    image = teacher(as_floats([picture])).image[0]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def hazy_crops(settings: recipes.WithDepth, data: recipes.Data, root: Path) -> HazyCrops:
    photographs, depths = photographs_with_depth(settings, root)
    haze, bend, veil = settings.haze.build(root), pair(settings.bend), pair(settings.veil)
    return HazyCrops(CropCache(photographs), depths, haze, data.crop, bend, veil, pair(data.zoom))


def photographs_with_depth(settings: recipes.WithDepth, root: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Bytes `(3, H, W)` and depths `(1, H, W)`."""
    files = files_of([recipes.Folder(path=settings.clean, every=settings.every, keep=settings.keep)], root)
    pictures = read_all(files)
    if settings.depth is None:
        return pictures, [_made_up(file, picture) for file, picture in zip(files, pictures, strict=True)]
    twins = [_twin(file, root / settings.depth) for file in files]
    read = partial(read_depth, disparity=settings.disparity, unit=settings.unit, limit=settings.limit)
    return pictures, [read(twin) for twin in twins]


_MADE_UP: dict[Path, Tensor] = {}


def _made_up(file: Path, picture: Tensor) -> Tensor:
    """`made_up_depth`, once for each file: a second apiece, and training draws from a folder for both levels."""
    if file not in _MADE_UP:
        _MADE_UP[file] = made_up_depth(picture)
    return _MADE_UP[file]


def _lost(degradation: Degradation) -> int:
    """Rows and columns that the degradation takes away: a blur is only known where its kernel sees the picture."""
    return degradation.kernels.size - 1 if isinstance(degradation, Blur) else 0


def _twin(photograph: Path, folder: Path) -> Path:
    """Raises: DataError where the folder has no file of the photograph's name."""
    twins = sorted(folder.glob(f"{photograph.stem}.*")) if folder.is_dir() else []
    if not twins:
        raise DataError(
            f"{folder}: no depth called {photograph.stem}; it needs a picture for each of {photograph.parent}"
        )
    return twins[0]


def build_mixture(sources: Sequence[recipes.SourceSpec], data: recipes.Data, root: Path, *, channels: int) -> Source:
    built = [build_source(source, data, root, channels=channels) for source in sources]
    return SourceMixture(built, [source.weight for source in sources])


def batches(
    recipe: recipes.Recipe, root: Path, device: torch.device, share: Shard
) -> Callable[[int], tuple[Sequence[Sample], ...]]:
    """The draws of a step as the recipe's scheme takes them: (D_tr), (D_h), or (D_h, D_tr). D_h has a seed of its
    own.
    """
    data, scheme = recipe.data, recipe.scheme
    channels = recipe.model.channels
    train = build_mixture(data.train, data, root, channels=channels)
    causes = train if data.guidance is None else build_mixture(data.guidance, data, root, channels=channels)

    def stream(source: Source, seed: int) -> Batches:
        return Batches(source, data.batch, seed=seed, share=share, device=device)

    if isinstance(scheme, recipes.SupervisedSpec | recipes.NaiveSpec | recipes.MetaSpec):
        only = stream(causes if isinstance(scheme, recipes.NaiveSpec) else train, recipe.seed)
        return lambda n: ([only(n)],)
    theta, omega = stream(causes, recipe.seed + SECOND_STREAM), stream(train, recipe.seed)
    if isinstance(scheme, recipes.FrozenSpec):
        # each half counts its own steps, and so sees what the guided scheme shows it
        first = scheme.first(recipe.steps)
        return lambda n: ([theta(n)], []) if n < first else ([], [omega(n - first)])
    halves = (theta, scheme.guide_updates), (omega, scheme.net_updates)
    return lambda n: tuple([half(n * k + i) for i in range(k)] for half, k in halves)


def validation(recipe: recipes.Recipe, root: Path) -> dict[str, Sequence[Case]]:
    """Pairs by the name of their set. Raises: ConfigError for an unknown protocol."""
    if recipe.protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: {nearest(recipe.protocol, list(PROTOCOLS))}")
    sets: dict[str, Sequence[Case]] = {name: pairs_of([g], root) for name, g in recipe.data.validation.items()}
    sets |= {name: degraded_cases(settings, recipe, root) for name, settings in recipe.data.degraded.items()}
    return {name: cases[: recipe.data.limit or None] for name, cases in sets.items()}


def degraded_cases(settings: recipes.Synthetic | recipes.WithDepth, recipe: recipes.Recipe, root: Path) -> list[Case]:
    """Whole photographs, each degraded once: picture n by what the seed n draws."""
    generators = (torch.Generator().manual_seed(number) for number in count())
    if isinstance(settings, recipes.WithDepth):
        haze = settings.haze.build(root)
        return [
            (f"{number:04d}", haze(as_floats([clean]), generator, depth=depth[None]))
            for number, (clean, depth, generator) in enumerate(
                zip(*photographs_with_depth(settings, root), generators, strict=False)
            )
        ]
    degradation = build_degradation(settings.degradation, root)
    cases: list[Case] = []
    for path, generator in zip(files_of(settings.clean, root), generators, strict=False):
        clean = as_floats([read_bytes(path, channels=recipe.model.channels)])
        cases.append((path.stem, degradation(clean, generator)))
    return cases


def scores(restorer: nn.Module, sets: dict[str, Sequence[Case]], recipe: recipes.Recipe) -> dict[str, float]:
    """`{set/psnr, set/ssim, set/input_psnr, set/input_ssim}`: means under the recipe's protocol."""
    device = next(restorer.parameters()).device
    multiple: int = restorer.multiple  # type: ignore[assignment]

    def whole(observed: Tensor, *, kernel: Tensor | None = None) -> Restored:
        height, width = observed.shape[-2:]
        seen = tiling.padded(observed, multiple).to(device)
        image = restorer(seen, kernel=None if kernel is None else kernel.to(device)).image
        return Restored(image[..., :height, :width].float().cpu())

    found: dict[str, float] = {}
    for name, cases in sets.items():
        summary = evaluate.evaluate(whole, cases, PROTOCOLS[recipe.protocol]).summary()
        for fact in ("psnr", "ssim", "input_psnr", "input_ssim"):
            found[f"{name}/{fact}"] = getattr(summary, fact)
    return found


def write_samples(path: Path, restorer: nn.Module, sample: Sample) -> None:
    """Sample pictures: observed, guidance, restored, clean, of the first four of a batch."""
    observed = sample.observed[:4]
    restored = restorer(observed, kernel=None if sample.kernel is None else sample.kernel[:4])
    rows = []
    for i in range(observed.shape[0]):
        row = [observed[i : i + 1], restored.image[i : i + 1], sample.clean[i : i + 1]]
        if restored.guidance is not None:
            drawn = restored.guidance[i : i + 1]
            row.insert(1, drawn / drawn.max().clamp(min=1e-6))
        rows.append(row)
    titles = ["observed", "restored", "clean"]
    if restored.guidance is not None:
        titles.insert(1, "guidance")
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, images.Picture(contact_sheet(titles, rows, height=observed.shape[-2])))
