"""System prompts: the same text wherever it is used, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from karma_electric.errors import InputError
from karma_electric.prompts import MAX_PROMPT_BYTES, read_prompt

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"Be kind.", "Be kind."),
        (b"\n  Be kind.\n\n", "Be kind."),
        (b"\xef\xbb\xbfBe kind.\n", "Be kind."),
        (b"One.\r\nTwo.\r\n", "One.\nTwo."),
        ("Buď laskavá.".encode(), "Buď laskavá."),
        (b"x" * MAX_PROMPT_BYTES, "x" * MAX_PROMPT_BYTES),
    ],
)
def test_a_prompt_is_its_text(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(data)
    assert read_prompt(path) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the prompt is empty text"),
        (b" \n\t", "the prompt is empty text"),
        (b"\xef\xbb\xbf", "the prompt is empty text"),
        (b"Be \0kind.", "NUL character at position 3"),
        (b"Be \xffkind.", "not UTF-8 at byte 3"),
        (b"\xff\xfeB\0e\0", "not UTF-8 at byte 0"),
        (b"x" * (MAX_PROMPT_BYTES + 1), f"larger than {MAX_PROMPT_BYTES} bytes"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_prompt(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_missing_prompt_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompt\.txt: cannot be read \(No such file"):
        read_prompt(tmp_path / "prompt.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_prompt(tmp_path)


@pytest.mark.parametrize("name", ["persona.txt", "evaluator.txt"])
def test_the_shipped_prompts_are_read(name: str) -> None:
    assert len(read_prompt(REPOSITORY / "data" / "prompts" / name)) > 100
