"""A recipe: everything a training run needs to know, read from one YAML file and checked before anything starts.

Strings live here and become objects in `run.py` and `data.py`. An unknown key is an error that names the nearest.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from twofold.contracts import ConfigError
from twofold.zoo import ModelSpec, Settings, nearest

Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Every = Annotated[int, Field(ge=0)]


class Folder(Settings):
    """Pictures below the data root. `every: 5, keep: rest` leaves out each fifth file by name; `keep: picked` takes
    only those.
    """

    path: str
    every: Every = 0
    keep: Literal["rest", "picked"] = "rest"


class Pairs(Settings):
    """Pairs below the data root; None lets the layout be recognised."""

    root: str = "."
    observed: str | None = None
    clean: str | None = None
    every: Every = 0
    keep: Literal["rest", "picked"] = "rest"


class Noise(Settings):
    """level: range of standard deviations on the [0, 1] scale."""

    kind: Literal["noise"] = "noise"
    level: Range = [0.01, 0.05]
    layout: Literal["uniform", "halves", "quadrants", "smooth"] = "uniform"

    @field_validator("level")
    @classmethod
    def _ordered(cls, level: list[float]) -> list[float]:
        if not 0 <= level[0] <= level[1] <= 1:
            raise ValueError("expected 0 <= low <= high <= 1; 25 grey levels are 0.098")
        return level


class Streaks(Settings):
    """Procedural rain."""

    kind: Literal["streaks"] = "streaks"


class Harvested(Settings):
    """Real streak layers, `observed − clean` of pairs, laid on other photographs."""

    kind: Literal["harvested"] = "harvested"
    pairs: Annotated[list[Pairs], Field(min_length=1)]


DegradationSpec = Annotated[Noise | Streaks | Harvested, Field(discriminator="kind")]


class Synthetic(Settings):
    """Clean photographs, spoilt anew at every draw. weight: how often this source is drawn, relative to the others."""

    kind: Literal["synthetic"] = "synthetic"
    clean: Annotated[list[Folder], Field(min_length=1)]
    degradation: DegradationSpec
    weight: Rate = 1.0


class Paired(Settings):
    """Real pairs. guidance: how the map is derived from a pair; none for D_tr of a guided run is fine."""

    kind: Literal["pairs"] = "pairs"
    pairs: Annotated[list[Pairs], Field(min_length=1)]
    guidance: Literal["rain_region"] | None = None
    weight: Rate = 1.0


Source = Annotated[Synthetic | Paired, Field(discriminator="kind")]


class Data(Settings):
    """crop: side in pixels. batch: samples of all ranks together. guidance: D_h where it is not the training data
    itself.
    """

    crop: Count = 112
    batch: Count = 8
    train: Annotated[list[Source], Field(min_length=1)]
    guidance: Annotated[list[Source], Field(min_length=1)] | None = None
    validation: dict[str, Pairs] = {}
    limit: int = Field(default=0, ge=0, description="validate on at most so many pictures a set; 0 takes all")


class Optimizer(Settings):
    """clip: largest norm of the gradient; 0 for none. momentum: of sgd."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Rate = 1e-3
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    momentum: Share = 0.9
    weight_decay: Amount = 0.0
    clip: Amount = 0.0


