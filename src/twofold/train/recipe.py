"""A recipe: everything a training run needs to know, read from one YAML file and checked before anything starts.

Strings live here and become objects in `build.py`. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from twofold.contracts import ConfigError
from twofold.zoo import ModelSpec, Settings, nearest

Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class Folder(Settings):
    """Pictures below the data root. `every: 5, keep: rest` leaves out each fifth file by name; `keep: picked` takes
    only those.
    """

    path: str
    every: int = 0
    keep: Literal["rest", "picked"] = "rest"


class Pairs(Settings):
    """Pairs below the data root; None lets the layout be recognised."""

    root: str = "."
    observed: str | None = None
    clean: str | None = None
    every: int = 0
    keep: Literal["rest", "picked"] = "rest"


class Noise(Settings):
    """level: range of standard deviations on the [0, 1] scale."""

    kind: Literal["noise"] = "noise"
    level: Range = [0.01, 0.05]
    layout: Literal["uniform", "halves", "quadrants", "smooth"] = "uniform"


class Streaks(Settings):
    """Procedural rain."""

    kind: Literal["streaks"] = "streaks"


class Harvested(Settings):
    """Real streak layers, `observed − clean` of pairs, laid on other photographs."""

    kind: Literal["harvested"] = "harvested"
    pairs: list[Pairs]


DegradationSpec = Annotated[Noise | Streaks | Harvested, Field(discriminator="kind")]


class Synthetic(Settings):
    """Clean photographs, spoilt anew at every draw. weight: how often this source is drawn, relative to the others."""

    kind: Literal["synthetic"] = "synthetic"
    clean: list[Folder]
    degradation: DegradationSpec
    weight: float = 1.0


class Paired(Settings):
    """Real pairs. guidance: how the map is derived from a pair; none for D_tr of a guided run is fine."""

    kind: Literal["pairs"] = "pairs"
    pairs: list[Pairs]
    guidance: Literal["rain_region"] | None = None
    weight: float = 1.0


Source = Annotated[Synthetic | Paired, Field(discriminator="kind")]


class Data(Settings):
    """crop: side in pixels. batch: samples of all ranks together. guidance: D_h where it is not the training data
    itself.
    """

    crop: int = 112
    batch: int = 8
    train: list[Source]
    guidance: list[Source] | None = None
    validation: dict[str, Pairs] = {}
    limit: int = Field(default=0, description="validate on at most so many pictures a set; 0 takes all")


class Optimizer(Settings):
    kind: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    betas: Range = [0.9, 0.999]
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 0.0


class Schedule(Settings):
    """warmup: turns of linear rise. milestones: shares of the run after which the rate is multiplied by `factor`."""

    kind: Literal["constant", "cosine", "steps"] = "cosine"
    warmup: int = 0
    milestones: list[float] = []
    factor: float = 0.2
    floor: float = 0.0


class SupervisedSpec(Settings):
    kind: Literal["supervised"] = "supervised"


class GuidedTrainingSpec(Settings):
    """guide_steps, steps: of each half in one turn. steering: share of samples that teach what a strength means."""

    kind: Literal["guided"] = "guided"
    guide_steps: int = 1
    steps: int = 1
    steering: float = 0.0


class NaiveSpec(Settings):
    kind: Literal["naive"] = "naive"


class FrozenSpec(Settings):
    """pretraining: share of the turns in which the guide alone is trained."""

    kind: Literal["frozen"] = "frozen"
    pretraining: float = 0.5


SchemeSpec = Annotated[SupervisedSpec | GuidedTrainingSpec | NaiveSpec | FrozenSpec, Field(discriminator="kind")]
LossName = Literal[
    "l1",
    "l2",
    "smooth_l1",
    "charbonnier",
    "negative_ssim",
    "colour_angle",
    "ssim_distance",
    "total_variation",
    "laplacian",
]


class Recipe(Settings):
    """turns: how often `Scheme.step` is called in all. epoch: turns between validations."""

    name: str
    about: str = ""
    task: str
    terms: str = ""
    seed: int = 0
    model: ModelSpec
    scheme: SchemeSpec
    loss: dict[LossName, float] = {"l1": 1.0}
    data: Data
    optimizer: Optimizer = Optimizer()
    guide_optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    turns: int
    epoch: int = 1000
    average: float = Field(default=0.999, description="decay of the moving average of the weights; 0 for none")
    precision: Literal["float32", "bf16"] = "bf16"
    protocol: str = "rgb"


def names() -> list[str]:
    """The recipes inside the package."""
    folder = resources.files("twofold") / "configs"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def read(name_or_path: str | Path, changes: list[str] | None = None) -> Recipe:
    """A recipe of the package by name, or a YAML file, with changes such as `data.batch=4` applied.

    Raises: ConfigError with the dotted path of the first mistake and the nearest known key.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    elif str(name_or_path) in names():
        text = (resources.files("twofold") / "configs" / f"{name_or_path}.yaml").read_text()
    else:
        raise ConfigError(f"unknown recipe {str(name_or_path)!r}; {nearest(str(name_or_path), names())}")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{name_or_path}: expected keys and values, got {type(tree).__name__}")
    for change in changes or []:
        _apply(tree, change)
    return parse(tree, str(name_or_path))


def parse(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Raises: ConfigError."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from error


def _apply(tree: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"a change is written key.path=value, got {change!r}")
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        node = node.setdefault(name, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {name!r} is not a group of settings")
    node[last] = yaml.safe_load(value)


def _explain(error: ValidationError) -> str:
    """The first mistake in one line: where, what, and the nearest known key."""
    first = error.errors()[0]
    tags = {"synthetic", "pairs", "guided", "plain", "unet", "prenet", "supervised", "naive", "frozen"}
    where = [str(part) for part in first["loc"]]
    path = ".".join(part for i, part in enumerate(where) if part not in tags or i in (0, len(where) - 1))
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where[-1], sorted(_known_keys()), n=1)
        return f"unknown key {path!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    seen = first["input"]
    shown = "" if isinstance(seen, dict | list) else f", got {seen!r}"
    return f"{path}: {first['msg'][0].lower()}{first['msg'][1:]}{shown}"


def _known_keys() -> set[str]:
    keys: set[str] = set()
    todo: list[type[BaseModel]] = [Settings]
    while todo:
        model = todo.pop()
        keys.update(model.model_fields)
        todo.extend(model.__subclasses__())
    return keys


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included: `parse(yaml.safe_load(dump(r))) == r`."""
    return str(yaml.safe_dump(recipe.model_dump(), sort_keys=False, width=120))
