"""What a search found, inside recipes: they name its files, and reading a recipe puts the contents in."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import Field

from twofold.contracts import ConfigError
from twofold.search.genotype import Genotype
from twofold.search.loss_space import LossFile
from twofold.train.damage import Amount
from twofold.zoo import Settings


class FoundLoss(Settings):
    """A searched loss, as its file has it. A recipe names the file, `loss: {file: loss.yaml}`, and reading it puts the
    contents in its place.
    """

    weights: dict[str, Amount]
    layers: dict[str, list[int]] = Field(default_factory=dict)
    ssim_exponents: list[float] = Field(default_factory=lambda: [1.0] * 3, min_length=3, max_length=3)

    def file(self) -> LossFile:
        """Raises: ConfigError for an unknown loss."""
        layers = {name: tuple(numbers) for name, numbers in self.layers.items()}
        a, b, c = self.ssim_exponents
        return LossFile(self.weights, layers, (a, b, c))


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
            found = LossFile.from_yaml(text(str(loss["file"])))
            layers = {name: list(numbers) for name, numbers in found.layers.items()}
            exponents = list(found.ssim_exponents)
            group["loss"] = {"weights": dict(found.weights), "layers": layers, "ssim_exponents": exponents}
    net = tree.get("model", {}).get("net") if isinstance(tree.get("model"), dict) else None
    if isinstance(net, dict) and isinstance(net.get("genotype"), str):
        found_net = Genotype.from_json(text(net["genotype"]))
        groups = {group: list(names) for group, names in found_net.groups.items()}
        net["genotype"] = {"groups": groups, "ops_per_branch": found_net.ops_per_branch}
