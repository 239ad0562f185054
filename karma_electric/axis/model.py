"""The model that is measured: loaded once, asked in left-padded batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor

from karma_electric.capping.pytorch import decoder_blocks
from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.integrity import MANIFEST_NAME, sha256_file, verify_manifest

# Llama 3's templates print a date: today's in some versions, unless they are given one. This is their own default.
_TEMPLATE_DATE = "26 Jul 2024"


# A matrix product sums in an order that follows the number of threads, so its bits do, too: as many on all machines.
CPU_THREADS = 2


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on one device, with its tokenizer."""

    model: Any
    tokenizer: Any
    decoder: Any
    blocks: torch.nn.ModuleList
    hidden_size: int
    name: str  # the repo that it was made from
    sha256: str  # of its manifest
    model_type: str
    context_tokens: int | None  # None: the config names no limit
    pad_id: int
    end_ids: frozenset[int]
    others: tuple[LoadedModel, ...] = ()  # the same on further devices

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the left, so that their last tokens stand in the last column."""

    indices: tuple[int, ...]  # where they stood in the list that was batched
    token_ids: Tensor  # (batch, positions) int64
    mask: Tensor  # (batch, positions) int64; 0 is padding
    position_ids: Tensor  # (batch, positions) int64; the first real token is at 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(self.indices, self.token_ids.to(device), self.mask.to(device), self.position_ids.to(device))


def load_model(folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> LoadedModel:
    """Load a folder whose manifest holds, on CUDA where there is one.

    Raises IntegrityError for bytes that differ from the manifest, InputError for what is no decoder model.
    """
    identity = verify_manifest(folder)["identity"]
    name = identity.get("repo")
    if not isinstance(name, str) or not name:
        raise IntegrityError(f"{folder / MANIFEST_NAME}: identity.repo is {name!r}, expected a name; rebuild {folder}")
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be loaded ({_first_line(error)}); expected a Hugging Face model") from error
    except torch.OutOfMemoryError as error:
        raise SetupError(f"{folder}: does not fit into memory ({_first_line(error)})") from error
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    found = decoder_blocks(model)
    end_ids = _end_ids(model, tokenizer)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        decoder=found.decoder,
        blocks=found.blocks,
        hidden_size=found.hidden_size,
        name=name,
        sha256=sha256_file(folder / MANIFEST_NAME),
        model_type=str(model.config.model_type),
        context_tokens=getattr(found.decoder.config, "max_position_embeddings", None),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(end_ids, default=0),
        end_ids=end_ids,
    )


def on_every_gpu(loaded: LoadedModel) -> LoadedModel:
    """`loaded` with a copy of its model on each further GPU, so that batches are shared by all."""
    return replace(loaded, others=tuple(copy_of(loaded, device) for device in other_gpus(loaded.device)))


def copy_of(loaded: LoadedModel, device: torch.device, dtype: torch.dtype | None = None) -> LoadedModel:
    """The same model once more, on `device`, in its own type or in `dtype`."""
    model = copy_of_module(loaded.model, device, dtype)
    found = decoder_blocks(model)
    return replace(loaded, model=model, decoder=found.decoder, blocks=found.blocks, others=())


def other_gpus(device: torch.device) -> list[torch.device]:
    """Every GPU but `device`."""
    found = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [gpu for gpu in found if gpu != device]


def copy_of_module(module: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The module once more, its tensors copied straight to `device`: where it is, no memory is needed."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None, copy=True)

    memo: dict[int, Any] = {id(buffer): copied(buffer) for buffer in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = torch.nn.Parameter(copied(parameter.data), requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, memo)


def render(loaded: LoadedModel, system: str, user: str, *, most_tokens: int, where: str) -> list[int]:
    """Token ids of system and user turn up to the assistant's header; an empty `system` is no system turn.

    Raises InputError, starting with `where`, for a prompt of more than `most_tokens`: it is never cut.
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    try:
        rendered = loaded.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, date_string=_TEMPLATE_DATE
        )
    except (ValueError, TemplateError) as error:
        raise InputError(f"{where}: the model's chat template refuses it ({_first_line(error)})") from error
    token_ids = [int(token) for token in rendered["input_ids"]]
    if not 0 < len(token_ids) <= most_tokens:
        raise InputError(
            f"{where}: {len(token_ids)} tokens with its system prompt, axis.max_prompt_tokens is {most_tokens}; "
            "shorten the prompt or raise the limit"
        )
    return token_ids


def batches(loaded: LoadedModel, sequences: Sequence[Sequence[int]], batch_size: int) -> Iterator[Batch]:
    """The sequences in batches of like length, longest first, so that memory runs out at once or never."""
    order = sorted(range(len(sequences)), key=lambda index: (-len(sequences[index]), index))
    for start in range(0, len(order), batch_size):
        indices = tuple(order[start : start + batch_size])
        width = len(sequences[indices[0]])
        rows = [[loaded.pad_id] * (width - len(sequences[index])) + list(sequences[index]) for index in indices]
        real = [[0] * (width - len(sequences[index])) + [1] * len(sequences[index]) for index in indices]
        mask = torch.tensor(real, dtype=torch.int64, device=loaded.device)
        token_ids = torch.tensor(rows, dtype=torch.int64, device=loaded.device)
        yield Batch(indices, token_ids, mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, by generation_config.json and the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = set(configured) if isinstance(configured, list) else {configured}
    return frozenset(int(token) for token in ids | {tokenizer.eos_token_id} if token is not None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
