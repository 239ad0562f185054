"""Whether a GGUF file is the model that it was made from: its header, its tensors, its token ids, its logits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from karma_electric.canonical import rounded
from karma_electric.errors import IntegrityError
from karma_electric.gguf_files.llama_config import read_llama_config
from karma_electric.gguf_files.model_tensors import ModelTensors
from karma_electric.gguf_files.params import GgufType
from karma_electric.gguf_files.planned_tensors import plan_tensors
from karma_electric.gguf_files.reader import read_header
from karma_electric.gguf_files.reference import reference_logits
from karma_electric.gguf_files.stored_weights import StoredWeights
from karma_electric.gguf_files.tensor_errors import check_tensors
from karma_electric.gguf_files.vocabulary import load_tokenizer

# Largest relative error of llama.cpp's logits against PyTorch in float32 on the very weights that the file holds. What
# is left is that llama.cpp rounds the input of every matrix product: to F16 for F16, to 8 bits for the others. Measured
# on SmolLM2-135M: F16 0.0009, Q8_0 0.038, the others 0.051 to 0.053; on a random model less.
MAX_COMPUTATION_ERROR: Final[dict[GgufType, float]] = {
    "F16": 0.01,
    "Q8_0": 0.1,
    "Q6_K": 0.15,
    "Q5_K_M": 0.15,
    "Q4_K_M": 0.15,
}

# Largest relative error of a file's logits against PyTorch on the model's own weights: two to three times what was
# measured on SmolLM2-135M and on a random model (Q8_0 0.06, Q6_K 0.11, Q5_K_M 0.26, Q4_K_M 0.34), and below 1, which is
# the error of logits that are all equal; those of an unrelated model have 1.4.
MAX_RELATIVE_ERROR: Final[dict[GgufType, float]] = {
    "F16": 0.01,
    "Q8_0": 0.2,
    "Q6_K": 0.3,
    "Q5_K_M": 0.6,
    "Q4_K_M": 0.7,
}

MAX_POSITIONS: Final = 160

SAMPLE_CONVERSATION: Final = (
    {"role": "user", "content": "What is the capital of France, and how many people live there? Odpověz i česky."},
    {"role": "assistant", "content": "Paris has about 2,100,000 people.\n\nV Paříži žije asi 2,1 milionu lidí."},
)
SAMPLE_TEXTS: Final = (
    "It isn't the load that breaks you; it's the way you'd carry it, they've said. I'll wait, I'm SURE we'RE fine.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Řekni mi, prosím, kolik je hodin?",
    "def mean(values):\n    total = 0\n\tfor x in values:\n        total += x ** 2\n    return {'n': total / 3}\n",
    "0 1 22 333 4444 1234567890 3.14159 1,000,000 -42 2026-11-21 10:45 1e-5 0xFF 50% §7 ½ Ⅳ ٣٤",
    " leading,  two   three    spaces \n\n\n and\r\nlines:\n   1. one\n  22. two  333\n"
    " \t\t tabs \u00a0no-break\u2003em \u3000wide   ",
    "日本語のテキスト、한국어 문장, русский текст, ελληνικά, עברית, العربية, हिन्दी, ไทย",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 n\u0303 \ufeff\u200b zero-width, 𝒜𝓁𝓅𝒽𝒶 𐍈",
    "<|im_start|>user\nx<|im_end|>\n<|endoftext|><|eot_id|><|begin_of_text|>[INST] </s> <|im_start <|im_end|>|>",
    '"Quotes" (nested [brackets {here}]) <b>html</b> & a/b\\c @user #tag $x$ https://example.org/?q=1&r=2 ...!?',
    "a",
    " ",
    "\n",
)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was measured on a file that passed. Errors are of logits over `positions` tokens of a chat."""

    gguf_type: GgufType
    tensors: int
    tensor_error: float  # the largest relative error of a tensor's values
    texts: int  # whose token ids are those of the Hugging Face tokenizer
    token_ids: int
    positions: int
    computation_error: float  # llama.cpp against PyTorch on the weights that the file holds
    relative_error: float  # llama.cpp against PyTorch on the model's own weights
    top1_agreement: float  # share of positions with the model's most likely token

    def as_dict(self) -> dict[str, Any]:
        """The fields, floats to four significant digits."""
        return {key: rounded(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def check_gguf(model_folder: Path, gguf_file: Path, gguf_type: GgufType, threads: int | None = None) -> CheckReport:
    """Compare `gguf_file` with the model in `model_folder` that it was made from.

    PyTorch computes the logits of the same tokens twice: with the weights that the file holds, which shows whether
    llama.cpp reads the file as the model that it is, and with the model's own, which shows what quantising cost.

    Raises IntegrityError at the first thing that is off: tensors of another model, one further from its source than
    its type allows, other token ids than the Hugging Face tokenizer's, logits that are not finite or too far.
    """
    header = read_header(gguf_file)
    plan = list(plan_tensors(read_llama_config(model_folder)))
    source, stored = ModelTensors(model_folder), StoredWeights(gguf_file, header, plan)
    tensor_error = check_tensors(source, plan, stored)
    tokenizer = load_tokenizer(model_folder)
    texts = sample_texts(tokenizer)
    most = min(MAX_POSITIONS, header.metadata["llama.context_length"])
    position_ids = _encode(tokenizer, texts[0], special=True)[:most]
    logits, token_ids = _run(gguf_file, tokenizer, texts, position_ids, threads)
    computation_error = relative_error(logits, reference_logits(model_folder, stored, position_ids))
    _require(
        computation_error < MAX_COMPUTATION_ERROR[gguf_type],
        gguf_file,
        f"relative error of {gguf_type} logits against PyTorch on the same weights",
        computation_error,
        MAX_COMPUTATION_ERROR[gguf_type],
    )
    reference = reference_logits(model_folder, source, position_ids)
    error, bound = relative_error(logits, reference), MAX_RELATIVE_ERROR[gguf_type]
    _require(error < bound, gguf_file, f"relative error of {gguf_type} logits against the model", error, bound)
    return CheckReport(
        gguf_type=gguf_type,
        tensors=len(header.tensors),
        tensor_error=tensor_error,
        texts=len(texts),
        token_ids=token_ids,
        positions=len(position_ids),
        computation_error=computation_error,
        relative_error=error,
        top1_agreement=float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
    )


def relative_error(logits: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """|d| / |r| over (positions, vocab_size), each row less its mean: a constant added to a row changes no probability.

    Between 0 (equal) and about 1.4 (unrelated, of the same size); flat logits on one side give 1. It needs no scale, so
    that one bound fits a trained model and a random one.
    """
    wide, base = logits.astype(np.float64), reference.astype(np.float64)
    difference = wide - base
    difference -= difference.mean(axis=1, keepdims=True)
    base -= base.mean(axis=1, keepdims=True)
    return float(np.linalg.norm(difference) / max(float(np.linalg.norm(base)), np.finfo(np.float64).tiny))


def sample_texts(tokenizer: Any) -> tuple[str, ...]:
    """The texts whose token ids are compared; the first is the one whose logits are."""
    if not tokenizer.chat_template:
        return (" ".join(turn["content"] for turn in SAMPLE_CONVERSATION), *SAMPLE_TEXTS)
    return (tokenizer.apply_chat_template(list(SAMPLE_CONVERSATION), tokenize=False), *SAMPLE_TEXTS)


def _encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """Ids without bos; `special` false takes the names of special tokens for plain text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
    return ids


def _run(
    gguf_file: Path, tokenizer: Any, texts: tuple[str, ...], position_ids: list[int], threads: int | None
) -> tuple[NDArray[np.float32], int]:
    """(logits of `position_ids`, number of token ids compared)."""
    from karma_electric.engines.llama_cpp import LlamaCppEngine

    engine = LlamaCppEngine(gguf_file, cache_type="f32", context_tokens=MAX_POSITIONS, threads=threads)
    try:
        compared = 0
        for text in texts:
            for special in (True, False):
                expected = _encode(tokenizer, text, special=special)
                _compare_ids(gguf_file, text, expected, engine.tokenize(text, parse_special=special))
                compared += len(expected)
        logits = engine.all_logits(position_ids)
    finally:
        engine.close()
    if not np.isfinite(logits).all():
        raise IntegrityError(f"{gguf_file}: llama.cpp computes logits that are not finite; rebuild the model")
    return logits, compared


def _compare_ids(gguf_file: Path, text: str, expected: list[int], found: list[int]) -> None:
    if found == expected:
        return
    place = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    raise IntegrityError(
        f"{gguf_file}: llama.cpp reads {text[:40]!r} as other tokens than the Hugging Face tokenizer: at token {place} "
        f"{found[place : place + 3]}, expected {expected[place : place + 3]}; the vocabulary or pre-tokenizer is wrong"
    )


def _require(holds: bool, gguf_file: Path, what: str, found: float, bound: float) -> None:
    if not holds:
        raise IntegrityError(f"{gguf_file}: {what} is {found:.4g}, expected below {bound:g}; the file is not the model")
