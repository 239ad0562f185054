"""What a GGUF file of a Llama says about it beside its tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf

from karma_electric.gguf_files.llama_config import LlamaConfig
from karma_electric.gguf_files.reader import SOURCE_KEY
from karma_electric.gguf_files.vocabulary import Vocabulary
from karma_electric.integrity import MANIFEST_NAME, sha256_file


def add_metadata(
    writer: gguf.GGUFWriter,
    model_folder: Path,
    config: LlamaConfig,
    vocabulary: Vocabulary,
    *,
    name: str,
    file_type: int,
    is_quantized: bool,
) -> None:
    """Add every key. A quantised file has the keys about types at the end, as llama.cpp's quantiser leaves them.

    A folder with a manifest is named by that manifest's sha256, so that an axis can be held against the weights.
    """
    writer.add_type("model")
    writer.add_name(name)
    if not is_quantized:
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, config)
    if (manifest := model_folder / MANIFEST_NAME).is_file():
        writer.add_string(SOURCE_KEY, sha256_file(manifest))
    add_vocabulary(writer, vocabulary)
    if is_quantized:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(file_type)


def _add_sizes(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
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


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write the tokenizer: tokens, types, merges, special tokens, and the chat template if there is one."""
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
