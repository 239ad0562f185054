"""The tensors of a Hugging Face folder, read one at a time."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from karma_electric.errors import InputError, IntegrityError
from karma_electric.safetensors_files import open_safetensors

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 64 * 1024 * 1024


class ModelTensors:
    """Names and shapes of a model's tensors, and each tensor when it is asked for.

    A file is opened anew for every tensor: what was mapped of it is given back, so that memory stays at one tensor.
    Raises InputError for a folder without weights, IntegrityError for a file that is not safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _files_by_tensor(folder)
        self._opened = functools.cache(open_safetensors)

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        with _Opened(self._path(name)) as file:
            return tuple(file.get_slice(name).get_shape())

    def load(self, name: str) -> torch.Tensor:
        """The tensor `name` in its stored type, on the CPU."""
        with _Opened(self._path(name)) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def load_rows(self, name: str, rows: slice) -> torch.Tensor:
        """Rows start:stop of the tensor `name`, in a memory of their own; for several threads at once."""
        return self._opened(self._path(name)).load(name, rows)

    def _path(self, name: str) -> Path:
        if name not in self._files:
            raise InputError(f"{self.folder}: the tensor {name} is missing; rebuild the model")
        return self._files[name]


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file() == index.is_file():
        found = "both are" if single.is_file() else "neither is"
        raise InputError(f"{folder}: {SINGLE_FILE} or {INDEX_FILE} expected, {found} there")
    if single.is_file():
        with _Opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    return _read_index(index)


def _read_index(index: Path) -> dict[str, Path]:
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise IntegrityError(f"{index}: larger than {MAX_INDEX_BYTES} bytes; this is no index")
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        pairs = [(str(name), str(file)) for name, file in weight_map.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{index}: cannot be read ({error}); expected a weight_map of names to files") from error
    files: dict[str, Path] = {}
    stored: dict[str, set[str]] = {}
    for name, file in pairs:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise IntegrityError(f"{index}: {name} is in {file!r}, expected a .safetensors file of the same folder")
        path = index.parent / file
        if file not in stored:
            with _Opened(path) as opened:
                stored[file] = set(opened.keys())
        if name not in stored[file]:
            raise IntegrityError(f"{path}: the tensor {name} is missing, though {INDEX_FILE} names it")
        files[name] = path
    for file, names in stored.items():
        if unnamed := sorted(names - {name for name, home in pairs if home == file}):
            raise IntegrityError(f"{index.parent / file}: the tensor {unnamed[0]} is not in {INDEX_FILE}")
    return files


class _Opened:
    """safe_open with our errors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{path}: cannot be read as safetensors ({error}); rebuild the model") from error

    def __enter__(self) -> Any:
        return self._file.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)
