"""A recipe: everything a training run needs to know, read from one YAML file and checked before anything starts.

Strings live here and become objects in `run.py` and `data.py`. An unknown key is an error that names the nearest.
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError
from pydantic.fields import FieldInfo

from twofold.contracts import ConfigError
from twofold.train.damage import Amount, Blurred, Dark, Hazy, Noise, Range, SaltAndPepperSettings, Streaks, Water
from twofold.train.found import FoundLoss, embed
from twofold.zoo import ModelSpec, Settings, nearest

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
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


class Harvested(Settings):
    """Real streak layers, `observed − clean` of pairs, laid on other photographs."""

    kind: Literal["harvested"] = "harvested"
    pairs: Annotated[list[Pairs], Field(min_length=1)]


DegradationSpec = Annotated[
    Noise | SaltAndPepperSettings | Streaks | Harvested | Blurred | Hazy | Dark | Water, Field(discriminator="kind")
]


class Synthetic(Settings):
    """Clean photographs, degraded anew at every draw. rotate: crops are also rotated by 90° and flipped; not for
    weather. weight: how often this source is drawn, relative to the others.
    """

    kind: Literal["synthetic"] = "synthetic"
    clean: Annotated[list[Folder], Field(min_length=1)]
    degradation: DegradationSpec
    rotate: bool = False
    weight: Rate = 1.0


class WithDepth(Settings):
    """Photographs with measured depth, pictures of the same name in two folders; haze is drawn anew over them.

    depth: None makes one up that keeps to the picture's outlines. disparity: the depth folder holds shifts between two
    cameras instead. bend: range of an exponent on the depth. veil: range of the depth of the nearest things.
    """

    kind: Literal["depth"] = "depth"
    clean: str
    depth: str | None = None
    disparity: bool = False
    unit: Literal["percentile", "maximum"] = "percentile"
    limit: Share = 1.0
    every: Every = 0
    keep: Literal["rest", "picked"] = "rest"
    bend: Range = [1.0, 1.0]
    veil: Range = [0.0, 0.0]
    haze: Hazy = Hazy()
    weight: Rate = 1.0


class Paired(Settings):
    """Real pairs. guidance: how the map is derived from a pair; none for D_tr of a guided run is fine."""

    kind: Literal["pairs"] = "pairs"
    pairs: Annotated[list[Pairs], Field(min_length=1)]
    guidance: Literal["rain_region", "exposure"] | None = None
    weight: Rate = 1.0


class Taught(Settings):
    """Real degraded photographs without truth; a classical restorer makes the target of each, on the whole image."""

    kind: Literal["taught"] = "taught"
    observed: Annotated[list[Folder], Field(min_length=1)]
    teacher: Literal["underwater-stretch"]
    weight: Rate = 1.0


SourceSpec = Annotated[Taught | Synthetic | Paired | WithDepth, Field(discriminator="kind")]


class Data(Settings):
    """crop: side in pixels. zoom: range; the part that is cut out has `zoom` times that side and is reduced to it.
    batch: samples of all ranks together. guidance: D_h where it is not the training data
    itself. validation: pairs; degraded: clean photographs that are degraded once, the same way at every validation.
    """

    crop: Count = 112
    zoom: Range = [1.0, 1.0]
    batch: Count = 8
    train: Annotated[list[SourceSpec], Field(min_length=1)]
    guidance: Annotated[list[SourceSpec], Field(min_length=1)] | None = None
    validation: dict[str, Pairs] = {}
    degraded: dict[str, Annotated[Synthetic | WithDepth, Field(discriminator="kind")]] = {}
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
    """warmup: steps of linear rise. milestones: shares of the run after which the rate is multiplied by `factor`.
    floor: share of the rate that a cosine ends at.
    """

    kind: Literal["constant", "cosine", "multistep"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    milestones: list[Share] = []
    factor: Share = 0.2
    floor: Share = 0.0


class SupervisedSpec(Settings):
    kind: Literal["supervised"] = "supervised"


class GuidedTrainingSpec(Settings):
    """guide_updates, net_updates: of each half in one step. steering: share of samples with a random strength."""

    kind: Literal["guided"] = "guided"
    guide_updates: Count = 1
    net_updates: Count = 1
    steering: Share = 0.0


class NaiveSpec(Settings):
    kind: Literal["naive"] = "naive"


class FrozenSpec(Settings):
    """pretraining: share of the steps in which the guide alone is trained."""

    kind: Literal["frozen"] = "frozen"
    pretraining: Share = 0.5

    def first(self, steps: int) -> int:
        """How many of the steps train the guide."""
        return round(self.pretraining * steps)


class MetaSpec(Settings):
    """Bilevel Meta Optimization of a fixed point. iterations: K. mu: the leader's share, 0 to unroll. first: s_k is
    first / (k + 1), in units of the theory's bound.
    """

    kind: Literal["meta"] = "meta"
    iterations: Count = 8
    mu: Annotated[float, Field(ge=0, lt=1)] = 0.1
    first: Amount = 0.5


SchemeSpec = Annotated[
    SupervisedSpec | GuidedTrainingSpec | NaiveSpec | FrozenSpec | MetaSpec, Field(discriminator="kind")
]
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
    "perceptual_squeeze",
    "perceptual_vgg16",
]


def _kind_of_loss(value: Any) -> str:
    return "found" if isinstance(value, FoundLoss) or (isinstance(value, dict) and "weights" in value) else "named"


NamedLosses = Annotated[dict[LossName, Amount], Field(min_length=1)]
LossSettings = Annotated[
    Annotated[NamedLosses, Tag("named")] | Annotated[FoundLoss, Tag("found")], Discriminator(_kind_of_loss)
]


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, which YAML 1.1 takes for text because it has no point."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


class Recipe(Settings):
    """steps: calls of `Scheme.step` in all. validate_every: steps between validations."""

    name: str
    about: str = ""
    task: str
    terms: str = ""
    seed: int = 0
    model: ModelSpec
    scheme: SchemeSpec
    loss: LossSettings = {"l1": 1.0}
    data: Data
    optimizer: Optimizer = Optimizer()
    guide_optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    steps: Count
    validate_every: Count = 1000
    average: float = Field(default=0.999, ge=0, lt=1, description="decay of the moving average; 0 for none")
    precision: Literal["float32", "bf16"] = "bf16"
    protocol: str = "rgb"


AnyRecipe = TypeVar("AnyRecipe", bound=Settings)


def names(*kinds: str) -> list[str]:
    """The recipes inside the package, or those of some kinds: "train", "judge", "search"."""
    folder = resources.files("twofold") / "configs"
    files = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return sorted(name for name, file in files.items() if not kinds or kind_of(_yaml(file.read_text())) in kinds)


def kind_of(tree: dict[str, Any]) -> str:
    """What a recipe is for: "train" unless it says otherwise."""
    return str(tree.get("kind", "train"))


def read_recipe(name_or_path: str | Path, changes: list[str] | None = None) -> Recipe:
    """A recipe of the package by name, or a YAML file, with changes such as `data.batch=4` applied.

    Raises: ConfigError with the dotted path of the first mistake and the nearest known key.
    """
    return parse(tree_of(name_or_path, changes), str(name_or_path))


def tree_of(name_or_path: str | Path, changes: list[str] | None = None, *, loss: Path | None = None) -> dict[str, Any]:
    """The settings of a recipe of any kind, with changes applied and the files it names put in their places.

    loss: a file of a searched one, in place of the recipe's.

    Raises: ConfigError where it cannot be read.
    """
    path = Path(name_or_path)
    folder: Traversable = resources.files("twofold") / "configs"
    if path.suffix in (".yaml", ".yml"):
        folder = path.parent
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    elif str(name_or_path) in names():
        text = (folder / f"{name_or_path}.yaml").read_text()
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
    if loss is not None:
        tree["loss"] = {"file": str(loss.absolute())}
    embed(tree, folder)
    return tree


def parse(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Raises: ConfigError with the dotted path of the first mistake and the nearest known key.

    >>> parse({"name": "x", "optimizer": {"learningrate": 0.1}})
    Traceback (most recent call last):
    twofold.contracts.ConfigError: recipe: unknown key optimizer.learningrate; did you mean 'learning_rate'? known: ...
    """
    return parse_as(Recipe, tree, origin)


