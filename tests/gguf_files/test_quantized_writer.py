"""Our quantised files against those of llama.cpp's own quantiser, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from karma_electric.errors import InputError, SetupError
from karma_electric.gguf_files import native_quantizer, quantized_writer
from karma_electric.gguf_files.llama_cpp_quantizer import quantize_gguf
from karma_electric.gguf_files.native_quantizer import load_row_quantizer
from karma_electric.gguf_files.quantized_writer import FILE_TYPES, write_quantized_gguf
from karma_electric.gguf_files.reader import read_header
from karma_electric.gguf_files.writer import write_gguf
from tests.gguf_files.variants import in_two_shards, with_random_weights

# 576 and 320 are no multiples of 256, as the rows of SmolLM2-135M; heads are of 64 and 32 values
OTHER_ROWS = {"hidden_size": 576, "intermediate_size": 320, "num_attention_heads": 9, "num_key_value_heads": 3}
ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def assert_same_bytes(model: Path, folder: Path, gguf_type: str, threads: int = 2) -> set[str]:
    """Both ways to the same file; the types in it."""
    f16, ours, theirs = (folder / f"{name}.gguf" for name in ("f16", "ours", "theirs"))
    write_gguf(model, f16, gguf_type="F16", name="tiny")
    quantize_gguf(f16, theirs, gguf_type, 1)
    write_quantized_gguf(model, ours, gguf_type=gguf_type, name="tiny", threads=threads)
    assert ours.read_bytes() == theirs.read_bytes()
    return {tensor.type for tensor in read_header(ours).tensors}


@pytest.mark.parametrize("gguf_type", FILE_TYPES)
@pytest.mark.parametrize(("rows", "most_types"), [({}, 3), (OTHER_ROWS, 4)])
def test_a_file_is_that_of_llama_cpp(
    tiny_llama: Path, tmp_path: Path, gguf_type: str, rows: dict[str, int], most_types: int
) -> None:
    """Nine blocks: the first and last eighths, and every third, take more bits."""
    model = with_random_weights(tiny_llama, tmp_path / "model", num_hidden_layers=9, **rows)
    types = assert_same_bytes(model, tmp_path, gguf_type)
    assert {"F32"} < types
    assert len(types) <= most_types
    if rows and gguf_type == "Q4_K_M":
        assert types == {"F32", "Q5_0", "Q8_0"}


def test_other_shapes_are_those_of_llama_cpp(tiny_llama: Path, tmp_path: Path) -> None:
    untied = with_random_weights(
        tiny_llama, tmp_path / "untied", tie_word_embeddings=False, vocab_size=530, num_hidden_layers=2,
        rope_parameters=ROPE | {"original_max_position_embeddings": 64},
    )  # fmt: skip
    assert_same_bytes(untied, tmp_path, "Q4_K_M")
    assert_same_bytes(in_two_shards(tiny_llama, tmp_path / "sharded"), tmp_path, "Q5_K_M", threads=5)
    narrow = with_random_weights(
        tiny_llama, tmp_path / "narrow", intermediate_size=48, hidden_size=64, num_attention_heads=2,
        num_key_value_heads=2, num_hidden_layers=2,
    )  # fmt: skip
    assert "F16" in assert_same_bytes(narrow, tmp_path, "Q4_K_M")
    with pytest.raises(InputError, match=r"ffn_down\.weight: rows of 48 values cannot be stored as Q8_0"):
        write_quantized_gguf(narrow, tmp_path / "x.gguf", gguf_type="Q8_0", name="tiny")


@pytest.mark.long
@pytest.mark.parametrize("blocks", [80, 32, 13])
def test_the_mix_of_other_depths_is_that_of_llama_cpp(tiny_llama: Path, tmp_path: Path, blocks: int) -> None:
    """80 blocks are a 70B model's, which has a rule of its own."""
    model = with_random_weights(tiny_llama, tmp_path / "model", num_hidden_layers=blocks)
    for gguf_type in FILE_TYPES:
        assert_same_bytes(model, tmp_path, gguf_type)


@pytest.mark.long
@pytest.mark.parametrize("gguf_type", FILE_TYPES)
def test_the_embedded_model_is_that_of_llama_cpp(tmp_path: Path, gguf_type: str) -> None:
    from karma_electric.base_model.make import make_base
    from karma_electric.recipe import read_recipe

    make_base(read_recipe(Path("params.yaml")).base, tmp_path / "base")
    assert_same_bytes(tmp_path / "base", tmp_path, gguf_type)


def test_small_pieces_give_the_same_bytes(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = tmp_path / "whole.gguf", tmp_path / "pieces.gguf"
    write_quantized_gguf(tiny_llama, whole, gguf_type="Q4_K_M", name="tiny", threads=1)
    monkeypatch.setattr(quantized_writer, "_CHUNK_VALUES", 1000)
    write_quantized_gguf(tiny_llama, pieces, gguf_type="Q4_K_M", name="tiny", threads=3)
    assert pieces.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), 1e5])
def test_a_value_that_f16_cannot_hold_leaves_the_last_good_file(tiny_llama: Path, tmp_path: Path, value: float) -> None:
    model = with_random_weights(tiny_llama, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][300, 7] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    output = tmp_path / "tiny.gguf"
    output.write_bytes(b"the last good file")
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.up_proj\.weight is not finite as F16"):
        write_quantized_gguf(model, output, gguf_type="Q4_K_M", name="tiny", threads=2)
    assert output.read_bytes() == b"the last good file"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "tiny.gguf"}


def test_a_library_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    library = native_quantizer._functions()

    class Wrong:
        ggml_row_size = library.ggml_row_size
        ggml_validate_row_data = library.ggml_validate_row_data

        @staticmethod
        def ggml_quantize_chunk(*arguments: int) -> int:
            return int(library.ggml_quantize_chunk(*arguments)) - 1

    load_row_quantizer.cache_clear()
    monkeypatch.setattr(native_quantizer, "_functions", Wrong)
    with pytest.raises(SetupError, match="gave no valid rows"):
        load_row_quantizer()
    monkeypatch.setattr(Wrong, "ggml_row_size", lambda *_: 7)
    with pytest.raises(SetupError, match="a row of 256 values as Q8_0 has 7 bytes"):
        load_row_quantizer()
    monkeypatch.undo()
    load_row_quantizer.cache_clear()
    with pytest.raises(ValueError, match="contiguous rows of float32"):
        load_row_quantizer()(np.zeros((4, 64), np.float32)[:, ::2], "Q8_0")
    assert load_row_quantizer()(torch.zeros(2, 256).numpy(), "Q6_K").shape == (2, 210)
