"""System prompts: the same text wherever it is used."""

from __future__ import annotations

from pathlib import Path

from karma_electric.conversation import parse_text
from karma_electric.errors import InputError

MAX_PROMPT_BYTES = 64 * 1024


def read_prompt(path: Path) -> str:
    """The text of a system prompt: UTF-8, without a byte order mark and the white space around it, lines ended by LF.

    Raises InputError for a file that is missing, too large, not UTF-8, or without text.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_PROMPT_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected the text of a system prompt") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if len(data) > MAX_PROMPT_BYTES:
        raise InputError(f"{path}: larger than {MAX_PROMPT_BYTES} bytes; expected the text of a system prompt")
    return parse_text(text.replace("\r\n", "\n").strip(), f"{path}: the prompt")
