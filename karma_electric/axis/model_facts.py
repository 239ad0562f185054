"""What an axis must fit: the width and depth of a model, and which weights it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import read_json_object
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.reader import SOURCE_KEY, read_header
from karma_electric.integrity import MANIFEST_NAME, sha256_file


@dataclass(frozen=True)
class ModelFacts:
    """A model as an axis sees it."""

    where: str  # for errors
    hidden_size: int
    blocks: int
    source_sha256: str | None  # of the manifest of its weights in safetensors; None: it does not say


def model_facts(path: Path) -> ModelFacts:
    """Of a GGUF file, or of a folder in the form of Hugging Face. Only headers are read.

    Raises InputError where there is no model, IntegrityError for a damaged header.
    """
    return _folder_facts(path) if path.is_dir() else _gguf_facts(path)


def _gguf_facts(path: Path) -> ModelFacts:
    header = read_header(path)
    architecture = header.metadata.get("general.architecture")
    hidden_size = _size(header.metadata.get(f"{architecture}.embedding_length"))
    blocks = _size(header.metadata.get(f"{architecture}.block_count"))
    if hidden_size is None or blocks is None:
        raise InputError(f"{path}: names no embedding_length and block_count of {architecture!r}; expected a model")
    source = header.metadata.get(SOURCE_KEY)
    if source is not None and not isinstance(source, str):
        raise IntegrityError(f"{path}: {SOURCE_KEY} is no text; quantise the file again")
    return ModelFacts(str(path), hidden_size, blocks, source)


def _folder_facts(path: Path) -> ModelFacts:
    config: dict[str, Any] = read_json_object(path / "config.json")
    inner = config.get("text_config")
    text: dict[str, Any] = inner if isinstance(inner, dict) else config
    hidden_size, blocks = _size(text.get("hidden_size")), _size(text.get("num_hidden_layers"))
    if hidden_size is None or blocks is None:
        raise InputError(f"{path}: config.json names no hidden_size and num_hidden_layers; expected a decoder model")
    manifest = path / MANIFEST_NAME
    return ModelFacts(str(path), hidden_size, blocks, sha256_file(manifest) if manifest.is_file() else None)


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**31 else None
