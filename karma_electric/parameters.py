"""Sections of a recipe: how they are read, checked, and how an error in one is worded."""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from karma_electric.errors import InputError, shown

MAX_RECIPE_BYTES = 1024 * 1024


class Parameters(BaseModel):
    """A section of the recipe. Unknown keys are refused, values are read-only, and NaN or infinity is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


P = TypeVar("P", bound=Parameters)


class _StrictLoader(yaml.SafeLoader):
    """Refuses two equal keys, of which PyYAML keeps the last, and gives every error a line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, AttributeError) as error:  # a date such as 2026-02-30, or `!!int abc`
            kind = node.tag.rpartition(":")[2]
            raise _fault(f"{shown(node.value)} cannot be read as {kind}", node) from error


def _fault(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise _fault("a list or mapping cannot be a key; are there braces too many?", key_node)
        if key in seen:
            raise _fault(f"the key {shown(key)} stands twice", key_node)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InputError naming file and line."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise InputError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes; this is no recipe")
        value = yaml.load(path.read_text("utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a YAML file") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "nested too deeply"
        raise InputError(f"{path}{line}: not YAML ({problem}); mend the line") from error
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{path}: found {found}, expected a mapping of keys and values")
    return value


def read_section(path: Path, name: str, model: type[P]) -> P:
    """Section `name` of the recipe at `path`, checked against `model`."""
    recipe = read_yaml(path)
    if name not in recipe:
        raise InputError(f"{path}: the section {name!r} is missing; a whole recipe stands in profiles/")
    return parse_parameters(recipe[name], model, where=f"{path}: {name}")


def parse_parameters(value: object, model: type[P], *, where: str) -> P:
    """`value` as `model`; the first fault becomes one line that starts with `where`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(describe_first_fault(error, where, value)) from None


def describe_first_fault(error: ValidationError, where: str, value: object) -> str:
    """One line for the worst fault of validating `value`: key, what was found, what was expected, what to do."""
    faults = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    key = _key(fault["loc"], value)
    if not key:
        place = where
    elif where.endswith((".yaml", ".yml")):
        place = f"{where}: {key}"
    else:
        place = f"{where}.{key}"
    return place + ": " + _describe(fault, [other["loc"] for other in faults if other["type"] == "missing"])


def _key(location: tuple[int | str, ...], value: object) -> str:
    """The dotted key of a fault in `value`; pydantic puts the tag of a union (`base`: its source) between."""
    parts: list[str] = []
    for index, part in enumerate(location):
        is_tag = isinstance(value, dict) and value.get("source") == part and index + 1 < len(location)
        if is_tag:
            continue
        parts.append(str(part) if str(part).isprintable() else shown(part))
        if isinstance(value, dict):
            value = value.get(part)
    return ".".join(parts)


def _describe(fault: ErrorDetails, missing: list[tuple[int | str, ...]]) -> str:
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if kind == "extra_forbidden":
        siblings = [str(location[-1]) for location in missing if location[:-1] == fault["loc"][:-1]]
        near = difflib.get_close_matches(str(fault["loc"][-1]), siblings, n=1, cutoff=0)
        return f"unknown key; did you mean {near[0]!r}?" if near else "unknown key; remove it or correct it"
    if kind == "missing":
        return "missing; add it (profiles/ holds whole recipes)"
    if kind == "union_tag_invalid":
        context = fault.get("ctx", {})
        return f"source is {shown(context.get('tag'))}, expected one of {context.get('expected_tags')}"
    if kind == "union_tag_not_found":
        return "source is missing; add it (profiles/ holds whole recipes)"
    if kind == "value_error" and isinstance(fault["input"], dict):
        return message
    return f"found {shown(fault['input'])}, {message[0].lower() + message[1:]}"