class Schedule(Settings):
    """warmup: turns of linear rise. milestones: shares of the run after which the rate is multiplied by `factor`.
    floor: share of the rate that a cosine ends at.
    """

    kind: Literal["constant", "cosine", "steps"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    milestones: list[Share] = []
    factor: Share = 0.2
    floor: Share = 0.0


class SupervisedSpec(Settings):
    kind: Literal["supervised"] = "supervised"


class GuidedTrainingSpec(Settings):
    """guide_steps, steps: of each half in one turn. steering: share of samples that teach what a strength means."""

    kind: Literal["guided"] = "guided"
    guide_steps: Count = 1
    steps: Count = 1
    steering: Share = 0.0


class NaiveSpec(Settings):
    kind: Literal["naive"] = "naive"


class FrozenSpec(Settings):
    """pretraining: share of the turns in which the guide alone is trained."""

    kind: Literal["frozen"] = "frozen"
    pretraining: Share = 0.5

    def first(self, turns: int) -> int:
        """How many of the turns train the guide."""
        return round(self.pretraining * turns)


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


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, which YAML 1.1 takes for text because it has no point."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


class Recipe(Settings):
    """turns: how often `Scheme.step` is called in all. epoch: turns between validations."""

    name: str
    about: str = ""
    task: str
    terms: str = ""
    seed: int = 0
    model: ModelSpec
    scheme: SchemeSpec
    loss: Annotated[dict[LossName, Amount], Field(min_length=1)] = {"l1": 1.0}
    data: Data
    optimizer: Optimizer = Optimizer()
    guide_optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    turns: Count
    epoch: Count = 1000
    average: float = Field(default=0.999, ge=0, lt=1, description="decay of the moving average; 0 for none")
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
        tree = _yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{name_or_path}: expected keys and values, got {type(tree).__name__}")
    for change in changes or []:
        _apply(tree, change)
    return parse(tree, str(name_or_path))


def parse(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Raises: ConfigError with the dotted path of the first mistake and the nearest known key.

    >>> parse({"name": "x", "optimizer": {"learningrate": 0.1}})
    Traceback (most recent call last):
    twofold.contracts.ConfigError: recipe: unknown key optimizer.learningrate; did you mean 'learning_rate'? known: ...
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error, tree)}") from error


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # a SafeLoader


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
    try:
        node[last] = _yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {value!r} is not YAML; quote it for the shell and for YAML") from error


def _explain(error: ValidationError, tree: dict[str, Any]) -> str:
    """One mistake in one line: where, what, and the nearest known word. A misspelt key explains a missing one."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path, groups = _place(first["loc"], tree)
    kind, facts, seen = first["type"], first.get("ctx", {}), first["input"]
    if kind == "extra_forbidden":
        known = sorted({name for group in groups for name in group.model_fields})
        return f"unknown key {path}; {nearest(str(first['loc'][-1]), known)}"
    if kind == "missing":
        return f"{path} is missing"
    if kind == "union_tag_not_found":
        return f"{path}.kind is missing; known: {', '.join(_tags(groups))}"
    if kind == "union_tag_invalid":
        return f"{path}.kind: unknown {facts['tag']!r}; {nearest(facts['tag'], _tags(groups))}"
    if kind == "literal_error" and isinstance(seen, str):
        known = re.findall(r"'([^']+)'", facts["expected"])
        return f"{path}: unknown {seen!r}; {nearest(seen, known)}"
    if kind == "model_attributes_type":
        return f"{path}: expected a group of settings, got {seen!r}"
    shown = "" if isinstance(seen, dict | list) else f", got {seen!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _place(loc: tuple[int | str, ...], tree: Any) -> tuple[str, list[type[Settings]]]:
    """The dotted path of a mistake as the file has it, and the groups of settings that may stand there.

    pydantic puts the chosen member of a union into its path, right after the union: that part is no key of the file.
    """
    path: list[str] = []
    groups: list[type[Settings]] = [Recipe]
    node, arrived = tree, False
    for part in loc:
        if arrived and isinstance(node, dict) and part == node.get("kind"):
            groups = [group for group in groups if part in _tags([group])]
            arrived = False
        elif part != "[key]":
            path.append(str(part))
            fields = [group.model_fields[part] for group in groups if part in group.model_fields]
            groups = _groups(fields[0]) if fields else groups
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                node = None
            arrived = True
    return ".".join(path), groups


def _groups(annotation: Any) -> list[type[Settings]]:
    """The groups of settings inside a field's type."""
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [group for part in get_args(annotation) for group in _groups(part)]


def _tags(groups: list[type[Settings]]) -> list[str]:
    return [str(g.model_fields["kind"].default) for g in groups if "kind" in g.model_fields]


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included: `parse(yaml.safe_load(dump(r))) == r`."""
    return str(yaml.safe_dump(recipe.model_dump(), sort_keys=False, width=120))
