from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files import writer
from karma_electric.gguf_files.model_tensors import ModelTensors
from karma_electric.gguf_files.planned_tensors import restore_pairs, rotate_pairs
from karma_electric.gguf_files.reader import read_header
from karma_electric.gguf_files.reference import reference_logits
from karma_electric.gguf_files.stored_weights import read_rows
from karma_electric.gguf_files.writer import write_gguf
from tests.gguf_files.variants import copy_of, edit_json, in_two_shards, with_random_weights

TOKEN_IDS = [1, *range(100, 400, 3), 2]
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def llama_cpp_logits(path: Path) -> NDArray[np.float32]:
    engine = LlamaCppEngine(path, cache_type="f32", context_tokens=256, threads=1)
    try:
        logits: NDArray[np.float32] = engine.all_logits(TOKEN_IDS)
    finally:
        engine.close()
    return logits


def pytorch_logits(model: Path) -> NDArray[np.float32]:
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: NDArray[np.float32] = network(torch.tensor([TOKEN_IDS])).logits[0].numpy()
    return logits


def tensors_of(path: Path) -> dict[str, NDArray[np.float32]]:
    header = read_header(path)
    return {t.name: read_rows(path, header, t, np.arange(int(np.prod(t.shape[1:])))) for t in header.tensors}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "shape",
    [{}, {"head_dim": 32}, {"rope_parameters": ROPE}, {"num_key_value_heads": 4, "rms_norm_eps": 0.01}],
    ids=["tiny", "small heads", "llama3 rope", "no grouping"],
)
def test_llama_cpp_computes_what_pytorch_computes(
    tiny_llama: Path, tmp_path: Path, shape: dict[str, Any], tied: bool
) -> None:
    model = with_random_weights(tiny_llama, tmp_path / "model", tie_word_embeddings=tied, **shape)
    write_gguf(model, tmp_path / "f32.gguf", gguf_type="F32", name="tiny")
    expected = pytorch_logits(model)
    assert expected.std() > 0.3  # there is something to compare
    np.testing.assert_allclose(llama_cpp_logits(tmp_path / "f32.gguf"), expected, rtol=0, atol=2e-4)
    names = {tensor.name for tensor in read_header(tmp_path / "f32.gguf").tensors}
    assert ("output.weight" in names) == (not tied)
    assert ("rope_freqs.weight" in names) == ("rope_parameters" in shape)


def test_the_streamed_reference_is_pytorch(tiny_llama: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        reference_logits(tiny_llama, ModelTensors(tiny_llama), TOKEN_IDS), pytorch_logits(tiny_llama)
    )
    untied = with_random_weights(tiny_llama, tmp_path / "model", tie_word_embeddings=False, rope_parameters=ROPE)
    np.testing.assert_array_equal(reference_logits(untied, ModelTensors(untied), TOKEN_IDS), pytorch_logits(untied))


def test_llama3_factors_are_in_the_file_because_they_matter(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_random_weights(tiny_llama, tmp_path / "model", rope_parameters=ROPE)
    monkeypatch.setattr("karma_electric.gguf_files.llama_config._rope_factors", lambda *_: None)
    write_gguf(model, tmp_path / "without.gguf", gguf_type="F32", name="tiny")
    assert np.abs(llama_cpp_logits(tmp_path / "without.gguf") - pytorch_logits(model)).max() > 0.01


@pytest.mark.parametrize("gguf_type", ["F32", "F16", "BF16"])
def test_values_are_those_of_the_folder(tiny_llama: Path, tmp_path: Path, gguf_type: writer.UnquantizedType) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama, path, gguf_type=gguf_type, name="tiny")
    stored = tensors_of(path)
    source = {name: tensor.to(torch.float32) for name, tensor in load_file(tiny_llama / "model.safetensors").items()}
    exact = {
        "token_embd.weight": source["model.embed_tokens.weight"],
        "blk.2.ffn_down.weight": source["model.layers.2.mlp.down_proj.weight"],
        "blk.2.attn_k.weight": rotate_pairs(source["model.layers.2.self_attn.k_proj.weight"], 2),
        "output_norm.weight": source["model.norm.weight"].reshape(1, -1),
    }
    for name, values in exact.items():
        expected = values.numpy() if gguf_type != "F16" else values.numpy().astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(stored[name], expected)
    types = {t.name: t.type for t in read_header(path).tensors}
    assert {t for name, t in types.items() if "norm" in name} == {"F32"}
    assert {t for name, t in types.items() if "norm" not in name} == {gguf_type}


def test_pairs_are_interleaved() -> None:
    rows = torch.arange(12).reshape(12, 1)  # two heads of six values
    assert rotate_pairs(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(restore_pairs(rotate_pairs(rows, 2), 2), rows)


def test_the_metadata_is_complete(tiny_llama: Path, tmp_path: Path) -> None:
    model = with_random_weights(tiny_llama, tmp_path / "model", head_dim=32)
    write_gguf(model, tmp_path / "tiny.gguf", gguf_type="F16", name="karma-tiny")
    metadata = read_header(tmp_path / "tiny.gguf").metadata
    model_keys = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}
    assert model_keys == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "karma-tiny",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "llama.vocab_size": 512,
        "llama.context_length": 2048,
        "llama.embedding_length": 256,
        "llama.block_count": 4,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 10_000.0,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    }
    tokenizer = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    assert tokenizer["tokenizer.ggml.model"] == "gpt2"
    assert tokenizer["tokenizer.ggml.pre"] == "smollm"
    assert tokenizer["tokenizer.ggml.eot_token_id"] == 2
    assert tokenizer["tokenizer.ggml.add_bos_token"] is False
    assert tokenizer["tokenizer.ggml.add_space_prefix"] is False
    assert len(tokenizer["tokenizer.ggml.tokens"]) == len(tokenizer["tokenizer.ggml.token_type"]) == 512
    assert tokenizer["tokenizer.chat_template"] == (tiny_llama / "chat_template.jinja").read_text()


