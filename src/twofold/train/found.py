"""What a search found, inside recipes: they name its files, and reading a recipe puts the contents in."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from twofold.contracts import ConfigError
from twofold.losses import LossSpec
from twofold.space.genotype import Genotype


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
