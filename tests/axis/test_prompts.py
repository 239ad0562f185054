"""Which prompts an axis is measured with, and how faulty files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from karma_electric.axis.prompts import (
    Prompt,
    read_calibration_prompts,
    read_contrast_prompts,
    read_first_user_turns,
    read_generic_prompts,
    sample,
    texts_sha256,
)
from karma_electric.errors import InputError
from tests.axis.prompt_files import PromptFiles, calibration_rows, write_rows


def test_the_files_are_read_in_order(prompt_files: PromptFiles) -> None:
    assert [prompt.id for prompt in read_contrast_prompts(prompt_files.contrast)] == [f"c{n}" for n in range(6)]
    assert [prompt.text for prompt in read_generic_prompts(prompt_files.generic)][-1] == ""
    assert [prompt.id for prompt in read_calibration_prompts(prompt_files.calibration)] == [
        row["id"] for row in calibration_rows()
    ]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([], "no rows"),
        ([{"id": "a"}], "found the keys id; expected exactly id, prompt"),
        ([{"id": "a", "prompt": "b", "kind": "c"}], "expected exactly"),
        ([{"id": "a", "prompt": 3}], "prompt is 3"),
        ([{"id": "a", "prompt": "  "}], "not empty"),
        ([{"id": "", "prompt": "b"}], "id is ''"),
        ([{"id": "a", "prompt": "b"}, {"id": "a", "prompt": "c"}], ":2: this id stands already in line 1"),
        ([{"id": "a", "prompt": "b"}, {"id": "c", "prompt": " b"}], ":2: this prompt stands already in line 1"),
    ],
)
def test_faulty_contrast_prompts_are_refused(tmp_path: Path, rows: list[dict[str, Any]], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        read_contrast_prompts(write_rows(tmp_path / "rows.jsonl", rows))


def test_calibration_needs_every_kind_in_both_splits(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [row for row in calibration_rows() if (row["kind"], row["split"]) != ("coding", "held-out")]
    with pytest.raises(InputError, match="'coding' in the split 'held-out'"):
        read_calibration_prompts(write_rows(path, rows))
    for key, value in (("kind", "poetry"), ("split", "test")):
        with pytest.raises(InputError, match=f"{key} is '{value}', expected one of"):
            read_calibration_prompts(write_rows(path, [calibration_rows()[0] | {key: value}]))


def _training_row(number: int, user: str) -> dict[str, Any]:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": user}]
    return {
        "id": f"r{number}",
        "source": "test",
        "category": "c",
        "conversations": [*turns, {"role": "assistant", "content": "An answer that is not asked for."}],
    }


def test_first_user_turns_have_the_right_length_and_stand_once(tmp_path: Path) -> None:
    texts = ["x" * 20, "x" * 21, "y" * 1999, "y" * 2000, "z" * 30, "z" * 30]
    path = write_rows(tmp_path / "set.jsonl", [_training_row(n, text) for n, text in enumerate(texts)])
    assert [prompt.id for prompt in read_first_user_turns(path)] == ["r1", "r2", "r4"]
    with pytest.raises(InputError, match=r"axis\.source: prompts"):
        read_first_user_turns(write_rows(path, [_training_row(0, "short")]))


def test_a_sample_depends_on_the_seed_and_not_on_the_order() -> None:
    prompts = [Prompt(str(number), f"text {number}", "") for number in range(40)]
    chosen = sample(prompts, 10, seed=1)
    assert len(chosen) == 10
    assert chosen == sorted(chosen, key=lambda prompt: int(prompt.id))
    assert set(chosen) == set(sample(prompts[::-1], 10, seed=1))
    assert set(chosen) != set(sample(prompts, 10, seed=2))
    assert len(set(chosen) & set(sample([*prompts, Prompt("new", "new", "")], 10, seed=1))) >= 9
    assert sample(prompts, 99, seed=1) == prompts


def test_the_hash_of_texts_knows_their_borders() -> None:
    assert texts_sha256(["ab", "c"]) != texts_sha256(["a", "bc"])
    assert texts_sha256(iter(["é"])) == texts_sha256(["é"])
    assert texts_sha256([""]) != texts_sha256([])
