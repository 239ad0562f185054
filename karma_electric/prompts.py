"""System prompts: the same text wherever it is used."""

from __future__ import annotations

from pathlib import Path

from karma_electric.errors import InputError

MAX_PROMPT_BYTES = 64 * 1024


def read_prompt(path: Path) -> str:
    """The text of a system prompt, without the white space around it. Raises InputError for a file without text."""
    try:
        if path.stat().st_size > MAX_PROMPT_BYTES:
            raise InputError(f"{path}: larger than {MAX_PROMPT_BYTES} bytes; expected the text of a system prompt")
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the text of a system prompt") from error
    if not text:
        raise InputError(f"{path}: empty; expected the text of a system prompt")
    return text
