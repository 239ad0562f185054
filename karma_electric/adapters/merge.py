"""An adapter becomes part of its base: W + s B A, shard by shard, tensor by tensor, in bounded memory."""

from __future__ import annotations

import collections
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from karma_electric.adapters.files import Factors, LoraAdapter, LoraModule, read_adapter, refuse_overlap
from karma_electric.canonical import read_json_object, readable_json, rounded
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import MANIFEST_NAME, atomic_directory, sha256_file, verify_manifest, write_manifest
from karma_electric.safetensors_files import (
    INDEX_NAME,
    SafetensorsFile,
    SafetensorsFolder,
    SafetensorsWriter,
    open_safetensors_folder,
    torch_dtype,
)
from karma_electric.torch_threads import torch_threads

BLOCK_BYTES = 32 * 1024 * 1024  # of float32 rows that a thread has in memory at once
MOST_WORKERS = 12
_SLAB_VALUES = 2**16  # half a megabyte in float64
_COPIED = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
)
_FLOATS = ("BF16", "F16", "F32")

Report = Callable[[str], None]


@dataclass
class _Totals:
    """Sums over all merged weights of squared differences."""

    update: float = 0.0  # (s B A)^2
    rounding: float = 0.0  # (stored - exact)^2
    base: float = 0.0  # W^2, of merged tensors

    def add(self, other: _Totals) -> None:
        """Count the sums of a block."""
        self.update += other.update
        self.rounding += other.rounding
        self.base += other.base


def merge_adapter(base: Path, adapter: Path, output: Path, report: Report | None = None) -> dict[str, Any]:
    """Write the model `base` + `adapter` to the folder `output`; return metrics.

    Each adapted weight W (out, in) becomes W + s B A, computed in float32 and rounded once to W's type; all other
    tensors are copied byte for byte, in the shards of the base. Configuration, tokenizer, chat template and licence
    files come along. `update_relative_norm` is |s B A| / |W| over the adapted weights, `rounding_relative_error` the
    part of the update that the rounding of the stored weights changed, |stored - (W + s B A)| / |s B A|.

    Raises InputError for an adapter of another base or one that does not fit, IntegrityError for damaged files.
    """
    refuse_overlap(output, base, adapter)
    base_identity = verify_manifest(base)["identity"]
    if not isinstance(base_identity, dict):
        raise IntegrityError(f"{base / MANIFEST_NAME}: identity is not an object; rebuild the base")
    lora = read_adapter(adapter)
    base_sha256 = sha256_file(base / MANIFEST_NAME)
    if lora.base_sha256 != base_sha256:
        raise InputError(
            f"{adapter}: was made on the base {lora.base_sha256[:12]}…, {base} is {base_sha256[:12]}…; "
            "train it on this base"
        )
    weights = open_safetensors_folder(base)
    facts = _model_facts(base / "config.json")
    module_of = _match_modules(weights, lora)
    totals = _Totals()
    with atomic_directory(output) as folder:
        for number, (name, shard) in enumerate(weights.files.items(), start=1):
            if report:
                report(f"shard {number} of {len(weights.files)}: {name}")
            _merge_shard(shard, folder / name, lora, module_of, totals)
        _write_index(weights, folder)
        for name in _COPIED:
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)
        identity = {**base_identity, **facts, "kind": "merged", "base": base_sha256, "adapter": lora.manifest_sha256}
        write_manifest(folder, identity | {"n_modules_merged": len(module_of)})
    return _metrics(weights, module_of, totals)


def _model_facts(path: Path) -> dict[str, Any]:
    """Architecture and sizes from the base's config.json."""
    config = read_json_object(path)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise InputError(f"{path}: architectures is {architectures!r}, expected a list of one name")
    facts: dict[str, Any] = {"architecture": architectures[0]}
    for key, name in (("hidden_size", "hidden_size"), ("n_layers", "num_hidden_layers")):
        if type(config.get(name)) is not int:
            raise InputError(f"{path}: {name} is {config.get(name)!r}, expected a whole number")
        facts[key] = config[name]
    return facts


def _match_modules(weights: SafetensorsFolder, lora: LoraAdapter) -> dict[str, LoraModule]:
    """Weight name -> the module that adapts it. Every module must hit exactly one weight, of its shape."""
    module_of: dict[str, LoraModule] = {}
    known = set(weights.names())
    for name, module in lora.modules.items():
        weight = f"{name}.weight"
        if weight not in known:
            raise InputError(
                f"{lora.folder}: {name}: {weights.folder} has no tensor {weight}; adapt linear layers of this base only"
            )
        entry = weights.file_of(weight).tensors[weight]
        if entry.shape != (module.out_features, module.in_features) or entry.dtype not in _FLOATS:
            raise InputError(
                f"{lora.folder}: {name}: updates a float weight of shape "
                f"{[module.out_features, module.in_features]}, {weights.folder} has {entry.dtype} of shape "
                f"{list(entry.shape)}; merge it into the model that it was trained on"
            )
        module_of[weight] = module
    return module_of


