from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig as HuggingFaceConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from karma_electric.errors import InputError
from karma_electric.gguf_files.llama_config import read_llama_config
from tests.gguf_files.variants import edit_json

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def config_folder(tiny_llama: Path, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    return tmp_path


def change(folder: Path, **keys: Any) -> None:
    edit_json(folder / "config.json", lambda config: config.update(keys))


def test_the_tiny_models_sizes(config_folder: Path) -> None:
    config = read_llama_config(config_folder)
    assert (config.hidden_size, config.blocks, config.heads, config.key_value_heads, config.head_size) == (
        256,
        4,
        4,
        2,
        64,
    )
    assert config.tied_embeddings
    assert config.rope_factors is None


def test_what_is_not_stated_follows_as_in_transformers(config_folder: Path) -> None:
    change(config_folder, num_attention_heads=8)
    unstated = ("head_dim", "num_key_value_heads", "rope_parameters", "tie_word_embeddings")
    edit_json(config_folder / "config.json", lambda config: [config.pop(key, None) for key in unstated])
    ours, theirs = read_llama_config(config_folder), HuggingFaceConfig.from_pretrained(config_folder)
    assert (ours.head_size, ours.key_value_heads) == (theirs.head_dim, theirs.num_key_value_heads) == (32, 8)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.tied_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling", "rope_scaling with type"])
def test_llama3_factors_are_those_of_transformers(config_folder: Path, spelling: str) -> None:
    change(config_folder, head_dim=128, max_position_embeddings=131_072)
    if spelling == "rope_parameters":
        change(config_folder, rope_parameters={"rope_theta": 500_000.0, **LLAMA31})
    else:
        scaling: dict[str, Any] = dict(LLAMA31)
        if spelling.endswith("type"):
            scaling["type"] = scaling.pop("rope_type")
        edit_json(config_folder / "config.json", lambda config: config.pop("rope_parameters"))
        change(config_folder, rope_theta=500_000.0, rope_scaling=scaling)
    ours = read_llama_config(config_folder)
    assert ours.rope_theta == 500_000.0
    assert ours.rope_factors is not None
    theirs = HuggingFaceConfig.from_pretrained(config_folder)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    plain = 1.0 / 500_000.0 ** (np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / ours.rope_factors, scaled.numpy(), rtol=1e-5)
    assert ours.rope_factors.min() == 1.0
    assert ours.rope_factors.max() == 8.0
    assert len(np.unique(ours.rope_factors)) > 3  # some are in between


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, r"architectures is \['MistralForCausalLM'\], expected"),
        ({"architectures": None}, "architectures is None"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is"),
        ({"hidden_size": None}, "hidden_size is None, expected a whole number"),
        ({"num_hidden_layers": 4.0}, "num_hidden_layers is 4.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"num_key_value_heads": 3}, "4 heads over 3 key-value heads"),
        ({"head_dim": 63}, "of size 63"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "both rope_parameters and rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0"),
        ({"rope_parameters": []}, r"rope_parameters is \[\]"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is None"),
        ({"rope_parameters": LLAMA31 | {"low_freq_factor": 4.0}}, "expected low < high"),
    ],
)
def test_what_cannot_be_written_is_refused_by_key(config_folder: Path, keys: dict[str, Any], message: str) -> None:
    change(config_folder, **keys)
    with pytest.raises(InputError, match=message) as caught:
        read_llama_config(config_folder)
    assert str(config_folder / "config.json") in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 5000])
def test_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        read_llama_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_llama_config(tmp_path)
