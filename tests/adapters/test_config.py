"""Only configurations whose update is exactly (alpha / rank) x B A pass."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.adapters.config import compose_configuration, parse_lora_configuration
from karma_electric.errors import InputError
from tests.adapters.adapter_files import plain_config

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj"


def config(**more: Any) -> dict[str, Any]:
    return plain_config(4, 8, ["q_proj", "down_proj"], **more)


REFUSED = [
    ("use_rslora", True, "sqrt"),
    ("use_dora", True, "not a product"),
    ("lora_bias", True, "bias"),
    ("bias", "all", "bias is 'all'"),
    ("bias", "lora_only", "bias is 'lora_only'"),
    ("bias", None, "bias is None"),
    ("modules_to_save", ["lm_head"], "whole trained modules"),
    ("trainable_token_indices", [1], "token rows"),
    ("fan_in_fan_out", True, "transposed"),
    ("target_parameters", ["experts"], "target_parameters"),
    ("layer_replication", [[0, 2]], "replicated"),
    ("layers_to_transform", [1], "layers_to_transform"),
    ("use_qalora", True, "use_qalora"),
    ("alora_invocation_tokens", [1], "alora"),
    ("a_key_of_tomorrow", {"x": 1}, "not known"),
    ("peft_type", "LOHA", "'LOHA'"),
    ("peft_type", None, "expected 'LORA'"),
    ("init_lora_weights", "pissa", "changes the base"),
    ("init_lora_weights", "olora", "changes the base"),
    ("init_lora_weights", ["loftq"], "changes the base"),
    ("r", 0, "r is 0"),
    ("r", True, "r is True"),
    ("r", 4.0, "r is 4.0"),
    ("r", None, "r is None"),
    ("lora_alpha", 0, "lora_alpha is 0"),
    ("lora_alpha", -8, "lora_alpha is -8"),
    ("lora_alpha", "8", "lora_alpha is '8'"),
    ("lora_alpha", float("inf"), "lora_alpha is inf"),
    ("lora_alpha", 10**400, "lora_alpha is"),
    ("target_modules", "all-linear", "expected a list"),
    ("target_modules", r".*proj", "expected a list"),
    ("target_modules", [], "expected a list"),
    ("target_modules", [1], "expected a list"),
    ("rank_pattern", {"(a+)+": 2}, "not a plain module name"),
    ("rank_pattern", {"q_proj|k_proj": 2}, "not a plain module name"),
    ("rank_pattern", ["q_proj"], "expected an object"),
    ("rank_pattern", {"q_proj": 0}, "q_proj is 0"),
    ("alpha_pattern", {"q_proj": "x"}, "q_proj is 'x'"),
    ("base_model_name_or_path", 1, "expected text"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_a_configuration_of_another_kind_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_lora_configuration({**config(), key: value}, "there/adapter_config.json")
    assert str(caught.value).startswith("there/adapter_config.json: ")
    assert len(str(caught.value)) < 400


def test_neutral_values_pass() -> None:
    parsed = parse_lora_configuration(
        config(use_rslora=False, modules_to_save=None, layer_replication=[], eva_config={}, lora_dropout=0.5), "c"
    )
    assert (parsed.rank_of(Q), parsed.alpha_of(Q)) == (4, 8.0)
    assert parsed.targets(Q)
    assert parsed.targets("q_proj")
    assert not parsed.targets("model.layers.0.self_attn.xq_proj")
    assert not parsed.targets("model.layers.0.self_attn.k_proj")


PARTS = ["model", "layers", "0", "1", "11", "self_attn", "q_proj", "down_proj"]
DOTTED = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join)


@given(st.dictionaries(st.builds(str.__add__, st.sampled_from(["", "^"]), DOTTED), st.integers(1, 9)), DOTTED)
def test_patterns_are_read_as_peft_reads_them(pattern: dict[str, int], module: str) -> None:
    from peft.utils.other import get_pattern_key

    parsed = parse_lora_configuration(config(rank_pattern=pattern, alpha_pattern=pattern), "c")
    expected = pattern.get(get_pattern_key(list(pattern), module), 4)
    assert parsed.rank_of(module) == expected
    assert parsed.alpha_of(module) == pattern.get(get_pattern_key(list(pattern), module), 8)


@given(
    st.dictionaries(DOTTED, st.tuples(st.integers(1, 3), st.sampled_from([1.0, 2.0, 2.5])), min_size=1, max_size=6),
)
def test_a_composed_configuration_gives_the_ranks_back(modules: dict[str, tuple[int, float]]) -> None:
    parents = [parse_lora_configuration(config(task_type="CAUSAL_LM", base_model_name_or_path=n), "c") for n in "ab"]
    composed = compose_configuration(modules, parents)
    parsed = parse_lora_configuration(composed, "c")
    ambiguous = {name for name in modules for other in modules if other != name and name.endswith(f".{other}")}
    for name in modules.keys() - ambiguous:
        assert (parsed.rank_of(name), parsed.alpha_of(name)) == modules[name]
    assert composed["task_type"] == "CAUSAL_LM"
    assert composed["base_model_name_or_path"] is None