def parse_as(of: type[AnyRecipe], tree: dict[str, Any], origin: str = "recipe") -> AnyRecipe:
    """The same for a recipe of another kind."""
    try:
        return of.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error, tree, of)}") from error


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # a SafeLoader


def _apply(tree: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"a change is written key.path=value, got {change!r}")
    *parents, last = key.split(".")
    try:
        given = _yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {value!r} is not YAML; quote it for the shell and for YAML") from error
    node: Any = tree
    for name in parents:
        node = node.setdefault(name, {}) if isinstance(node, dict) else node[_item(node, name, key)]
        if not isinstance(node, dict | list):
            raise ConfigError(f"{key}: {name!r} is not a group of settings")
    node[last if isinstance(node, dict) else _item(node, last, key)] = given


def _item(items: list[Any], name: str, key: str) -> int:
    """The place in a list that a part of a dotted key names, counted from 0."""
    if not name.isdecimal() or int(name) >= len(items):
        raise ConfigError(f"{key}: a list of {len(items)} has no item {name!r}; items count from 0")
    return int(name)


def _explain(error: ValidationError, tree: dict[str, Any], of: type[Settings]) -> str:
    """One mistake in one line: where, what, and the nearest known word. A misspelt key explains a missing one."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path, groups = _place(first["loc"], tree, of)
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


def _place(loc: tuple[int | str, ...], tree: Any, of: type[Settings]) -> tuple[str, list[type[Settings]]]:
    """The dotted path of a mistake as the file has it, and the groups of settings that may stand there.

    pydantic puts the chosen member of a union into its path, right after the union: that part is no key of the file.
    """
    path: list[str] = []
    groups: list[type[Settings]] = [of]
    node, arrived = tree, False
    for part in loc:
        if arrived and isinstance(node, dict) and part == node.get("kind"):
            groups = [group for group in groups if part in _tags([group])]
            arrived = False
        elif part not in ("[key]", "named", "found"):  # the latter two: which kind of loss
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


def dump(recipe: Settings) -> str:
    """The whole recipe as YAML, defaults included: `parse(yaml.safe_load(dump(r))) == r`."""
    return str(yaml.safe_dump(recipe.model_dump(), sort_keys=False, width=120))
