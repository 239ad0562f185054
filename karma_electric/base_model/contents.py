"""What a base folder must hold, what is read off it, and what must not be in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.safetensors_files import open_safetensors_folder

ARCHITECTURE = "LlamaForCausalLM"
MAX_TEXT_BYTES = 4 * 1024 * 1024

_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
# Keys that say where files lay on the machine that wrote them.
_MACHINE_KEYS = frozenset({"_name_or_path", "_model_name_or_path", "name_or_path", "is_local", "local_files_only"})
# transformers 5 writes the first name and reads both; transformers 4 and vLLM know the second only.
_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def describe_model(folder: Path) -> dict[str, Any]:
    """Architecture, hidden_size, n_layers and vocab_size of the model in `folder`, after checking that it is whole.

    Raises InputError for another architecture, a missing tokenizer or chat template, or a template that writes the
    date; IntegrityError for weights that are missing or malformed.
    """
    path = folder / "config.json"
    config = read_json_object(path, max_bytes=MAX_TEXT_BYTES)
    if config.get("architectures") != [ARCHITECTURE]:
        raise InputError(
            f"{path}: architectures is {config.get('architectures')}, expected ['{ARCHITECTURE}'], the only one that "
            "the GGUF writer and the cap support; choose a Llama model"
        )
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: no tokenizer.json; choose a model with a fast tokenizer")
    _check_chat_template(folder)
    open_safetensors_folder(folder)
    return {
        "architecture": ARCHITECTURE,
        "hidden_size": _count(config, "hidden_size", path),
        "n_layers": _count(config, "num_hidden_layers", path),
        "vocab_size": _count(config, "vocab_size", path),
    }


def remove_machine_traces(folder: Path, *paths: Path) -> None:
    """Drop from the config files what only says where they were written.

    Raises IntegrityError if a value still begins with one of `paths`.
    """
    for name in _CONFIGS:
        path = folder / name
        if not path.is_file():
            continue
        config = read_json_object(path, max_bytes=MAX_TEXT_BYTES)
        cleaned = {key: value for key, value in config.items() if key not in _MACHINE_KEYS}
        if cleaned.get("tokenizer_class") in _TOKENIZER_CLASSES:
            cleaned["tokenizer_class"] = _TOKENIZER_CLASSES[cleaned["tokenizer_class"]]
        for text in _texts(cleaned):
            for local in paths:
                if text == str(local) or text.startswith(f"{local}/"):
                    raise IntegrityError(f"{path}: holds the local path {text!r}; remove it from the source")
        if cleaned != config:
            path.write_text(readable_json(cleaned), "utf-8")


def _check_chat_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        template: Any = path.read_bytes()[: MAX_TEXT_BYTES + 1].decode("utf-8", errors="replace")
    else:
        path = folder / "tokenizer_config.json"
        template = read_json_object(path, max_bytes=MAX_TEXT_BYTES).get("chat_template")
    if not isinstance(template, str) or not template.strip() or len(template) > MAX_TEXT_BYTES:
        raise InputError(f"{path}: no chat template; choose an instruction-tuned model")
    if "strftime_now" in template:
        raise InputError(
            f"{path}: the chat template writes today's date, so two builds would differ; use a copy of the model "
            "(base.source: folder) whose template has a fixed date"
        )


def _count(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise InputError(f"{path}: {key} is {value!r}, expected a whole number above 0")
    return value


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
