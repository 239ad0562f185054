"""Adapter folders: peft's two files and our manifest, read lazily, written as a stream.

The manifest's identity holds under `base` the SHA-256 of the manifest of the model that the adapter was trained on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from karma_electric.adapters.config import LoraConfiguration, compose_configuration, parse_lora_configuration
from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError
from karma_electric.integrity import MANIFEST_NAME, sha256_file, verify_manifest
from karma_electric.safetensors_files import SafetensorsFile, SafetensorsWriter, TensorEntry, open_safetensors

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSOR_NAME = re.compile(r"base_model\.model\.([\w.]+)\.lora_([AB])\.weight", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapted linear layer: its update is (alpha / rank) x B A, B (out, rank), A (rank, in)."""

    name: str
    rank: int
    alpha: float
    out_features: int
    in_features: int

    @property
    def scaling(self) -> float:
        """The factor s of s x B A."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Factors:
    """The update of one module: scaling x b a, with a (rank, in) and b (out, rank)."""

    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True)
class LoraAdapter:
    """A checked adapter folder. Shapes are in memory, values are read module by module."""

    folder: Path
    config: LoraConfiguration
    modules: Mapping[str, LoraModule]  # dotted name in the base model -> module, sorted by name
    manifest_sha256: str
    base_sha256: str
    _weights: SafetensorsFile

    def load(self, name: str) -> Factors:
        """The factors of module `name` in float64. Raises InputError for a value that is not finite."""
        loaded = {}
        for factor in "AB":
            tensor = self._weights.load(tensor_name(name, factor)).to(torch.float64)
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"{self._weights.path}: {tensor_name(name, factor)}: holds NaN or infinity; train the adapter again"
                )
            loaded[factor] = tensor
        return Factors(a=loaded["A"], b=loaded["B"], scaling=self.modules[name].scaling)


def tensor_name(module: str, factor: str) -> str:
    """The name in `adapter_model.safetensors` of factor "A" or "B" of `module`."""
    return f"{_PREFIX}{module}.lora_{factor}.weight"


def read_adapter(folder: Path) -> LoraAdapter:
    """Check the adapter in `folder`: hashes, configuration, names and shapes.

    Raises IntegrityError for bytes that are not those of the manifest or a malformed file, InputError for an adapter
    whose update is not exactly (alpha / rank) x B A.
    """
    manifest = verify_manifest(folder)
    config = parse_lora_configuration(read_json_object(folder / CONFIG_NAME), str(folder / CONFIG_NAME))
    weights = open_safetensors(folder / WEIGHTS_NAME)
    return LoraAdapter(
        folder=folder,
        config=config,
        modules=MappingProxyType(_collect_modules(weights, config)),
        manifest_sha256=sha256_file(folder / MANIFEST_NAME),
        base_sha256=_base_sha256(manifest["identity"], folder / MANIFEST_NAME),
        _weights=weights,
    )


class AdapterWriter:
    """Takes the factors of an adapter, module by module."""

    def __init__(self, writer: SafetensorsWriter) -> None:
        self._writer = writer

    def write(self, name: str, a: Tensor, b: Tensor) -> None:
        """Write a (rank, in) and b (out, rank) of module `name`, rounded once to float32."""
        for factor, tensor in (("A", a), ("B", b)):
            rounded = tensor.to(torch.float32)
            if not torch.isfinite(rounded).all():
                raise InputError(f"{name}: lora_{factor} of the result overflows float32; train the adapters again")
            self._writer.write(tensor_name(name, factor), rounded)


@contextlib.contextmanager
def write_adapter(
    folder: Path, modules: Mapping[str, LoraModule], parents: Sequence[LoraConfiguration]
) -> Iterator[AdapterWriter]:
    """Write an adapter that peft can load, in float32, into the existing `folder`; every module must be written.

    The manifest is the caller's to write: it says what the adapter was made from.
    """
    shapes: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, module in modules.items():
        shapes[tensor_name(name, "A")] = ("F32", (module.rank, module.in_features))
        shapes[tensor_name(name, "B")] = ("F32", (module.out_features, module.rank))
    config = compose_configuration({name: (m.rank, m.alpha) for name, m in modules.items()}, parents)
    (folder / CONFIG_NAME).write_text(readable_json(config), "utf-8")
    with SafetensorsWriter(folder / WEIGHTS_NAME, shapes, {"format": "pt"}) as writer:
        yield AdapterWriter(writer)


def refuse_overlap(output: Path, *inputs: Path) -> None:
    """Raise InputError if writing `output` would replace an input or stand inside one."""
    target = output.resolve()
    for path in inputs:
        source = path.resolve()
        if target == source or target in source.parents or source in target.parents:
            raise InputError(f"{output}: the output and the input {path} overlap; write to another folder")


def _collect_modules(weights: SafetensorsFile, config: LoraConfiguration) -> dict[str, LoraModule]:
    factors: dict[str, dict[str, TensorEntry]] = {}
    for name in weights.tensors:
        if "lora_embedding_" in name:
            raise InputError(f"{weights.path}: {name}: adapts an embedding, expected linear layers; train without it")
    for name, entry in weights.tensors.items():
        where = f"{weights.path}: {name}"
        module, factor = _parse_tensor_name(name, where)
        if entry.dtype not in _FLOATS:
            raise InputError(f"{where}: type is {entry.dtype}, expected one of {', '.join(_FLOATS)}")
        factors.setdefault(module, {})[factor] = entry
    if not factors:
        raise InputError(f"{weights.path}: holds no tensors; train the adapter again")
    return {name: _pair(name, factors[name], config, f"{weights.path}: {name}") for name in sorted(factors)}


def _parse_tensor_name(name: str, where: str) -> tuple[str, str]:
    match = _TENSOR_NAME.fullmatch(name)
    if not match or ".lora_" in match[1]:
        raise InputError(f"{where}: expected {_PREFIX}MODULE.lora_A.weight or lora_B.weight; save it with peft")
    return match[1], match[2]


def _pair(name: str, found: Mapping[str, TensorEntry], config: LoraConfiguration, where: str) -> LoraModule:
    for factor in "AB":
        if factor not in found:
            raise InputError(f"{where}: lora_{factor} is missing, its partner is there; save the adapter again")
    shape_a, shape_b = found["A"].shape, found["B"].shape
    rank = config.rank_of(name)
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != rank or shape_b[1] != rank or 0 in shape_a + shape_b:
        raise InputError(
            f"{where}: lora_A is {list(shape_a)} and lora_B {list(shape_b)}, expected [{rank}, in] and [out, {rank}], "
            f"because {CONFIG_NAME} gives rank {rank}; save the adapter again"
        )
    if not config.targets(name):
        raise InputError(f"{where}: not among target_modules of {CONFIG_NAME}, so peft would ignore it; add its name")
    return LoraModule(name, rank, config.alpha_of(name), out_features=shape_b[0], in_features=shape_a[1])


def _base_sha256(identity: Any, path: Path) -> str:
    value = identity.get("base") if isinstance(identity, dict) else None
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InputError(
            f"{path}: identity.base is {value!r}, expected the sha256 of the base's {MANIFEST_NAME} (64 hex digits); "
            "train the adapter again"
        )
    return value
