"""A byte-level BPE tokenizer of Hugging Face as the vocabulary of a GGUF file.

llama.cpp has its own BPE, and chooses how text is split into words by the name in `tokenizer.ggml.pre`. A name that
does not fit gives other token ids without any error, so a name is only written for a tokenizer that is known to be
split in that way; anything else is refused.

Every code point was compared, in several surroundings, under each of the three names. Two kinds of text still differ:
letters that came with Unicode 16 (llama.cpp's tables are older), and, where a vocabulary lacks the token of a byte,
that byte between two others of one word (SmolLM2 lacks six control characters; both leave them out).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from karma_electric.errors import InputError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type, from llama.h

LLAMA3_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES_AND_WORDS: Final = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES_ONLY: Final = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_ONE_DIGIT: Final = {"type": "Digits", "individual_digits": True}
_LLAMA3_SPLIT: Final = {"type": "Split", "pattern": {"Regex": LLAMA3_WORDS}, "behavior": "Isolated", "invert": False}

# llama.cpp's name -> steps of the pre-tokenizer, and whether a word that is a token skips the merges.
PRE_TOKENIZERS: Final[dict[str, tuple[list[dict[str, Any]], bool]]] = {
    "gpt-2": ([_BYTES_AND_WORDS], False),
    "smollm": ([_ONE_DIGIT, _BYTES_AND_WORDS], False),
    "llama-bpe": ([_LLAMA3_SPLIT, _BYTES_ONLY], True),
}

_TURN_MARK: Final = "karmaturn"


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF stores of a tokenizer. `tokens[i]` has the id i; ids that no token has are filled up and UNUSED."""

    pre_tokenizer: str
    tokens: list[str]
    token_types: list[int]
    merges: list[str]  # two tokens with a space between, best first
    bos_id: int | None
    eos_id: int
    eot_id: int | None  # ends a turn of the chat template
    pad_id: int | None
    unknown_id: int | None
    add_bos: bool
    add_eos: bool
    chat_template: str | None


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers loads it: what every token id is compared with.

    Raises InputError when there is none, or it cannot be loaded from files alone.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder / 'tokenizer.json'}: missing; expected a byte-level BPE tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds, down to the bare Exception of its Rust part
        raise InputError(f"{folder / 'tokenizer.json'}: cannot be loaded ({_first_line(error)})") from error


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary of `folder`'s tokenizer for a model with `vocab_size` rows of embeddings.

    Raises InputError when llama.cpp could not give the same token ids: no byte-level BPE, an unknown pre-tokenizer, a
    normalizer, tokens that swallow spaces, ids beyond the embeddings.
    """
    tokenizer = load_tokenizer(folder)
    where = folder / "tokenizer.json"
    spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    _check_model(spec, where)
    tokens, token_types = _tokens(tokenizer.get_vocab(), spec["added_tokens"], vocab_size, where)
    if tokenizer.eos_token_id is None:
        raise InputError(f"{where}: has no eos_token; llama.cpp would take the token 11 for it")
    add_bos, add_eos = _added_around_text(tokenizer, where)
    control = {index for index, kind in enumerate(token_types) if kind == CONTROL}
    return Vocabulary(
        pre_tokenizer=pre_tokenizer_name(spec, where),
        tokens=tokens,
        token_types=token_types,
        merges=parse_merges(spec["model"]["merges"], where),
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        eot_id=_end_of_turn(tokenizer, control, where),
        pad_id=tokenizer.pad_token_id,
        unknown_id=tokenizer.unk_token_id,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(tokenizer, where),
    )


def pre_tokenizer_name(spec: dict[str, Any], where: Path) -> str:
    """llama.cpp's name for the way that the tokenizer `spec` (the content of tokenizer.json) splits text into words."""
    outer = spec.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", []) if outer.get("type") == "Sequence" else [outer]
    # trim_offsets moves character offsets, never tokens
    found = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    ignore_merges = bool(spec["model"].get("ignore_merges"))
    for name, known in PRE_TOKENIZERS.items():
        if (found, ignore_merges) == known:
            return name
    kinds = "+".join(str(step.get("type")) for step in found)
    raise InputError(
        f"{where}: the pre_tokenizer {kinds} with ignore_merges {str(ignore_merges).lower()} is none of "
        f"{', '.join(PRE_TOKENIZERS)}; llama.cpp would split text in another way, so it is not guessed"
    )


def parse_merges(merges: list[Any], where: Path) -> list[str]:
    """The merges as "left right"; tokenizer.json has them in that form, or as pairs."""
    result = []
    for index, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or any(not part or " " in part for part in parts):
            raise InputError(f"{where}: merge {index + 1} is {merge!r}, expected two tokens without a space in them")
        result.append(" ".join(parts))
    return result


def _check_model(spec: dict[str, Any], where: Path) -> None:
    model = spec["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise InputError(f"{where}: the model is {model.get('type')}, expected a byte-level BPE without byte_fallback")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise InputError(f"{where}: model.{key} is {model[key]!r}, which llama.cpp does not know; expected none")
    if spec.get("normalizer") is not None:
        raise InputError(f"{where}: has the normalizer {spec['normalizer'].get('type')}; llama.cpp applies none")
    for token in spec["added_tokens"]:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise InputError(f"{where}: the added token {token['content']!r} has {flag}, unknown to llama.cpp")


def _tokens(
    vocab: dict[str, int], added: list[dict[str, Any]], vocab_size: int, where: Path
) -> tuple[list[str], list[int]]:
    last = max(vocab.values())
    if last >= vocab_size:
        raise InputError(f"{where}: the token id {last} is beyond the model's {vocab_size} embeddings (vocab_size)")
    added_types = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    by_id = {index: token for token, index in vocab.items()}
    if len(by_id) != len(vocab):
        raise InputError(
            f"{where}: {len(vocab) - len(by_id)} tokens share an id with another; expected one id for each"
        )
    tokens, types = [], []
    for index in range(vocab_size):
        filler = f"[PAD{index}]"
        if index not in by_id and filler in vocab:
            raise InputError(f"{where}: the token {filler!r} has the id {vocab[filler]}, but stands for an unused one")
        tokens.append(by_id.get(index, filler))
        types.append(added_types.get(index, NORMAL) if index in by_id else UNUSED)
    return tokens, types


def _added_around_text(tokenizer: Any, where: Path) -> tuple[bool, bool]:
    """Whether encoding puts bos before, and eos after: seen on a text, because three settings could say so."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    around = tokenizer("a", add_special_tokens=True)["input_ids"]
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for add_bos in (False, True):
        for add_eos in (False, True):
            if around == (bos if add_bos else []) + plain + (eos if add_eos else []):
                return add_bos, add_eos
    raise InputError(f"{where}: encodes 'a' as {around}; expected at most bos {bos} before and eos {eos} after {plain}")


def _chat_template(tokenizer: Any, where: Path) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
        if template is None:
            raise InputError(f"{where}: has several chat templates and none is named default; keep one")
    return template or None


def _end_of_turn(tokenizer: Any, control: set[int], where: Path) -> int | None:
    """The control token that the chat template puts behind an assistant's words, if it does."""
    if _chat_template(tokenizer, where) is None:
        return None
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _TURN_MARK}]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
    except Exception as error:  # a template may raise what it likes
        raise InputError(f"{where}: the chat template fails on one user and one assistant turn ({error})") from error
    rest = text.rpartition(_TURN_MARK)[2]
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else []
    return ids[0] if ids and ids[0] in control else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
