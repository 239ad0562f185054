"""Which type llama.cpp's quantiser stores a tensor in: the mixes of Q4_K_M and its kind, and where rows do not fit.

The rule is that of llama_tensor_get_type in llama.cpp's src/llama-quant.cpp, for the Llama architecture without experts
and without an importance matrix. Tests hold it against llama.cpp's own files.
"""

from __future__ import annotations

import re
from typing import Final

from karma_electric.errors import InputError
from karma_electric.gguf_files.llama_config import LlamaConfig
from karma_electric.gguf_files.type_codes import TENSOR_TYPES

_DEFAULTS: Final = {"Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K"}
_MIXED: Final = ("Q5_K_M", "Q4_K_M")  # attn_v and ffn_down of some blocks get Q6_K
_FOR_OTHER_ROWS: Final = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # rows that are no multiple of 256 values
_BLOCK_VALUES: Final = {name: values for name, values, _ in TENSOR_TYPES.values()}
_BLOCKS_OF_70B: Final = 80
_BLOCK_TENSOR: Final = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def stored_type(gguf_type: str, name: str, row_length: int, config: LlamaConfig) -> str:
    """The type of the matrix `name`, whose rows have `row_length` values, in a file of type `gguf_type`.

    Raises InputError for rows that Q8_0 cannot hold: llama.cpp knows nothing to store them in.
    """
    chosen = _preferred_type(gguf_type, name, row_length, config)
    if row_length % _BLOCK_VALUES[chosen] == 0:
        return chosen
    if chosen not in _FOR_OTHER_ROWS:
        raise InputError(
            f"{name}: rows of {row_length} values cannot be stored as {chosen}, expected a multiple of 32; take F16"
        )
    other = _FOR_OTHER_ROWS[chosen]
    return other if row_length % _BLOCK_VALUES[other] == 0 else "F16"


def _preferred_type(gguf_type: str, name: str, row_length: int, config: LlamaConfig) -> str:
    default = _DEFAULTS[gguf_type]
    if name == "output.weight" or (config.tied_embeddings and name == "token_embd.weight"):
        return "Q8_0" if default == "Q8_0" or row_length % _BLOCK_VALUES[default] else "Q6_K"
    found = _BLOCK_TENSOR.fullmatch(name)
    if found is None or gguf_type not in _MIXED:
        return default
    block, part = int(found[1]), found[2]
    if part in ("attn_v", "ffn_down") and _takes_more_bits(block, config.blocks):
        return "Q6_K"
    is_70b = config.blocks == _BLOCKS_OF_70B and config.heads != config.key_value_heads
    if part == "attn_v" and is_70b and default == "Q4_K":  # eight heads share it, so it is small
        return "Q5_K"
    return default


def _takes_more_bits(block: int, blocks: int) -> bool:
    """The first and the last eighth, and every third block between them."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2
