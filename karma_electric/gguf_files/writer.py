"""A Hugging Face folder of the Llama architecture as one unquantised GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from karma_electric.errors import InputError
from karma_electric.gguf_files.llama_config import LlamaConfig, read_llama_config
from karma_electric.gguf_files.model_tensors import ModelTensors
from karma_electric.gguf_files.reader import SOURCE_KEY
from karma_electric.gguf_files.vocabulary import Vocabulary, read_vocabulary
from karma_electric.integrity import MANIFEST_NAME, atomic_file, sha256_file

UnquantizedType = Literal["F32", "F16", "BF16"]

_TORCH_TYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FILE_TYPES: Final = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}
_OUTPUT_NAME: Final = "lm_head.weight"
_EMBEDDING_NAME: Final = "model.embed_tokens.weight"
_COMPUTED_SUFFIX: Final = ".rotary_emb.inv_freq"  # a table that old checkpoints stored; it follows from the config


@dataclass(frozen=True)
class _Tensor:
    """One tensor to write: where it is from, its shape there, its type here, and how many heads its rows are."""

    name: str
    source: str
    shape: tuple[int, ...]
    type: UnquantizedType
    rotated_heads: int | None = None  # q and k only


def write_gguf(model_folder: Path, output: Path, *, gguf_type: UnquantizedType, name: str) -> None:
    """Write the Llama model in `model_folder` to the GGUF file `output`, atomically.

    Matrices are stored as `gguf_type`, norms and RoPE factors as F32; `name` becomes general.name. One tensor at a time
    is in memory. The same folder gives the same bytes. A folder with a manifest is named in the file by that manifest's
    sha256, so that an axis can be held against the weights that it was made from.

    Raises InputError for another architecture, a tokenizer that llama.cpp cannot reproduce (see vocabulary.py), tensors
    that are missing, unknown or of the wrong shape, and values that are not finite in `gguf_type`.
    """
    config = read_llama_config(model_folder)
    vocabulary = read_vocabulary(model_folder, config.vocab_size)
    source = ModelTensors(model_folder)
    plan = list(_plan(config, gguf_type))
    _check_tensors(source, plan, config)
    with atomic_file(output) as temporary:
        writer = gguf.GGUFWriter(temporary, arch="llama")
        try:
            _add_model(writer, config, gguf_type, name)
            if (manifest := model_folder / MANIFEST_NAME).is_file():
                writer.add_string(SOURCE_KEY, sha256_file(manifest))
            _add_vocabulary(writer, vocabulary)
            _write_tensors(writer, source, plan, config)
        finally:
            writer.close()


def rotate_pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a query or key projection, (heads * head_size, hidden), in ggml's order.

    Hugging Face rotates value i of a head with value i + head_size/2, ggml's `llama` rotates neighbours 2i and 2i + 1;
    so the two halves of each head are interleaved.
    """
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _plan(config: LlamaConfig, matrix: UnquantizedType) -> Iterator[_Tensor]:
    hidden, feed = config.hidden_size, config.feed_forward_length
    queries, keys = config.heads * config.head_size, config.key_value_heads * config.head_size
    yield _Tensor("token_embd.weight", _EMBEDDING_NAME, (config.vocab_size, hidden), matrix)
    for block in range(config.blocks):
        here, there = f"blk.{block}", f"model.layers.{block}"
        attention, feeding = f"{there}.self_attn", f"{there}.mlp"
        yield _Tensor(f"{here}.attn_norm.weight", f"{there}.input_layernorm.weight", (hidden,), "F32")
        yield _Tensor(f"{here}.attn_q.weight", f"{attention}.q_proj.weight", (queries, hidden), matrix, config.heads)
        yield _Tensor(
            f"{here}.attn_k.weight", f"{attention}.k_proj.weight", (keys, hidden), matrix, config.key_value_heads
        )
        yield _Tensor(f"{here}.attn_v.weight", f"{attention}.v_proj.weight", (keys, hidden), matrix)
        yield _Tensor(f"{here}.attn_output.weight", f"{attention}.o_proj.weight", (hidden, queries), matrix)
        yield _Tensor(f"{here}.ffn_norm.weight", f"{there}.post_attention_layernorm.weight", (hidden,), "F32")
        yield _Tensor(f"{here}.ffn_gate.weight", f"{feeding}.gate_proj.weight", (feed, hidden), matrix)
        yield _Tensor(f"{here}.ffn_up.weight", f"{feeding}.up_proj.weight", (feed, hidden), matrix)
        yield _Tensor(f"{here}.ffn_down.weight", f"{feeding}.down_proj.weight", (hidden, feed), matrix)
    yield _Tensor("output_norm.weight", "model.norm.weight", (hidden,), "F32")
    if not config.tied_embeddings:  # without output.weight llama.cpp takes token_embd.weight
        yield _Tensor("output.weight", _OUTPUT_NAME, (config.vocab_size, hidden), matrix)


