"""The reference page of every key of a recipe, from the schema that recipes are validated with.

    python docs/recipe_keys.py        prints the page

Only the JSON schema of the three recipe classes is used. What a key means stands there, beside the key: in its `Field`,
or as `key: meaning` in the docstring of its class.
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
        meaning = field.get("description") or meanings.get(key) or ("chooses this group" if key == "kind" else "")
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