def test_shards_give_the_bytes_of_one_file(tiny_llama: Path, tmp_path: Path) -> None:
    sharded = in_two_shards(tiny_llama, tmp_path / "sharded")
    write_gguf(copy_of(tiny_llama, tmp_path / "whole"), tmp_path / "one.gguf", gguf_type="F16", name="tiny")
    write_gguf(sharded, tmp_path / "two.gguf", gguf_type="F16", name="tiny")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


INDEX_FAULTS = {
    "file gone": "cannot be read as safetensors",
    "tensor unnamed": "the tensor model.norm.weight is not in model.safetensors.index.json",
    "tensor elsewhere": "the tensor lm_head.weight is missing, though",
    "outside": "expected a .safetensors file of the same folder",
    "no map": "expected a weight_map of names to files",
    "both": "expected, both are there",
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_a_wrong_index_is_refused(tiny_llama: Path, tmp_path: Path, fault: str) -> None:
    model = in_two_shards(tiny_llama, tmp_path / "model")
    index = model / "model.safetensors.index.json"
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    if fault == "file gone":
        (model / second).unlink()
    elif fault == "tensor unnamed":
        edit_json(index, lambda value: value["weight_map"].pop("model.norm.weight"))
    elif fault == "tensor elsewhere":
        edit_json(index, lambda value: value["weight_map"].update({"lm_head.weight": first}))
    elif fault == "outside":
        edit_json(index, lambda value: value["weight_map"].update({"model.norm.weight": f"../model/{second}"}))
    elif fault == "no map":
        index.write_text("{}")
    else:
        (model / "model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes())
    with pytest.raises(InputError if fault == "both" else IntegrityError, match=str(model)) as caught:
        write_gguf(model, tmp_path / "x.gguf", gguf_type="F16", name="tiny")
    assert INDEX_FAULTS[fault] in str(caught.value)
    assert not list(tmp_path.glob("*.gguf*"))


def change_tensors(model: Path, **changes: torch.Tensor | None) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


NORM = "model.norm.weight"
BIAS = "model.layers.0.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NORM: None}, f"the tensor {NORM} is missing"),
        ({NORM: torch.ones(128)}, rf"{NORM} has the shape \(128,\), config.json makes it \(256,\)"),
        ({BIAS: torch.ones(256)}, f"the tensor {BIAS} has no place in a Llama GGUF"),
        ({NORM: torch.full((256,), float("nan"))}, f"{NORM} is not finite as F32"),
        ({"model.embed_tokens.weight": torch.full((512, 256), 1e5)}, "embed_tokens.weight is not finite as F16"),
        ({"lm_head.weight": torch.zeros(512, 256)}, "tie_word_embeddings is true, but lm_head.weight differs"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tiny_llama: Path, tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    change_tensors(model, **changes)
    with pytest.raises(InputError, match=message):
        write_gguf(model, tmp_path / "x.gguf", gguf_type="F16", name="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_follows_from_the_rest_may_be_there_too(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    embeddings = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    extra = {"lm_head.weight": embeddings.clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32)}
    change_tensors(model, **extra)
    write_gguf(model, tmp_path / "more.gguf", gguf_type="F16", name="tiny")
    write_gguf(copy_of(tiny_llama, tmp_path / "plain"), tmp_path / "plain.gguf", gguf_type="F16", name="tiny")
    assert (tmp_path / "more.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_a_damaged_weight_file_or_an_empty_folder_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(IntegrityError, match="cannot be read as safetensors"):
        write_gguf(model, tmp_path / "x.gguf", gguf_type="F16", name="tiny")
    weights.unlink()
    with pytest.raises(InputError, match="neither is there"):
        write_gguf(model, tmp_path / "x.gguf", gguf_type="F16", name="tiny")


MEASURE = """
import re, sys
from pathlib import Path
from karma_electric.gguf_files.writer import write_gguf

def peak_bytes():
    # not getrusage: it starts from the peak of the process that forked this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

tiny, large, output = map(Path, sys.argv[1:])
write_gguf(tiny, output, gguf_type="F16", name="warm")
before = peak_bytes()
write_gguf(large, output, gguf_type="F16", name="large")
print(peak_bytes() - before)
"""


def test_memory_is_a_few_tensors_and_never_the_model(tiny_llama: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 10, "head_dim": 256}
    model = with_random_weights(tiny_llama, tmp_path / "model", **shape)
    size_bytes = (model / "model.safetensors").stat().st_size
    assert size_bytes > 180_000_000
    command = [sys.executable, "-c", MEASURE, str(tiny_llama), str(model), str(tmp_path / "x.gguf")]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    growth_bytes = int(result.stdout.split()[-1])
    assert growth_bytes < 12 * 2048 * 1024 * 2  # a dozen of the largest tensors, 50 MB
