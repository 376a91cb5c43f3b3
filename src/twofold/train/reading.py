"""Recipes by name or from files: YAML, changes to single values, and the files a search wrote put in their places."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from twofold.contracts import ConfigError
from twofold.losses import LossSpec
from twofold.settings import change, checked, from_yaml, nearest
from twofold.space.genotype import Genotype
from twofold.train.recipe import Recipe


def names(*kinds: str) -> list[str]:
    """The recipes inside the package, or those of some kinds: "train", "judge", "search"."""
    folder = resources.files("twofold") / "configs"
    files = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return sorted(name for name, file in files.items() if not kinds or kind_of(from_yaml(file.read_text())) in kinds)


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
        tree = from_yaml(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter: of a date or number beyond any
        raise ConfigError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{name_or_path}: settings lie too deep inside one another") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name_or_path}: expected keys and values, got {type(tree).__name__}")
    for text in changes or []:
        change(tree, text)
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
    return checked(Recipe, tree, origin)


def embed(tree: dict[str, Any], folder: Traversable) -> None:
    """Puts the contents of the files that a search wrote in the places that name them.

    A path starts from `folder`, where the recipe lies, or where nothing is there, from the folder of work. So do those
    of the recipes that a search names; they are made whole.

    Raises: ConfigError where a file cannot be read or is not what its place is for.
    """
    for key in ("judge", "final"):
        named = tree.get(key)
        if isinstance(named, str) and isinstance(folder, Path) and (folder / named).is_file():
            tree[key] = str((folder / named).absolute())

    def text(path: str) -> str:
        beside = folder.joinpath(path)
        try:
            return beside.read_text() if beside.is_file() else Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}, which a search writes: {error}") from error

    for group in (tree, tree.get("search")):
        loss = group.get("loss") if isinstance(group, dict) else None
        if isinstance(loss, dict) and set(loss) == {"file"} and isinstance(group, dict):
            found = LossSpec.from_yaml(text(str(loss["file"])))
            layers = {name: list(numbers) for name, numbers in found.layers.items()}
            group["loss"] = {"weights": dict(found.weights), "layers": layers}
    net = tree.get("model", {}).get("net") if isinstance(tree.get("model"), dict) else None
    if isinstance(net, dict) and isinstance(net.get("genotype"), str):
        found_net = Genotype.from_json(text(net["genotype"]))
        groups = {group: list(names) for group, names in found_net.groups.items()}
        net["genotype"] = {"groups": groups, "ops_per_branch": found_net.ops_per_branch}
