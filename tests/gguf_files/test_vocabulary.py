from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.errors import InputError
from karma_electric.gguf_files.reader import read_header
from karma_electric.gguf_files.vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    load_tokenizer,
    parse_merges,
    read_vocabulary,
)
from karma_electric.gguf_files.writer import write_gguf
from tests.gguf_files.variants import (
    BYTES_AND_WORDS,
    copy_of,
    edit_json,
    retrain,
    use_llama3,
    use_words_only,
    with_random_weights,
)

# unassigned code points are left out: the two libraries carry different versions of Unicode
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
FRAGMENTS = st.sampled_from(
    [
        "  ",
        "\n\n",
        "\r\n",
        "\t",
        "123",
        " 4567",
        "'s",
        "'LL",
        " if",
        ");\n",
        "<|im_end|>",
        "<|im_start|>",
        "<tool>",
        "ř",
    ]
)
TEXTS = st.lists(st.text(CHARACTERS, max_size=12) | FRAGMENTS, max_size=12).map("".join)


def one_digit_each(spec: dict[str, Any]) -> None:
    spec["pre_tokenizer"] = nested({"type": "Digits", "individual_digits": True}, BYTES_AND_WORDS)


def change(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda spec: spec["model"].update({key: value})


def nested(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


VARIANTS = {"smollm": one_digit_each, "gpt-2": use_words_only, "llama-bpe": use_llama3}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: Any) -> Iterator[tuple[Any, Any]]:
    """(Hugging Face tokenizer, llama.cpp) of one pre-tokenizer, with a user-defined token and unused ids."""
    folder = tmp_path_factory.mktemp("vocabulary")
    model = with_random_weights(tiny_llama, folder / "model", vocab_size=1000, num_hidden_layers=1)
    edit_json(model / "tokenizer.json", VARIANTS[request.param])
    retrain(model)
    edit_json(model / "tokenizer.json", add_tool)
    write_gguf(model, folder / "f16.gguf", gguf_type="F16", name="tiny")
    assert read_header(folder / "f16.gguf").metadata["tokenizer.ggml.pre"] == request.param
    engine = LlamaCppEngine(folder / "f16.gguf", threads=1)
    yield load_tokenizer(model), engine
    engine.close()


def add_tool(spec: dict[str, Any]) -> None:
    token = dict(spec["added_tokens"][0], id=len(spec["model"]["vocab"]), content="<tool>", special=False)
    spec["added_tokens"].append(token)


@given(text=TEXTS, special=st.booleans())
@settings(max_examples=200)
def test_token_ids_are_those_of_the_hugging_face_tokenizer(pair: tuple[Any, Any], text: str, special: bool) -> None:
    tokenizer, engine = pair
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
    assert engine.tokenize(text, parse_special=special) == expected


def test_each_way_of_splitting_gives_other_ids(tiny_llama: Path, tmp_path: Path) -> None:
    """Or the test above would pass with any name."""
    found = []
    for name, edit in VARIANTS.items():
        model = copy_of(tiny_llama, tmp_path / name)
        edit_json(model / "tokenizer.json", use_words_only)
        retrain(model)
        edit_json(model / "tokenizer.json", edit)
        found.append(load_tokenizer(model)("if (x  1234);\n it's", add_special_tokens=False)["input_ids"])
    assert len({tuple(ids) for ids in found}) == len(VARIANTS)


def test_types_ids_and_flags(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    edit_json(model / "tokenizer.json", add_tool)
    size = len(load_tokenizer(model))
    vocabulary = read_vocabulary(model, size + 2)
    assert vocabulary.tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert vocabulary.token_types == [CONTROL] * 3 + [NORMAL] * (size - 4) + [USER_DEFINED] + [UNUSED] * 2
    assert vocabulary.tokens[-3:] == ["<tool>", f"[PAD{size}]", f"[PAD{size + 1}]"]
    ids = (vocabulary.unknown_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id, vocabulary.eot_id)
    assert ids == (0, 1, 2, 2, 2)
    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, False)
    assert vocabulary.chat_template == (model / "chat_template.jinja").read_text()


def test_add_bos_is_what_encoding_does(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    edit_json(model / "tokenizer.json", use_llama3)
    assert read_vocabulary(model, 512).add_bos
    edit_json(model / "tokenizer.json", lambda spec: spec["post_processor"]["single"].reverse())
    with pytest.raises(InputError, match="encodes 'a' as"):
        read_vocabulary(model, 512)


def test_the_end_of_a_turn_is_seen_in_the_template(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}")
    assert read_vocabulary(model, 512).eot_id == 0
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    assert read_vocabulary(model, 512).eot_id is None
    template.write_text("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match="the chat template fails"):
        read_vocabulary(model, 512)
    template.unlink()
    vocabulary = read_vocabulary(model, 512)
    assert (vocabulary.eot_id, vocabulary.chat_template) == (None, None)


def test_a_template_in_tokenizer_config_counts_too(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    text = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    edit_json(model / "tokenizer_config.json", lambda config: config.update(chat_template=text))
    assert read_vocabulary(model, 512).chat_template == text


def test_merges_in_both_spellings(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    expected = read_vocabulary(model, 512)
    spec = json.loads((model / "tokenizer.json").read_text("utf-8"))
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in spec["model"]["merges"]]
    for merges in (pairs, [" ".join(pair) for pair in pairs]):
        edit_json(model / "tokenizer.json", change("merges", merges))
        assert read_vocabulary(model, 512) == expected
        assert parse_merges(merges, Path("x")) == expected.merges


@pytest.mark.parametrize("merge", ["abc", "a b c", ["a"], ["a", "b c"], ["", "b"], 5])
def test_a_broken_merge_is_refused(merge: Any) -> None:
    with pytest.raises(InputError, match="x: merge 2 is"):
        parse_merges(["a b", merge], Path("x"))


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {"type": "Whitespace"},
        BYTES_AND_WORDS | {"add_prefix_space": True},
        BYTES_AND_WORDS | {"use_regex": False},
        nested({"type": "Digits", "individual_digits": False}, BYTES_AND_WORDS),
        nested({"type": "Punctuation", "behavior": "Isolated"}, BYTES_AND_WORDS),
        nested(
            {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False},
            BYTES_AND_WORDS | {"use_regex": False},
        ),
    ],
)
def test_an_unknown_pre_tokenizer_is_refused(tiny_llama: Path, tmp_path: Path, pre_tokenizer: Any) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    edit_json(model / "tokenizer.json", lambda spec: spec.update(pre_tokenizer=pre_tokenizer))
    with pytest.raises(InputError, match=r"the pre_tokenizer .* is none of gpt-2, smollm, llama-bpe"):
        read_vocabulary(model, 512)


def test_llama3_words_without_ignore_merges_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    edit_json(model / "tokenizer.json", use_llama3)
    edit_json(model / "tokenizer.json", lambda spec: spec["model"].update(ignore_merges=False))
    with pytest.raises(InputError, match=r"Split\+ByteLevel with ignore_merges false is none of"):
        read_vocabulary(model, 512)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("byte_fallback", True), "byte-level BPE without byte_fallback"),
        (change("dropout", 0.1), "model.dropout is 0.1"),
        (change("end_of_word_suffix", "</w>"), "model.end_of_word_suffix"),
        (lambda spec: spec.update(normalizer={"type": "NFC"}), "has the normalizer NFC"),
        (lambda spec: spec["added_tokens"][1].update(lstrip=True), "'<|im_start|>' has lstrip"),
        (lambda spec: spec["added_tokens"][2].update(single_word=True), "'<|im_end|>' has single_word"),
        (lambda spec: spec.pop("model"), "cannot be loaded"),
        (lambda spec: spec["model"]["vocab"].update({"[PAD513]": 512}), "'[PAD513]' has the id 512"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(
    tiny_llama: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    edit_json(model / "tokenizer.json", edit)
    with pytest.raises(InputError) as caught:
        read_vocabulary(model, 514)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(model / "tokenizer.json"))


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the token id 511 is beyond the model's 500 embeddings"):
        read_vocabulary(tiny_llama, 500)
    model = copy_of(tiny_llama, tmp_path / "model")
    edit_json(model / "tokenizer_config.json", lambda config: config.pop("eos_token"))
    with pytest.raises(InputError, match="has no eos_token"):
        read_vocabulary(model, 512)
    (model / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: missing"):
        read_vocabulary(model, 512)
