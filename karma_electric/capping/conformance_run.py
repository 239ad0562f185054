"""Runs the conformance kit on a model folder: every path, two cases, and llama.cpp against PyTorch type by type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers

from karma_electric.axis.thresholds import default_layers
from karma_electric.capping.conformance import (
    CappedPath,
    Case,
    Observation,
    Pair,
    Result,
    agreement_of,
    cosines,
    judge,
    make_case,
    observe,
    observe_oracle,
)
from karma_electric.capping.conformance_paths import (
    FLOAT16_BOUND,
    FLOAT32_BOUND,
    LlamaCppPath,
    NumpyPath,
    PytorchPath,
)
from karma_electric.capping.oracle import Oracle
from karma_electric.errors import InputError
from karma_electric.gguf_files.writer import UnquantizedType, write_gguf

PROMPT: Final = "The monk said nothing for a while, then poured the tea. What is it that you fear? he asked at last."
ANSWER_TOKENS: Final = 12

Report = Callable[[str], None]


@dataclass(frozen=True)
class Parity:
    """llama.cpp with one type of weights against PyTorch in float32, over prompt and answer."""

    weights: str  # F32, F16, Q8_0
    case: str  # that of the cap, or `uncapped`
    difference: float  # largest, absolute, of logits
    cosine: float  # least over all tokens
    agreement: float  # share of tokens with the same likeliest next token


@dataclass(frozen=True)
class Conformance:
    """What the kit found."""

    results: tuple[Result, ...]
    parity: tuple[Parity, ...]

    @property
    def conforms(self) -> bool:
        return all(result.conforms for result in self.results)


def conform(
    model_folder: Path, work: Path, *, quantized: Sequence[str] = ("Q8_0",), report: Report | None = None
) -> Conformance:
    """Plant caps in the model of `model_folder` and prove every path. GGUF files are written into the folder `work`.

    Case `hard`: alpha 1 in the layers that a recipe caps by default. Case `soft`: alpha 0.5 in block 1 and the last.
    A type in `quantized` has weights of its own: its states are held against the ceiling and the table compares it.

    Raises InputError for an architecture that the oracle or the GGUF writer does not know.
    """
    tell = report or (lambda _line: None)
    transformers.utils.logging.disable_progress_bar()
    tell("the oracle: float64 numpy")
    oracle = Oracle(model_folder)
    cases = make_cases(oracle, prompt_ids(model_folder))
    expected = {case.name: observe_oracle(oracle, case) for case in cases}
    pytorch = PytorchPath(load_pytorch(model_folder, torch.float32))
    paths: list[CappedPath] = [
        NumpyPath(oracle),
        PytorchPath(load_pytorch(model_folder, torch.float64), logit_bound=FLOAT32_BOUND),
        pytorch,
    ]
    files = write_types(model_folder, work, quantized)
    paths += files.values()
    found: dict[str, dict[str, Pair]] = {}
    results = []
    for path in paths:
        tell(path.name)
        found[path.name] = {case.name: observe(path, case) for case in cases}
        results += [judge(path, case, found[path.name][case.name], expected[case.name]) for case in cases]
    parity = [
        row
        for weights, path in files.items()
        for case in cases
        for row in _parity(weights, case, found[path.name][case.name], found[pytorch.name][case.name])
    ]
    return Conformance(tuple(results), tuple(parity))


def prompt_ids(model_folder: Path) -> list[int]:
    """The kit's text in the model's tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    return [int(token) for token in tokenizer(PROMPT)["input_ids"]]


def load_pytorch(model_folder: Path, dtype: torch.dtype) -> Any:
    """The model on the CPU, in evaluation mode."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return model.eval()


def make_cases(oracle: Oracle, prompt: Sequence[int], *, bound: float = FLOAT16_BOUND) -> list[Case]:
    """A hard cap where recipes cap, and a soft one in block 1 and the last; both move the logits by 20 `bound`s."""
    if oracle.blocks < 3:
        raise InputError(f"a model of {oracle.blocks} blocks; the cases need three")
    first, last = default_layers(oracle.blocks)
    layers = range(min(first, last - 1) or 1, last + 1)
    shared = {"bound": bound, "answer_tokens": ANSWER_TOKENS}
    return [
        make_case(oracle, prompt, name="hard", layers=layers, alpha=1.0, **shared),  # type: ignore[arg-type]
        make_case(oracle, prompt, name="soft", layers=(1, oracle.blocks - 1), alpha=0.5, seed=2, **shared),  # type: ignore[arg-type]
    ]


def write_types(model_folder: Path, work: Path, quantized: Sequence[str]) -> dict[str, LlamaCppPath]:
    """The model as GGUF files F32 and F16, and in the types of `quantized`, each as a path of the kit."""
    unquantized: dict[UnquantizedType, float] = {"F32": FLOAT32_BOUND, "F16": FLOAT16_BOUND}
    paths = {}
    for gguf_type, bound in unquantized.items():
        file = work / f"{gguf_type}.gguf"
        write_gguf(model_folder, file, gguf_type=gguf_type, name="conformance")
        paths[str(gguf_type)] = LlamaCppPath(file, name=gguf_type, logit_bound=bound, cache_type="f32")
    for name in quantized:
        from karma_electric.gguf_files.llama_cpp_quantizer import quantize_gguf

        file = work / f"{name}.gguf"
        quantize_gguf(work / "F16.gguf", file, name, threads=None)
        paths[name] = LlamaCppPath(file, name=name, logit_bound=None, cache_type="f16")
    return paths


def _parity(weights: str, case: Case, ours: Pair, theirs: Pair) -> list[Parity]:
    pairs = {case.name: (ours.capped, theirs.capped), "uncapped": (ours.uncapped, theirs.uncapped)}
    return [_compare(weights, name, *pair) for name, pair in pairs.items() if name != "uncapped" or case.name == "hard"]


def _compare(weights: str, name: str, ours: Observation, theirs: Observation) -> Parity:
    found, wanted = ours.logits.astype(np.float64), theirs.logits.astype(np.float64)
    return Parity(
        weights=weights,
        case=name,
        difference=float(np.abs(found - wanted).max()),
        cosine=float(cosines(found, wanted).min()),
        agreement=agreement_of(found, wanted, 0.0)[0],
    )
