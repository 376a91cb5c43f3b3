"""The data of a run: batches for its scheme, pairs to validate on, scores and sample pictures on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from twofold import evaluate, images, tiling
from twofold.contracts import ConfigError, Restored, Sample
from twofold.data.batches import SECOND_STREAM, Batches
from twofold.data.sources import Source
from twofold.data.specs import build_mixture
from twofold.evaluate import Case
from twofold.metrics import PROTOCOLS
from twofold.settings import nearest
from twofold.sheets import contact_sheet
from twofold.train import recipe as recipes
from twofold.train.learner import Machine
from twofold.train.schemes import Streams


def batches(recipe: recipes.Recipe, root: Path, machine: Machine) -> Callable[[int], tuple[Sequence[Sample], ...]]:
    """The draws of step n as the recipe's scheme takes them. D_h has a seed of its own."""
    data, crops = recipe.data, recipe.data.crops(recipe.model.channels)
    train = build_mixture(data.train, root, crops)
    causes = train if data.guidance is None else build_mixture(data.guidance, root, crops)

    def stream(source: Source, seed: int) -> Callable[[], Batches]:
        return lambda: Batches(source, data.batch, seed=seed, share=machine.shard, device=machine.device)

    pairs, second = stream(train, recipe.seed), stream(causes, recipe.seed + SECOND_STREAM)
    return recipe.scheme.draws(Streams(pairs, second, stream(causes, recipe.seed)), recipe.steps)


def validation(recipe: recipes.Recipe, root: Path) -> dict[str, Sequence[Case]]:
    """Pairs by the name of their set. Raises: ConfigError for an unknown protocol."""
    if recipe.protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: {nearest(recipe.protocol, list(PROTOCOLS))}")
    sets: dict[str, Sequence[Case]] = {name: folder.pairs(root) for name, folder in recipe.data.validation.items()}
    channels = recipe.model.channels
    sets |= {name: source.cases(root, channels=channels) for name, source in recipe.data.degraded.items()}
    return {name: cases[: recipe.data.limit or None] for name, cases in sets.items()}


def held_out(
    restorer: Callable[..., Restored],
    recipe: recipes.Recipe,
    root: Path,
    *,
    model: str = "",
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Iterator[tuple[str, evaluate.Evaluation]]:
    """(name, evaluation) of each validation set of a recipe, by its protocol.

    restorer: as `evaluate.evaluate` takes it. progress: called after every image with the name of the set, how many are
    done and how many there are.

    Raises: DataError where a set is not below `root`.
    """
    for name, cases in validation(recipe, root).items():
        report = None if progress is None else partial(progress, name)
        yield name, evaluate.evaluate(restorer, cases, PROTOCOLS[recipe.protocol], model=model, progress=report)


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
