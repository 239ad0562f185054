"""`reproduce.json`: the exact recipe, the pinned packages and the commands that build the same release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

FORM = "karma-reproduce-1"

# JSON is YAML, so the recipe in reproduce.json is a params.yaml as it stands.
_TAKE_RECIPE = (
    "python -c \"import json; recipe = json.load(open('reproduce.json'))['recipe']; "
    "json.dump(recipe, open('params.yaml', 'w'), indent=2)\""
)


def reproduction(
    recipe: Mapping[str, Any],
    *,
    python: str,
    packages: Mapping[str, str],
    base: Mapping[str, Any],
    training_sets: Mapping[str, Any],
) -> dict[str, Any]:
    """What a rebuild needs to know. `python` is the minor version; `packages` is name -> version.

    Of a base model in a folder only the folder's name is kept: its hash says what was in it.
    """
    return {
        "form": FORM,
        "recipe": _without_folders(recipe),
        "base": dict(base),
        "training_sets": dict(training_sets),
        "python": python,
        "packages": dict(sorted(packages.items())),
        "commands": ["make install", _TAKE_RECIPE, "make repro"],
    }


def _without_folders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    base = recipe.get("base")
    if isinstance(base, Mapping) and isinstance(base.get("path"), str):
        return {**recipe, "base": {**base, "path": PurePath(base["path"]).name}}
    return dict(recipe)
