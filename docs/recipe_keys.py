"""The reference page of every key of a recipe, from the schema that recipes are validated with.

    python docs/recipe_keys.py        prints the page

Only the JSON schema of the three recipe classes is used, wherever its parts are defined.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from twofold.search.recipe import JudgeRecipe, SearchRecipe
from twofold.train.recipe import Recipe

RECIPES: dict[str, type[BaseModel]] = {
    "Training (`twofold train`)": Recipe,
    "Search (`twofold search`)": SearchRecipe,
    "Judge of a search (`twofold train judge-…`)": JudgeRecipe,
}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "multipleOf": "multiple of"}
Schema = dict[str, Any]

MEANINGS = {
    "extent": "range of the longest side of the kernel's path, in pixels.",
    "far": "the depth that counts as 1.",
    "quantise": "round to 8 bits, as a file would.",
    "share": "of the values that become 0 or 1.",
    "source": "how depth is synthesized where none is measured.",
    "thickness": "standard deviation of the drawn line, in pixels.",
    "threshold": "of the difference above which a pixel counts as rain, on the [0, 1] scale.",
    "about": "one sentence for `twofold train --list`.",
    "angle": "range of the rain's angle from the vertical, in degrees.",
    "architecture": "steps of the second stage, which searches the operations.",
    "architecture_optimizer": "optimizer of the operations' weights α.",
    "betas": "decay rates of Adam's moments.",
    "blocks": "residual blocks at each scale.",
    "cast": "largest deviation of the light's colour from grey.",
    "channels": "of an image: 3 for colour, 1 for grey.",
    "clean": "the clean images: folders, or the name of the clean subfolder of pairs.",
    "columns": "of the grid.",
    "combine": "how a Hadamard unit combines its two branches.",
    "context": "features of a thumbnail that steer the network by the whole image; 0 for none.",
    "data": "crops, batches and sources.",
    "degradation": "applied to the clean images.",
    "denoiser": "the learned part of the fixed-point operator.",
    "density": "range of the share of pixels at which a streak starts, per layer.",
    "dense": "convolutions of a residual dense block.",
    "each_kernel": "validate on every photograph under every kernel of the files.",
    "every": "a multiple-of-n split by scene: every n-th one is picked; 0 for no split.",
    "factor": "what the learning rate is multiplied by at each milestone.",
    "filters": "of the denoiser.",
    "genotype": "the operations that a search found.",
    "groups": "the operations by group of units, as in `genotype.json`.",
    "growth": "channels that each dense convolution adds.",
    "guidance": "which quantity the map estimates; of data, how true maps are obtained.",
    "guide": "the network that estimates the map.",
    "guide_optimizer": "optimizer of the guide, θ.",
    "haze": "what is drawn over the scenes.",
    "iterations": "of the fixed-point operator, at most.",
    "judge": "the network that classifies clean and degraded images, or the recipe that trains it.",
    "keep": "which side of the split by `every` is kept.",
    "maps": "a pattern with one star, for the guidance maps of the pairs, such as maps/*.png.",
    "kernels": "blur kernels.",
    "kind": "chooses this group.",
    "layers": "how many.",
    "layout": "how the noise level varies over an image.",
    "learning_rate": "at the end of the warm-up.",
    "length": "range, in pixels.",
    "limit": "the largest depth that is kept, as a share of the unit.",
    "loss": "losses and their weights; of a search, steps of its first stage or the file of a loss.",
    "loss_optimizer": "optimizer of the loss weights β.",
    "mist": "range of the density of a uniform veil.",
    "model": "what is trained.",
    "name": "of the recipe and of the model.",
    "net": "the reconstruction network.",
    "noise": "added after the blur.",
    "observed": "the subfolder of degraded images; none to recognise the layout.",
    "ops_per_branch": "operations in each branch of a unit.",
    "optimizer": "of the network's weights ω.",
    "output": "what the last layer gives: a residual that is added, a Hadamard quotient, an exposure, or a map.",
    "pairs": "folders of pairs.",
    "path": "below the data root.",
    "picture": "denoiser of the image layer.",
    "precision": "of the arithmetic; bf16 keeps weights in float32.",
    "protocol": "of the validation scores: [protocols](protocols.md).",
    "rain": "denoiser of the rain layer.",
    "recurrences": "how often the recurrent block is applied.",
    "root": "folder below the data root.",
    "rows": "of the grid: scales.",
    "schedule": "of the learning rates.",
    "scheme": "how the parts are trained: [how to choose](how-to-choose.md).",
    "search": "which stages, and their steps.",
    "seed": "of initial weights, crops and degradations.",
    "shared": "whether all stages share one denoiser.",
    "size": "side of the kernels, in pixels.",
    "spread": "deviation of the angle within an image, in degrees.",
    "ssim_exponents": "of the two SSIM terms of a found loss.",
    "stages": "of a data step and a denoiser each.",
    "steps": "how many.",
    "strength": "range of the brightness of a streak.",
    "task": "what is removed: rain, haze, blur, ….",
    "terms": "the licence of the training data, written into the model's card.",
    "tint": "largest deviation of the airlight's colour from grey.",
    "train": "the sources of training samples; they are mixed by their weights.",
    "unevenness": "how much the illumination varies over an image.",
    "unit": "what a depth of 1 means: the largest value of an image, or a high percentile.",
    "units": "Hadamard units.",
    "unshuffle": "factor by which the image is folded into channels first.",
    "weight": "how often this source is drawn, relative to the others.",
    "weight_decay": "factor of the squared norm of the weights.",
    "weights": "of the losses in a found loss; of a judge, a file of ImageNet weights.",
    "white": "the value that a white pixel of a map stands for.",
    "width": "channels; of rain, range of a streak's width in pixels.",
    "widths": "channels at each scale, finest first.",
}
"""What a key means wherever the schema does not say it."""


class RecipeSchema(GenerateJsonSchema):
    """The schema of pydantic, where a validator that looks a name up in a table becomes the list of its names."""

    def function_plain_schema(self, schema: Any) -> Schema:
        table = getattr(getattr(schema["function"]["function"], "__self__", None), "table", None)
        return super().function_plain_schema(schema) if table is None else {"enum": list(table)}

    def encode_default(self, dft: Any) -> Any:
        """A default that is a function is written by its name."""
        return dft.__name__ if callable(dft) and hasattr(dft, "__name__") else super().encode_default(dft)


def page() -> str:
    """Markdown: a section for every recipe and one for every group of keys below it, each described once."""
    lines = [
        "# Recipe keys",
        "",
        "Every key of a recipe, with its type, default and meaning, generated from the schema that validates recipes.",
        "A group with `kind` is chosen by that key. `--set data.crop=64` changes one key on the command line;",
        "`twofold train NAME --show` prints a whole recipe.",
    ]
    described: set[str] = set()
    for title, recipe in RECIPES.items():
        schema = recipe.model_json_schema(schema_generator=RecipeSchema)
        lines += ["", f"## {title}", "", *section(schema, schema)]
        for name in reachable(schema):
            if name not in described:
                described.add(name)
                group = schema["$defs"][name]
                lines += ["", f"### {heading(name, group)} {{ #{anchor(name)} }}", "", *section(group, schema)]
    return "\n".join(lines) + "\n"


def reachable(schema: Schema) -> list[str]:
    """The groups below a schema, in the order in which a reader meets them."""
    found: list[str] = []
    queue = list(references(schema["properties"]))
    while queue:
        name = queue.pop(0)
        if name not in found:
            found.append(name)
            queue += references(schema["$defs"][name].get("properties", {}))
    return found


def references(node: Any) -> Iterator[str]:
    """The names that `$ref` leads to, anywhere below a node."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        for key, value in node.items():
            if key != "discriminator":
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def section(group: Schema, schema: Schema) -> list[str]:
    """The description of a group and the table of its keys."""
    prose, meanings = described_keys(group.get("description", ""), list(group.get("properties", {})))
    required = group.get("required", [])
    lines = [prose, ""] if prose else []
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in group.get("properties", {}).items():
        default = "required" if key in required else code(field.get("default"))
        meaning = field.get("description") or meanings.get(key) or MEANINGS.get(key, "")
        lines.append(f"| `{key}` | {kind_of(field, schema)} | {default} | {cell(meaning)} |")
    return lines


