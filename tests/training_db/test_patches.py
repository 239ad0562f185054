from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.conversation import Example, parse_example
from karma_electric.errors import InputError
from karma_electric.training_db.patches import apply_patches, read_patches
from tests.training_db.rows import row, write_rows


def examples(*ids: str) -> dict[str, Example]:
    return {id_: parse_example(row(id_), "here") for id_ in ids}


def patched(folder: Path, files: dict[str, list[dict[str, Any]]], *ids: str) -> dict[str, Example]:
    """The examples `ids` after the patch files (name -> rows) in `folder`."""
    for name, rows in files.items():
        write_rows(folder / name, rows)
    return apply_patches(examples(*ids), read_patches(folder))


def test_rows_are_added_replaced_and_retired(tmp_path: Path) -> None:
    found = patched(
        tmp_path,
        {
            "b.jsonl": [{"op": "replace", **row("kept", "A new answer.")}, {"op": "add", **row("second")}],
            "a.jsonl": [row("first"), {"op": "retire", "id": "old", "reason": "too long"}, {"op": "retire", "id": "x"}],
        },
        "kept", "old", "x", "untouched",
    )  # fmt: skip
    assert sorted(found) == ["first", "kept", "second", "untouched"]
    assert found["kept"].conversation[-1].content == "A new answer."
    assert found["untouched"] == examples("untouched")["untouched"]


def test_the_set_below_is_not_changed(tmp_path: Path) -> None:
    below = examples("old")
    write_rows(tmp_path / "a.jsonl", [{"op": "retire", "id": "old"}])
    assert apply_patches(below, read_patches(tmp_path)) == {}
    assert below == examples("old")


def test_a_patch_that_says_what_is_there_already_changes_nothing(tmp_path: Path) -> None:
    files = {"a.jsonl": [row("old"), row("new")], "b.jsonl": [row("new")]}
    assert patched(tmp_path, files, "old") == examples("old", "new")


def test_an_empty_file_and_an_empty_folder_are_no_patch(tmp_path: Path) -> None:
    assert patched(tmp_path, {}, "old") == examples("old")
    assert patched(tmp_path, {"none.jsonl": []}, "old") == examples("old")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an addition of another text": (
        row("old", "Another answer."), "'old' is there already with other text; use op replace"
    ),
    "a replacement of nothing": ({"op": "replace", **row("gone")}, "op replace of 'gone', which the set does not hold"),
    "a retirement of nothing": ({"op": "retire", "id": "gone"}, "op retire of 'gone', which the set does not hold"),
    "two patches of one id": ({"op": "retire", "id": "first"}, "'first' is patched differently in "),
    "an unknown operation": ({"op": "delete", "id": "old"}, "op is 'delete', expected one of add, replace, retire"),
    "an operation that is no text": ({"op": ["add"], **row("new")}, "op is ['add'], expected one of"),
    "a retirement with a text": ({"op": "retire", **row("old")}, "op retire takes id and reason, found"),
    "a retirement of no id": ({"op": "retire", "reason": "x"}, "op retire takes id and reason, found 'reason'"),
    "a retirement of a number": ({"op": "retire", "id": 3}, "op retire takes id and reason, found 'id'"),
    "an unknown key": (row("new", status="accepted"), "unknown key 'status'"),
    "a conversation without an answer": (
        {**row("new"), "conversations": row("new")["conversations"][:1]}, "the last turn must be the assistant's"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named_with_file_and_line(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        patched(tmp_path, {"a.jsonl": [row("first")], "b.jsonl": [row("second"), bad]}, "old")
    assert str(caught.value).startswith(f"{tmp_path / 'b.jsonl'}:2: {message}")


def test_two_patches_that_differ_name_both_places(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        patched(tmp_path, {"a.jsonl": [row("x")], "b.jsonl": [row("x", "Another answer.")]})
    place = tmp_path / "a.jsonl"
    assert str(caught.value) == f"{tmp_path / 'b.jsonl'}:1: 'x' is patched differently in {place}:1; keep one"


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a"\n')
    with pytest.raises(InputError, match=r"a\.jsonl:1: not JSON"):
        list(read_patches(tmp_path))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="v9: missing; expected a folder of patch files"):
        list(read_patches(tmp_path / "v9"))


@pytest.mark.parametrize("name", ["theme.json", "theme.jsonl.txt", "theme.JSONL", "folder"])
def test_nothing_in_the_folder_is_left_out_in_silence(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name / "x.jsonl" if name == "folder" else tmp_path / name, [row("a")])
    with pytest.raises(InputError, match=f"{name}: not a .jsonl file, so its rows would be left out"):
        list(read_patches(tmp_path))


def test_a_readme_and_hidden_files_are_no_patches(tmp_path: Path) -> None:
    for name in ("README.md", ".gitkeep", ".theme.jsonl.swp"):
        (tmp_path / name).write_text("no rows")
    assert list(read_patches(tmp_path)) == []


@given(order=st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_files_and_rows_does_not_matter(
    order: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One version patches an id once, so patches commute."""
    patches: dict[str, dict[str, Any]] = {
        "a": row("new"), "b": {"op": "retire", "id": "old"}, "c": {"op": "replace", **row("x", "New.")}, "d": row("y"),
    }  # fmt: skip
    files = {f"{index}.jsonl": [patches[name]] for index, name in enumerate(order)}
    found = patched(tmp_path_factory.mktemp("order"), files, "old", "x")
    assert found == {**examples("new", "y"), "x": parse_example(row("x", "New."), "here")}