def _merge_shard(
    shard: SafetensorsFile, path: Path, lora: LoraAdapter, module_of: dict[str, LoraModule], totals: _Totals
) -> None:
    specification = {name: (entry.dtype, entry.shape) for name, entry in shard.tensors.items()}
    with SafetensorsWriter(path, specification, {"format": "pt"}) as writer:
        for name in shard.tensors:
            if module := module_of.get(name):
                writer.write_chunks(name, _merged_rows(shard, name, lora.load(module.name), totals))
            else:
                writer.write_chunks(name, shard.chunks(name))


def _merged_rows(shard: SafetensorsFile, name: str, factors: Factors, totals: _Totals) -> Iterator[memoryview]:
    """The bytes of W + s B A, block of rows by block of rows; several blocks are computed at once."""
    entry = shard.tensors[name]
    kind = torch_dtype(entry.dtype, f"{shard.path}: {name}")
    a, b = factors.a.float(), factors.b.float()  # (rank, in), (out, rank)
    n_rows, row_length = entry.shape
    step = max(1, BLOCK_BYTES // (4 * row_length))

    def merge(rows: slice) -> tuple[Tensor, _Totals]:
        weight = shard.load(name, rows).float()  # (block, in)
        update = (b[rows] @ a).mul_(factors.scaling)
        found = _Totals(update=_square(update), base=_square(weight))
        exact = weight.add_(update)
        stored = exact.to(kind)
        found.rounding = _square(stored.float() - exact)  # not in place: of a float32 base both are one tensor
        if not math.isfinite(found.rounding):  # as it is with one infinity or NaN in `stored`
            raise IntegrityError(f"{shard.path}: {name}: merged, it is not finite in {entry.dtype}; check the base")
        return stored, found

    with torch_threads(1), ThreadPoolExecutor(_workers()) as pool:  # one of PyTorch's threads in each of ours
        for stored, found in _in_order(pool, merge, [slice(s, s + step) for s in range(0, n_rows, step)]):
            totals.add(found)
            yield stored.reshape(-1).view(torch.uint8).numpy().data


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[slice], tuple[Tensor, _Totals]], blocks: Sequence[slice]
) -> Iterator[tuple[Tensor, _Totals]]:
    """What `work` makes of each block, in order, with no more blocks in memory than there are threads and one."""
    waiting: collections.deque[Future[tuple[Tensor, _Totals]]] = collections.deque()
    for rows in blocks:
        waiting.append(pool.submit(work, rows))
        if len(waiting) > _workers():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _workers() -> int:
    """Threads that each hold a block, about 100 MB."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def _square(tensor: torch.Tensor) -> float:
    """The sum of squares in float64, by slabs that stay in the cache: a fifth of vector_norm's time."""
    slabs = (slab.double() for slab in torch.split(tensor.reshape(-1), _SLAB_VALUES))
    return sum(float(torch.dot(slab, slab)) for slab in slabs)


def _write_index(weights: SafetensorsFolder, folder: Path) -> None:
    if not (weights.folder / INDEX_NAME).exists():
        return
    shard_of = {tensor: name for name, file in weights.files.items() for tensor in file.tensors}
    index = {"metadata": {"total_size": _total_bytes(weights)}, "weight_map": dict(sorted(shard_of.items()))}
    (folder / INDEX_NAME).write_text(readable_json(index), "utf-8")


def _total_bytes(weights: SafetensorsFolder) -> int:
    return sum(entry.n_bytes for file in weights.files.values() for entry in file.tensors.values())


def _metrics(weights: SafetensorsFolder, module_of: dict[str, LoraModule], totals: _Totals) -> dict[str, Any]:
    return {
        "n_shards": len(weights.files),
        "n_tensors": len(weights.names()),
        "n_modules_merged": len(module_of),
        "total_bytes": _total_bytes(weights),
        "update_norm": rounded(math.sqrt(totals.update)),
        "update_relative_norm": rounded(math.sqrt(totals.update / totals.base)) if totals.base else None,
        "rounding_relative_error": rounded(math.sqrt(totals.rounding / totals.update)) if totals.update else None,
    }
