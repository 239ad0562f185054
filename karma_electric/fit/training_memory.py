"""How much memory a training run takes, from the model's sizes and the longest row alone.

What is added up is what training holds (see training/packed_llama.py): the base in NF4 and its embeddings in bf16, the
LoRA with its gradients and optimizer, what the blocks keep of a row for their backward pass, and the larger of the two
peaks above that, one block's backward pass or a part of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from karma_electric.gguf_files.llama_config import LlamaConfig
from karma_electric.training.params import TrainParams

_BF16_BYTES: Final = 2
_NF4_BYTES: Final = 0.5 + (1 + 4 / 256) / 64  # a value, and its share of double-quantised scales of 64 values
# Of a parameter of the LoRA: itself, its gradient, the optimizer's copy of that in bf16, and two 8-bit moments.
_LORA_BYTES: Final = {"paged_adamw_8bit": 3 * _BF16_BYTES + 2, "adamw_torch": 5 * _BF16_BYTES}
_HEAD_ROWS: Final = {"cuda": 2048, "cpu": 256}  # positions whose logits are in memory at once
_HOST_LIBRARIES_BYTES: Final = 1.05e9  # Python with PyTorch, transformers, trl and what they load
# What a C allocator holds for each byte that is in use: rows differ in length, and freed pieces are not given back.
# Fitted to whole runs of the shipped recipe, 4.7 GB; one or two steps take half of it (docs/performance.md).
_HOST_FACTOR: Final = 2.65
_CUDA_CONTEXT_BYTES: Final = 0.5e9  # of the driver and its libraries, outside of what PyTorch counts


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Numbers of values. `linear` counts the projections of all blocks, `lora` those of the recipe's rank."""

    linear: int
    lora: int
    embeddings: int

    @property
    def parameters(self) -> int:
        """Of the model, without its few norms."""
        return self.linear + self.embeddings


def model_sizes(config: LlamaConfig, params: TrainParams) -> ModelSizes:
    """Of a Llama of this configuration with the recipe's LoRA."""
    hidden, feed = config.hidden_size, config.feed_forward_length
    queries, keys = config.heads * config.head_size, config.key_value_heads * config.head_size
    shapes = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (feed, hidden),
        "up_proj": (feed, hidden),
        "down_proj": (hidden, feed),
    }
    linear = config.blocks * sum(rows * columns for rows, columns in shapes.values())
    trained = sum(sum(shapes[target]) for target in set(params.lora.targets))
    embeddings = config.vocab_size * hidden * (1 if config.tied_embeddings else 2)
    return ModelSizes(linear, config.blocks * params.lora.rank * trained, embeddings)


def kept_bytes_per_token(config: LlamaConfig, params: TrainParams) -> int:
    """What one block that is not computed again keeps of a token: its input and the state between its halves, queries,
    keys, values and attention output, gates and ups, the products of each LoRA, and a few numbers in float32."""
    queries, keys = config.heads * config.head_size, config.key_value_heads * config.head_size
    values = 2 * config.hidden_size + 2 * queries + 2 * keys + 2 * config.feed_forward_length
    values += params.lora.rank * len(set(params.lora.targets))
    return _BF16_BYTES * values + 4 * (2 + config.heads)


def allocated_bytes(config: LlamaConfig, params: TrainParams, row_tokens: int, *, device: str = "cuda") -> int:
    """The peak of what PyTorch allocates on a device, cuda or cpu, for rows of at most `row_tokens` tokens."""
    sizes = model_sizes(config, params)
    fixed = sizes.linear * _NF4_BYTES + sizes.embeddings * _BF16_BYTES + sizes.lora * _LORA_BYTES[params.optimizer]
    n_again = round(params.recomputed_share * config.blocks)
    block = kept_bytes_per_token(config, params) * row_tokens
    kept = (config.blocks - n_again) * block + n_again * _BF16_BYTES * config.hidden_size * row_tokens
    again = block if n_again else 0
    head = 2 * _HEAD_ROWS[device] * config.vocab_size * _BF16_BYTES + 3 * _BF16_BYTES * config.hidden_size * row_tokens
    hidden, feed = config.hidden_size, config.feed_forward_length
    backward = _BF16_BYTES * (row_tokens * (6 * feed + 3 * hidden) + 2 * feed * hidden)
    return round(fixed + kept + again + max(head, backward))


def needed_device_bytes(config: LlamaConfig, params: TrainParams, row_tokens: int) -> int:
    """What must be free on the device before training."""
    return allocated_bytes(config, params, row_tokens) + round(_CUDA_CONTEXT_BYTES)


def needed_host_bytes(config: LlamaConfig, params: TrainParams, row_tokens: int) -> int:
    """The peak of a training process without a GPU."""
    return round(_HOST_LIBRARIES_BYTES + _HOST_FACTOR * allocated_bytes(config, params, row_tokens, device="cpu"))


def longest_row(steps: Sequence[Sequence[int]], tokens_per_microbatch: int) -> int:
    """Tokens of the longest row, given the lengths of the sequences of every step."""
    from karma_electric.training.packing import pack

    rows = (sum(step[place] for place in row) for step in steps for row in pack(step, tokens_per_microbatch)[0])
    return max(rows)


def flops_per_token(config: LlamaConfig, params: TrainParams, learned_share: float) -> float:
    """As training/packed_llama.py counts them: 4 for a frozen weight, 6 for a trained one, the head where it learns."""
    sizes = model_sizes(config, params)
    return 4.0 * sizes.linear + 6.0 * sizes.lora + 4.0 * learned_share * config.vocab_size * config.hidden_size
