"""A base model out of a local folder, pinned by the hash of its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from karma_electric.base_model.params import FolderBase
from karma_electric.canonical import canonical_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import describe_files, sha256_bytes


def hash_folder(folder: Path) -> str:
    """SHA-256, as hex digits, of the canonical JSON list of path, size and SHA-256 of every file below `folder`.

    A manifest.json at its top is left out. Raises InputError for a folder that is missing or empty.
    """
    return _hash_listing(_listing(folder))


def copy_folder(params: FolderBase, folder: Path) -> None:
    """Copy the files of `params.path` into `folder`, if they are those that the recipe names, else IntegrityError."""
    source = Path(params.path)
    listing = _listing(source)
    if (found := _hash_listing(listing)) != params.sha256:
        raise IntegrityError(
            f"base.sha256: {source} has {found}, the recipe says {params.sha256}; "
            "restore the folder, or set base.sha256 to the first if the change is meant"
        )
    for entry in listing:
        target = folder / entry["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / entry["path"], target)
    if describe_files(folder) != listing:
        raise IntegrityError(f"base.path: {source} changed while it was copied; run the stage again")


def refuse_overlap(params: FolderBase, output: Path) -> None:
    """Raises InputError when writing `output` would replace the source or a part of it."""
    source, target = Path(params.path).resolve(), output.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise InputError(f"base.path: {params.path} and the output {output} overlap; move the source elsewhere")


def _listing(folder: Path) -> list[dict[str, Any]]:
    if not folder.is_dir():
        raise InputError(f"base.path: {folder}: no such folder; expected a model's config, tokenizer and safetensors")
    listing = describe_files(folder)
    if not listing:
        raise InputError(f"base.path: {folder}: holds no files; expected a model's config, tokenizer and safetensors")
    return listing


def _hash_listing(listing: list[dict[str, Any]]) -> str:
    return sha256_bytes(canonical_json(listing).encode("utf-8"))
