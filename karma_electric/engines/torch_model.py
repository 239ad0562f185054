"""A chat model in PyTorch: a folder in the form of Hugging Face, or a GGUF file, whose weights are then dequantised.

A GGUF file keeps llama.cpp's own vocabulary, so that both engines read a conversation as the same tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from karma_electric.axis.model import LoadedModel, load_model
from karma_electric.engines.answer import TextDecoder, Utf8Decoder, WholeTextDecoder
from karma_electric.engines.chat_template import ChatTemplate
from karma_electric.errors import InputError, IntegrityError, SetupError

_ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotation frequencies, which transformers does not read


@dataclass(frozen=True)
class TorchChatModel:
    """A model in evaluation mode, and how it reads and writes text."""

    path: Path
    model: Any
    sha256: str  # of the GGUF file, or of the folder's manifest
    context_tokens: int | None  # None: the config names no limit
    template: ChatTemplate
    tokenize: Callable[[str, bool], list[int]]  # text, whether names of control tokens become these tokens
    prompt_tokens: Callable[[str], list[int]]  # of a rendered conversation
    new_decoder: Callable[[], TextDecoder]
    ends_generation: Callable[[int], bool]

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)


def load_torch_model(path: Path, *, dtype: torch.dtype | None = None) -> TorchChatModel:
    """Of a folder whose manifest holds (by default in bfloat16), or of a GGUF file (float32, which holds every value of
    a Q8_0 weight), on CUDA where there is one.

    Raises IntegrityError for damaged files, InputError for what is no chat model, SetupError where memory is too small.
    """
    if path.is_dir():
        return _of_folder(path, load_model(path, dtype=dtype or torch.bfloat16))
    return _of_gguf(path, dtype or torch.float32)


def _of_folder(folder: Path, loaded: LoadedModel) -> TorchChatModel:
    tokenizer, lock = loaded.tokenizer, threading.Lock()  # it is one for the copies of the model, and not for threads
    if not isinstance(tokenizer.chat_template, str):
        raise InputError(f"{folder}: has no chat template; expected chat_template.jinja beside the tokenizer")

    def tokenize(text: str, parse_special: bool) -> list[int]:
        with lock:
            found = tokenizer(text, add_special_tokens=False, split_special_tokens=not parse_special)
        return [int(token) for token in found["input_ids"]]

    def decode(token_ids: Sequence[int]) -> str:
        with lock:
            return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return TorchChatModel(
        path=folder,
        model=loaded.model,
        sha256=loaded.sha256,
        context_tokens=loaded.context_tokens,
        template=ChatTemplate(
            tokenizer.chat_template,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
            where=str(folder),
        ),
        tokenize=tokenize,
        prompt_tokens=lambda text: tokenize(text, True),
        new_decoder=lambda: WholeTextDecoder(decode),
        ends_generation=loaded.end_ids.__contains__,
    )


def _of_gguf(path: Path, dtype: torch.dtype) -> TorchChatModel:
    from karma_electric.engines.llama_cpp_model import LlamaCppModel

    vocabulary = LlamaCppModel(path, vocab_only=True)  # checks the header first
    template = vocabulary.compiled_template()
    model = _dequantised(path, dtype)
    return TorchChatModel(
        path=path,
        model=model,
        sha256=vocabulary.sha256,
        context_tokens=getattr(model.config, "max_position_embeddings", None),
        template=template,
        tokenize=lambda text, parse_special: vocabulary.tokenize(text, parse_special=parse_special),
        prompt_tokens=vocabulary.prompt_tokens,
        new_decoder=lambda: Utf8Decoder(vocabulary.token_bytes),
        ends_generation=vocabulary.ends_generation,
    )


def _dequantised(path: Path, dtype: torch.dtype) -> Any:
    """Every tensor of the file in a model of transformers; one that finds no place there is an InputError."""
    from transformers import AutoModelForCausalLM

    from karma_electric.base_model.quiet import offline_hub, quiet_libraries

    try:
        with quiet_libraries(), offline_hub():
            model, info = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True, local_files_only=True
            )
    except (OSError, ValueError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path}: transformers cannot load it ({reason}); judge it with gate.engine llama.cpp"
        ) from error
    except torch.OutOfMemoryError as error:
        raise SetupError(f"{path}: does not fit into memory as {dtype}; use another gate.engine") from error
    for what, names in cast("dict[str, Any]", info).items():
        if names:
            raise InputError(f"{path}: transformers reports {what}: {sorted(map(str, names))[0]}; expected none")
    try:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    except torch.OutOfMemoryError as error:
        raise SetupError(f"{path}: does not fit into memory as {dtype}; use another gate.engine") from error
    _divide_frequencies(path, model)
    return model.eval()


def _divide_frequencies(path: Path, model: Any) -> None:
    """Apply the file's own factors of the rotation frequencies, as llama.cpp does."""
    from gguf import GGUFReader

    factors = next((tensor.data for tensor in GGUFReader(path).tensors if tensor.name == _ROPE_FACTORS), None)
    if factors is None:
        return
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    frequencies = getattr(rotary, "inv_freq", None)
    if rotary is None or frequencies is None or frequencies.shape != factors.shape:
        raise IntegrityError(f"{path}: its {_ROPE_FACTORS} do not fit the model; judge it with gate.engine llama.cpp")
    divisors = torch.tensor(factors, dtype=frequencies.dtype, device=frequencies.device)
    rotary.inv_freq = frequencies / divisors
