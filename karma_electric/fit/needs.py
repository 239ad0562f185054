"""What each stage of a recipe needs: memory of the GPU and of the host, room on the disk, and time.

Training's memory is added up from what it holds (training_memory.py). Files are computed to the byte but for their
headers. The host's memory and the times are sums with rates that were measured (docs/performance.md), so they are
rough: a time is right to a factor of two on a machine like those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from karma_electric.base_model.quiet import quiet_libraries
from karma_electric.engines.llama_cpp_parallel import SLOTS
from karma_electric.fit.machine import Machine
from karma_electric.fit.training_memory import (
    ModelSizes,
    flops_per_token,
    longest_row,
    model_sizes,
    needed_device_bytes,
    needed_host_bytes,
)
from karma_electric.fit.training_set import TrainingSet
from karma_electric.gate.engines import CONTEXT_TOKENS
from karma_electric.gguf_files.llama_config import LlamaConfig
from karma_electric.recipe import Recipe

_BF16_BYTES: Final = 2
_F16_BYTES: Final = 2
_F32_BYTES: Final = 4
_LIBRARIES_BYTES: Final = 0.6e9  # Python with PyTorch and transformers
_CUDA_HOST_BYTES: Final = 3e9  # CUDA's libraries, and the compiler of kernels

_GPU_SHARE_OF_PEAK: Final = 0.45  # of the data sheet, in training with nothing computed again
_CPU_FLOPS: Final = 1.3e11  # of a core with AMX, in training
_UNKNOWN_GPU_FLOPS: Final = 1e14
_START_SECONDS: Final = 15.0  # a stage's libraries and checks; on a GPU its kernels are compiled, too
_COPY_BYTES_PER_SECOND: Final = 0.5e9  # read, hashed, changed and written
_QUANTISED_VALUES_PER_SECOND: Final = {"Q8_0": 5e7, "F16": 2e8}  # of a core; the K-quants:
_K_QUANTISED_VALUES_PER_SECOND: Final = 8e6


@dataclass(frozen=True, slots=True)
class Need:
    """Of one stage. `disk_bytes` stay when it is done; None in `seconds` where nothing is known."""

    stage: str
    gpu_bytes: int
    host_bytes: int
    disk_bytes: int
    seconds: float | None


def stage_needs(recipe: Recipe, config: LlamaConfig, sets: Sequence[TrainingSet], machine: Machine) -> Iterator[Need]:
    """Of every stage that takes more than a few seconds and 0.5 GB, in the order of the graph."""
    sizes = model_sizes(config, recipe.train)
    on_gpu = bool(machine.gpus)
    model_bytes = _BF16_BYTES * sizes.parameters
    unpacked = 2 * model_bytes if recipe.base.source == "package" else 0  # a hub's or a folder's files are linked
    yield Need("base", 0, round(0.5e9 + unpacked), model_bytes, _copying(2 * model_bytes))
    for each in sets:
        yield _training(recipe, config, sizes, each, machine)
    blend = 2 * _F32_BYTES * sizes.lora
    yield Need("interpolate", 0, round(_LIBRARIES_BYTES), blend, _copying(2 * blend))
    yield Need("merge", 0, round(_LIBRARIES_BYTES + 0.3e9), model_bytes, _copying(2 * model_bytes))
    for kind in recipe.quantize.types:
        size = gguf_bytes(config, kind)
        rate = _QUANTISED_VALUES_PER_SECOND.get(kind, _K_QUANTISED_VALUES_PER_SECOND)
        block = _F32_BYTES * sizes.linear // config.blocks
        host = round(_LIBRARIES_BYTES + max(machine.cores * 10e6, 2 * block) + size)
        seconds = _START_SECONDS + sizes.parameters / rate / machine.cores + (model_bytes + size) / 1e9
        yield Need(f"quantize@{kind}", 0, host, size, seconds)
    yield _extraction(recipe, config, sizes, machine, on_gpu=on_gpu)
    yield Need("gate", 0, gate_host_bytes(recipe.quantize.judged, config, machine.cores), 0, None)


def gate_host_bytes(gguf_type: str, config: LlamaConfig, cores: int) -> int:
    """What llama.cpp holds of a model: the file, and keys and values of every slot, in two contexts side by side."""
    tokens = min(2, cores) * SLOTS * CONTEXT_TOKENS
    cache = 2 * tokens * config.blocks * config.key_value_heads * config.head_size * _F16_BYTES
    return round(0.4e9 + gguf_bytes(config, gguf_type) + cache)


def gguf_bytes(config: LlamaConfig, gguf_type: str) -> int:
    """The tensors of a GGUF file of this type; its header, some megabytes, is not counted."""
    from karma_electric.gguf_files.native_quantizer import row_bytes
    from karma_electric.gguf_files.planned_tensors import plan_tensors
    from karma_electric.gguf_files.type_mix import stored_type

    total = 0
    for tensor in plan_tensors(config):
        length = tensor.shape[-1]
        kind = "F32"
        if tensor.is_matrix:
            kind = "F16" if gguf_type == "F16" else stored_type(gguf_type, tensor.name, length, config)
        total += (tensor.shape[0] if tensor.is_matrix else 1) * row_bytes(kind, length)
    return total


def _training(recipe: Recipe, config: LlamaConfig, sizes: ModelSizes, found: TrainingSet, machine: Machine) -> Need:
    params = recipe.train
    row = longest_row(found.steps, params.tokens_per_microbatch)
    # The adapter, and two checkpoints of parameters and two 8-bit moments in the working store.
    disk = _BF16_BYTES * sizes.lora + 2 * (_BF16_BYTES + 2) * sizes.lora
    seconds = None
    if found.is_measured:
        flops = flops_per_token(config, params, found.learned_share) * found.tokens * params.epochs
        seconds = _START_SECONDS + flops * (1 + params.recomputed_share / 3) / _training_flops(machine)
    if machine.gpus:
        gpu, host = needed_device_bytes(config, params, row), round(_CUDA_HOST_BYTES)
    else:
        gpu, host = 0, needed_host_bytes(config, params, row)
    return Need(f"train@{found.name}", gpu, host, disk, seconds)


def _training_flops(machine: Machine) -> float:
    if not machine.gpus:
        return machine.cores * _CPU_FLOPS
    with quiet_libraries():
        from karma_electric.training.progress import peak_flops
    peak = peak_flops(machine.gpus[0].name)
    return _GPU_SHARE_OF_PEAK * peak if peak else _UNKNOWN_GPU_FLOPS


def _extraction(recipe: Recipe, config: LlamaConfig, sizes: ModelSizes, machine: Machine, *, on_gpu: bool) -> Need:
    axis = recipe.axis
    weights = _BF16_BYTES * sizes.parameters
    asked = 4 * axis.samples * 100 + 40 * axis.answer_tokens * 4  # tokens, of prompts and of answers in batches
    seconds = _START_SECONDS + 2.0 * sizes.parameters * asked / _training_flops(machine) + weights / 1e9
    answers = _batch_values(recipe, config, axis.max_prompt_tokens + axis.answer_tokens)
    if on_gpu:
        gpu = round(weights + _BF16_BYTES * answers + 0.5e9)
        return Need("extract-axis", gpu, round(_CUDA_HOST_BYTES + weights), 0, seconds)
    return Need("extract-axis", 0, extraction_host_bytes(recipe, config), 0, seconds)


def extraction_host_bytes(recipe: Recipe, config: LlamaConfig) -> int:
    """The peak of extraction without a GPU: contrasts are computed in float32, by a copy beside the bf16 model."""
    axis = recipe.axis
    parameters = model_sizes(config, recipe.train).parameters
    contrast = axis.max_prompt_tokens + (axis.answer_tokens if axis.position == "answer-mean" else 0)
    in_float32 = _F32_BYTES * (parameters + _batch_values(recipe, config, contrast))
    in_bf16 = _BF16_BYTES * _batch_values(recipe, config, axis.max_prompt_tokens + axis.answer_tokens)
    return round(_LIBRARIES_BYTES + _BF16_BYTES * parameters + max(in_float32, in_bf16))


def _batch_values(recipe: Recipe, config: LlamaConfig, tokens: int) -> int:
    """Of a batch of extraction: the widest product of one block, and keys and values of all blocks."""
    keys = 2 * config.blocks * config.key_value_heads * config.head_size
    return recipe.axis.batch_size * tokens * (4 * config.feed_forward_length + keys)


def _copying(size: float) -> float:
    return 3 + size / _COPY_BYTES_PER_SECOND