def _check_tensors(source: ModelTensors, plan: list[_Tensor], config: LlamaConfig) -> None:
    known = {tensor.source for tensor in plan}
    for tensor in plan:
        if (found := source.shape(tensor.source)) != tensor.shape:
            raise InputError(
                f"{source.folder}: {tensor.source} has the shape {found}, config.json makes it {tensor.shape}"
            )
    for name in sorted(source.names - known):
        if config.tied_embeddings and name == _OUTPUT_NAME:
            if not torch.equal(source.load(name), source.load(_EMBEDDING_NAME)):
                raise InputError(
                    f"{source.folder}: tie_word_embeddings is true, but {_OUTPUT_NAME} differs from {_EMBEDDING_NAME}"
                )
        elif not name.endswith(_COMPUTED_SUFFIX):
            raise InputError(f"{source.folder}: the tensor {name} has no place in a Llama GGUF; remove or merge it")


def _add_model(writer: gguf.GGUFWriter, config: LlamaConfig, gguf_type: UnquantizedType, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[gguf_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.blocks)
    writer.add_feed_forward_length(config.feed_forward_length)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_epsilon)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # the name for every byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_types)
    writer.add_token_merges(vocabulary.merges)
    optional: list[tuple[Callable[[int], None], int | None]] = [
        (writer.add_bos_token_id, vocabulary.bos_id),
        (writer.add_eos_token_id, vocabulary.eos_id),
        (writer.add_eot_token_id, vocabulary.eot_id),
        (writer.add_pad_token_id, vocabulary.pad_id),
        (writer.add_unk_token_id, vocabulary.unknown_id),
    ]
    for add, token_id in optional:
        if token_id is not None:
            add(token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _write_tensors(writer: gguf.GGUFWriter, source: ModelTensors, plan: list[_Tensor], config: LlamaConfig) -> None:
    for tensor in plan:
        storage, ggml_type = _storage(tensor.type)
        size_bytes = int(np.prod(tensor.shape)) * storage.itemsize
        writer.add_tensor_info(tensor.name, tensor.shape, storage, size_bytes, raw_dtype=ggml_type)
    factors = config.rope_factors
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan:
        writer.write_tensor_data(_converted(source, tensor))
    if factors is not None:
        writer.write_tensor_data(factors)


def _storage(gguf_type: UnquantizedType) -> tuple[np.dtype[np.generic], gguf.GGMLQuantizationType]:
    """numpy has no bfloat16: its bytes travel as uint16."""
    names = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    return np.dtype(names[gguf_type]), gguf.GGMLQuantizationType[gguf_type]


def _converted(source: ModelTensors, tensor: _Tensor) -> NDArray[np.generic]:
    values = source.load(tensor.source)
    if tensor.rotated_heads is not None:
        values = rotate_pairs(values, tensor.rotated_heads)
    converted = values.to(_TORCH_TYPES[tensor.type]).contiguous()
    if not torch.isfinite(converted).all():
        largest = values.abs().max().item()
        raise InputError(
            f"{source.folder}: {tensor.source} is not finite as {tensor.type} (largest value {largest:g}); "
            "a NaN is a failed training, beyond 65504 takes BF16"
        )
    array: NDArray[np.generic] = converted.view(torch.uint16 if tensor.type == "BF16" else converted.dtype).numpy()
    return array