def described_keys(text: str, keys: list[str]) -> tuple[str, dict[str, str]]:
    """Splits a docstring into its prose and what it says of each key (`key: meaning.`).

    >>> described_keys("A crop. side: in pixels. zoom: a range.", ["side", "zoom"])
    ('A crop.', {'side': 'in pixels.', 'zoom': 'a range.'})
    """
    text = " ".join(text.split())
    if not keys:
        return text, {}
    names = "|".join(map(re.escape, keys))
    group = rf"((?:{names})(?:(?:, | and )(?:{names}))*)"
    parts = re.split(rf"(?:^|(?<=[.;:)] )){group}: ", text)
    meanings: dict[str, str] = {}
    for listed, meaning in zip(parts[1::2], parts[2::2], strict=True):
        for key in re.split(r", | and ", listed):
            meanings[key] = meaning.strip()
    return parts[0].strip(), meanings


def kind_of(field: Schema, schema: Schema) -> str:
    """The type of a key as text; groups are links."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{heading(name, schema['$defs'][name])}](#{anchor(name)})"
    if "const" in field:
        return code(field["const"])
    if "enum" in field:
        return ", ".join(map(code, field["enum"]))
    for choice in ("oneOf", "anyOf"):
        if choice in field:
            return " or ".join(dict.fromkeys(kind_of(one, schema) for one in field[choice]))
    kind = field.get("type", "any")
    if kind == "array":
        least, most = field.get("minItems"), field.get("maxItems")
        count = f"{least} × " if least is not None and least == most else "list of "
        return count + kind_of(field.get("items", {}), schema)
    if kind == "object":
        names = field.get("propertyNames", {}).get("enum", [])
        keys = f" ({', '.join(map(code, names))})" if names else ""
        return f"mapping{keys} to {kind_of(field.get('additionalProperties') or {}, schema)}"
    limits = [f"{sign} {field[limit]:g}" for limit, sign in LIMITS.items() if limit in field]
    return " ".join([{"null": "none"}.get(kind, kind), ", ".join(limits)]).strip()


def heading(name: str, group: Schema) -> str:
    """What a reader writes to choose the group: its `kind` where it has one, otherwise its name in words."""
    kind = group.get("properties", {}).get("kind", {})
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Spec").removesuffix("Settings")).lower()
    return f"`{kind['const']}` ({words})" if "const" in kind else words


def anchor(name: str) -> str:
    return name.lower()


def code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|").replace('`"', "`").replace('"`', "`")


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
