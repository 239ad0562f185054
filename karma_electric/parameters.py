"""Sections of a recipe: how they are read, checked, and how an error in one is worded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from karma_electric.errors import InputError

MAX_RECIPE_BYTES = 1024 * 1024


class Parameters(BaseModel):
    """A section of the recipe. Unknown keys are refused, values are read-only, and NaN or infinity is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


P = TypeVar("P", bound=Parameters)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence; a recipe with two is refused."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in result:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InputError naming file and line."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise InputError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes; this is no recipe")
        value = yaml.load(path.read_text("utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a YAML file") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "nested too deeply"
        raise InputError(f"{path}{line}: not YAML ({problem}); mend the line") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: found {type(value).__name__}, expected sections such as base: and train:")
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
        raise InputError(describe_first_fault(error, where)) from None


def describe_first_fault(error: ValidationError, where: str) -> str:
    """One line for the worst fault of a validation: key, what was found, what was expected, what to do."""
    faults = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    key = ".".join(str(part) for part in fault["loc"])
    if not key:
        place = where
    elif where.endswith((".yaml", ".yml")):
        place = f"{where}: {key}"
    else:
        place = f"{where}.{key}"
    return place + ": " + _describe(fault, [other["loc"] for other in faults if other["type"] == "missing"])


def _describe(fault: ErrorDetails, missing: list[tuple[int | str, ...]]) -> str:
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if kind == "extra_forbidden":
        siblings = [str(location[-1]) for location in missing if location[:-1] == fault["loc"][:-1]]
        return f"unknown key; did you mean {siblings[0]!r}?" if siblings else "unknown key; remove it or correct it"
    if kind == "missing":
        return "missing; add it (profiles/ holds whole recipes)"
    if kind == "union_tag_invalid":
        context = fault.get("ctx", {})
        return f"source is {context.get('tag')!r}, expected one of {context.get('expected_tags')}"
    if kind == "value_error" and isinstance(fault["input"], dict):
        return message
    return f"found {_shortened(fault['input'])}, {message[0].lower() + message[1:]}"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
