"""The model libraries, kept from writing to the terminal and from calling the network while they work for us."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

_LOGGERS = ("accelerate", "bitsandbytes", "datasets", "huggingface_hub", "peft", "torch", "transformers", "trl")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside the block there are no progress bars and no warnings; errors are still logged, and raised."""
    from transformers.utils import logging as transformers_logging  # heavy, and not needed where nothing is built

    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings(), _without_gguf_bar():
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if bars:
                transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def offline_hub() -> Iterator[None]:
    """Inside the block no library reaches the hub: no telemetry (trl sends some), no look-up of a model's name."""
    import huggingface_hub.constants

    constants: Any = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_OFFLINE = constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY = before


@contextlib.contextmanager
def _without_gguf_bar() -> Iterator[None]:
    """The bar of GGUF dequantisation is a plain tqdm, which no setting of transformers turns off."""
    module: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    tqdm = module.tqdm
    module.tqdm = functools.partial(tqdm, disable=True)
    try:
        yield
    finally:
        module.tqdm = tqdm
