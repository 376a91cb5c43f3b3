"""Settings as files have them: YAML in, checked objects out, and errors that name the key and the nearest known one.

A group of settings is a `Settings` class or a frozen dataclass; a field `kind` chooses between several. Files are
checked as JSON is: a list becomes a tuple, a mapping a dataclass, and nothing else is converted.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Generic, TypeVar, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from twofold.contracts import ConfigError


class Settings(BaseModel):
    """Plain facts from a file: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("expected low <= high")
    return bounds


Count = Annotated[int, Field(ge=1)]
Every = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch.manual_seed takes
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]  # low and high, of either sign
Range = Annotated[tuple[Amount, Amount], AfterValidator(_ordered)]  # the same from 0 on

AnySettings = TypeVar("AnySettings", bound=Settings)
Named = TypeVar("Named")


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """Annotates a field that takes any object of a protocol in Python, and one of the types `of` in a file."""

    of: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return handler(self.of)


@dataclasses.dataclass(frozen=True, eq=False)
class ByName(Generic[Named]):
    """Annotates a field that takes any object in Python, and the name of one of `table` in a file."""

    table: Mapping[str, Named]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        names = core_schema.plain_serializer_function_ser_schema(self._name)
        return core_schema.no_info_plain_validator_function(self._object, serialization=names)

    def _object(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.table:
            return self.table[value]
        if value in self.table.values():
            return value
        raise ValueError(f"unknown {value!r}; {nearest(str(value), self.table)}")

    def _name(self, value: Any) -> str:
        return next(name for name, known in self.table.items() if known is value)


def nearest(name: str, known: Iterable[str]) -> str:
    """«did you mean …» and the whole list, for an error message; upper and lower case are alike.

    >>> nearest("derian", ["derain", "dehaze"])
    "did you mean 'derain'? known: derain, dehaze"
    """
    folded = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"{hint}known: {', '.join(folded.values())}"


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, which YAML 1.1 takes for text because it has no point."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def from_yaml(text: str) -> Any:
    """Mappings, lists, numbers and texts. Raises: yaml.YAMLError where `text` is not YAML."""
    return yaml.load(text, _Loader)  # a SafeLoader


def to_yaml(settings: Settings) -> str:
    """All settings as YAML, defaults included: `checked(type(s), from_yaml(to_yaml(s)))` equals s."""
    return str(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=120))


def checked(of: type[AnySettings], tree: Any, origin: str = "recipe") -> AnySettings:
    """The settings `of` that `tree`, read from the file `origin`, describes.

    Raises: ConfigError with the dotted path of the first mistake and the nearest known key.
    """
    try:
        return of.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error, tree, of)}") from error


def change(tree: dict[str, Any], text: str) -> None:
    """Sets one value in place: `text` is key.path=value, the value in YAML; items of lists are counted from 0.

    >>> tree = {"data": {"train": [{"weight": 1.0}]}}
    >>> change(tree, "data.train.0.weight=0.5")
    >>> tree
    {'data': {'train': [{'weight': 0.5}]}}

    Raises: ConfigError where the path or the value is not one.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"a change is written key.path=value, got {text!r}")
    *parents, last = key.split(".")
    try:
        given = from_yaml(value)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: of a date or number beyond any
        raise ConfigError(f"{key}: {value[:80]!r} is not YAML; quote it for the shell and for YAML") from error
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


_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # of a Settings class, of a dataclass


def _explain(error: ValidationError, tree: Any, of: type[Any]) -> str:
    """One mistake in one line: where, what, and the nearest known word. A misspelt key explains a missing one."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] in _UNKNOWN_KEY), errors[0])
    path, groups = _place(first["loc"], tree, of)
    kind, facts, seen = first["type"], first.get("ctx", {}), first["input"]
    if kind in _UNKNOWN_KEY:
        known = sorted({name for group in groups for name in _fields(group)})
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
    if kind in ("model_type", "model_attributes_type", "dataclass_type", "dict_type"):
        return f"{path}: expected a group of settings, got {seen!r}"
    shown = "" if isinstance(seen, dict | list) else f", got {seen!r}"
    message = first["msg"].removeprefix("Value error, ").replace("valid array", "valid list")
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _place(loc: tuple[int | str, ...], tree: Any, of: type[Any]) -> tuple[str, list[type[Any]]]:
    """The dotted path of a mistake as the file has it, and the groups of settings that may stand there.

    pydantic puts the chosen member of a union into its path, right after the union: that part is no key of the file.
    """
    path: list[str] = []
    groups: list[type[Any]] = [of]
    node, arrived = tree, False
    for part in loc:
        if arrived and isinstance(node, dict) and part == node.get("kind"):
            groups = [group for group in groups if part in _tags([group])]
            arrived = False
        elif part not in ("[key]", "named", "found"):  # the latter two: which kind of loss
            path.append(str(part))
            fields = [_fields(group)[part] for group in groups if part in _fields(group)]
            groups = _groups(fields[0]) if fields else groups
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                node = None
            arrived = True
    return ".".join(path), groups


def _fields(group: type[Any]) -> dict[Any, Any]:
    """The types of a group's fields by name."""
    if issubclass(group, BaseModel):
        return {name: Annotated[field.annotation, *field.metadata, None] for name, field in group.model_fields.items()}
    hints = get_type_hints(group, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def _groups(annotation: Any) -> list[type[Any]]:
    """The groups of settings inside a field's type."""
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if isinstance(annotation, Chosen):
        return _groups(annotation.of)
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return [annotation]
    return [group for part in get_args(annotation) for group in _groups(part)]


def _tags(groups: list[type[Any]]) -> list[str]:
    """What stands under `kind` to choose each group."""
    return [str(_default(group)) for group in groups if "kind" in _fields(group)]


def _default(group: type[Any]) -> Any:
    if issubclass(group, BaseModel):
        field = group.model_fields["kind"]
        return get_args(field.annotation)[0]
    return next(field.default for field in dataclasses.fields(group) if field.name == "kind")
