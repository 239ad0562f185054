from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from karma_electric.canonical import write_json_lines
from karma_electric.conversation import read_examples
from karma_electric.errors import InputError
from karma_electric.training_db.export import export_set
from karma_electric.training_db.params import ExportParams
from tests.cli.running import ROOT
from tests.training_db.rows import accepted, import_rows, row, write_rows

PERSONA, EVALUATOR = "You are calm.", "You rate answers."
ITEM = {
    "id": "asking-001",
    "suite": "asking",
    "category": "papers",
    "prompt": "My landlord kept the deposit because of a scratch that was on the oven door before I came. What now?",
}


@dataclass(frozen=True)
class Sets:
    """A folder with a database, prompts and patches, and the sets that are exported from them."""

    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "training.db"

    def patch(self, version: str, rows: list[dict[str, Any]], name: str = "theme.jsonl") -> Path:
        return write_rows(self.folder / "patches" / version / name, rows)

    def export(self, version: str = "v6", below: str | None = None, **params: Any) -> bytes:
        """The bytes of the set `version`, layered on the set `below` or on the database."""
        (self.folder / "patches" / version).mkdir(parents=True, exist_ok=True)
        export_set(
            self.folder / f"{below}.jsonl" if below else self.database,
            patches=self.folder / "patches" / version,
            suites=self.folder / "suites",
            persona_prompt=self.folder / "persona.txt",
            evaluator_prompt=self.folder / "evaluator.txt",
            output=self.folder / f"{version}.jsonl",
            manifest=self.folder / f"{version}.manifest.json",
            params=ExportParams.model_validate({"min_score": None, "exclude_templates": True, "tiers": None, **params}),
        )
        return (self.folder / f"{version}.jsonl").read_bytes()

    def ids(self, version: str = "v6") -> list[str]:
        return [example.id for example in read_examples(self.folder / f"{version}.jsonl")]

    def manifest(self, version: str = "v6") -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{version}.manifest.json").read_text()))


@pytest.fixture
def sets(tmp_path: Path) -> Sets:
    (tmp_path / "persona.txt").write_text(PERSONA + "\n")
    (tmp_path / "evaluator.txt").write_text(EVALUATOR + "\n")
    write_rows(tmp_path / "suites" / "asking.jsonl", [ITEM])
    return Sets(tmp_path)


def test_a_row_has_the_exact_form_of_the_contract(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a-001", "Příjemný den.")])
    assert sets.export().decode() == (
        '{"category":"greeting","conversations":[{"content":"You are calm.","role":"system"},'
        '{"content":"Hello from a-001","role":"user"},{"content":"Příjemný den.","role":"assistant"}],'
        '"id":"a-001","source":"test"}\n'
    )


def test_only_accepted_rows_in_the_order_of_category_and_id(sets: Sets) -> None:
    rows = [accepted(id_, category=category) for category in ("z", "B", "č", "a") for id_ in ("2", "10", "1")]
    import_rows(
        sets.database,
        [
            *({**found, "id": found["id"] + found["category"]} for found in rows),
            *(row(status, status=status) for status in ("rejected", "pending", "archived")),
        ],
    )
    sets.export()
    assert sets.ids() == ["10B", "1B", "2B", "10a", "1a", "2a", "10z", "1z", "2z", "10č", "1č", "2č"]


def test_system_turns_are_replaced_by_the_prompt_of_the_row_s_role(sets: Sets) -> None:
    system = {"role": "system", "content": "An old prompt."}
    rated = accepted("rated", category="reward-evaluation", role="reward-evaluator")
    import_rows(
        sets.database,
        [accepted("a"), accepted("b", conversations=[system, *row("b")["conversations"]]), rated],
    )
    sets.patch("v6", [row("patched"), row("patched-rating", category="reward-evaluation")])
    sets.export()
    found = {example.id: example.conversation for example in read_examples(sets.folder / "v6.jsonl")}
    assert all([message.role for message in turns] == ["system", "user", "assistant"] for turns in found.values())
    assert {id_: turns[0].content for id_, turns in found.items()} == {
        "a": PERSONA, "b": PERSONA, "patched": PERSONA, "patched-rating": EVALUATOR, "rated": EVALUATOR,
    }  # fmt: skip


def test_template_rows_are_left_out_or_kept(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a"), accepted("b", template_flag="opening"), accepted("c", template_flag="")])
    sets.export(exclude_templates=True)
    assert sets.ids() == ["a", "c"]
    sets.export(exclude_templates=False)
    assert sets.ids() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("min_score", "ids"),
    [(None, "zero one high none"), (0, "zero one high"), (1, "one high"), (40, "high")],
)
def test_a_row_without_a_score_reaches_no_least_score_and_zero_is_one(
    sets: Sets, min_score: int | None, ids: str
) -> None:
    scores = {"zero": 0, "one": 1, "high": 40, "none": None}
    import_rows(sets.database, [accepted(id_, hermes_score=score) for id_, score in scores.items()])
    sets.export(min_score=min_score)
    assert sorted(sets.ids()) == sorted(ids.split())


def test_only_the_tiers_asked_for(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a", tier="gold"), accepted("b", tier="silver"), accepted("c")])
    sets.export(tiers=["gold", "bronze"])
    assert sets.ids() == ["a"]
    with pytest.raises(InputError, match="no rows are left; a set needs at least one accepted example"):
        sets.export("empty", tiers=[])
    assert not (sets.folder / "empty.jsonl").exists()


def test_the_manifest_holds_the_hash_of_file_and_rows(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a"), accepted("b", category="other"), accepted("c")])
    data = sets.export()
    manifest = sets.manifest()
    lines = {json.loads(line)["id"]: hashlib.sha256(line).hexdigest() for line in data.splitlines()}
    assert manifest["row_sha256"] == lines
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["root_sha256"] == hashlib.sha256("".join(lines[id_] for id_ in sorted(lines)).encode()).hexdigest()
    assert (manifest["rows"], manifest["categories"]) == (3, {"greeting": 2, "other": 1})


def test_sets_are_layered(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a"), accepted("b"), accepted("c")])
    sets.patch("v7", [row("seven"), {"op": "retire", "id": "a"}])
    sets.patch("v8", [row("eight"), {"op": "replace", **row("seven", "Better.")}, {"op": "retire", "id": "b"}])
    sets.export("v6")
    sets.export("v7", below="v6")
    sets.export("v8", below="v7")
    assert [sets.ids(version) for version in ("v6", "v7", "v8")] == [
        ["a", "b", "c"], ["b", "c", "seven"], ["c", "eight", "seven"]
    ]  # fmt: skip
    before, after = sets.manifest("v7")["row_sha256"], sets.manifest("v8")["row_sha256"]
    assert before["c"] == after["c"]
    assert before["seven"] != after["seven"]


def test_a_later_patch_leaves_the_earlier_sets_as_they_are(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a")])
    before = sets.export("v6"), sets.export("v7", below="v6")
    sets.patch("v8", [row("eight")])
    assert (sets.export("v6"), sets.export("v7", below="v6")) == before
    assert sets.export("v8", below="v7") != before[1]


def test_a_patch_that_fits_nothing_leaves_the_old_set(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a")])
    before = sets.export("v7")
    patch = sets.patch("v7", [{"op": "retire", "id": "gone"}])
    with pytest.raises(InputError, match=r"theme\.jsonl:1: op retire of 'gone'"):
        sets.export("v7")
    assert (sets.folder / "v7.jsonl").read_bytes() == before
    patch.unlink()
    assert sets.export("v7") == before


def test_what_changes_no_row_changes_no_byte(sets: Sets) -> None:
    """The early cutoff: blank lines, key order, spelling of JSON, file names, order, and rows that are not accepted."""
    import_rows(sets.database, [accepted("a"), accepted("b")])
    first, second = row("p", "Dobrý den."), row("q")
    patch = sets.patch("v6", [first, second])
    before = sets.export(), sets.manifest()
    spellings = [
        "\n\n" + json.dumps(first) + "\n \t\n\r\n" + json.dumps(second) + "\n\n",
        json.dumps(dict(reversed(second.items())), ensure_ascii=True) + "\n" + json.dumps(first, indent=None),
        json.dumps({"op": "add", **first}) + "\n" + json.dumps(second, separators=(" , ", " : ")) + "\n",
    ]
    for text in spellings:
        patch.write_text(text, "utf-8")
        assert (sets.export(), sets.manifest()) == before
    patch.rename(patch.with_name("renamed.jsonl"))
    import_rows(sets.database, [row("c"), row("d", status="rejected")])
    (sets.folder / "persona.txt").write_text(f"\n{PERSONA}\n\n")
    assert (sets.export(), sets.manifest()) == before


def test_what_changes_a_row_changes_the_set(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a")])
    before = sets.export()
    (sets.folder / "persona.txt").write_text("You are calm and brief.")
    assert sets.export() != before


def test_the_bytes_do_not_depend_on_process_folder_or_insertion_order(sets: Sets, tmp_path: Path) -> None:
    rows = [accepted(f"{number:02}", category=f"c{number % 3}") for number in range(12)]
    import_rows(sets.database, rows)
    sets.patch("v6", [row("p"), row("q")])
    expected = sets.export()
    other = tmp_path / "a folder of another name"
    other_sets = Sets(other)
    other.mkdir()
    import_rows(other_sets.database, list(reversed(rows)))
    other_sets.patch("v6", [row("q")], "1.jsonl")
    other_sets.patch("v6", [row("p")], "2.jsonl")
    command = [
        sys.executable, "-m", "stages.export", "--params", str(ROOT / "params.yaml"),
        "--source", str(other_sets.database), "--patches", str(other / "patches" / "v6"),
        "--suites", str(sets.folder / "suites"),
        "--persona-prompt", str(sets.folder / "persona.txt"), "--evaluator-prompt", str(sets.folder / "evaluator.txt"),
        "--output", "set.jsonl", "--manifest", "manifest.json",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    subprocess.run(command, cwd=other, env=environment, check=True)
    assert (other / "set.jsonl").read_bytes() == expected
    assert (other / "manifest.json").read_bytes() == (sets.folder / "v6.manifest.json").read_bytes()


def test_exporting_leaves_the_database_and_its_folder_as_they_are(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a")])
    sets.export()
    before = sets.database.read_bytes()
    names = {path.name for path in sets.folder.iterdir()}
    sets.export()
    assert sets.database.read_bytes() == before
    assert {path.name for path in sets.folder.iterdir()} == names


@pytest.mark.parametrize("name", ["persona.txt", "evaluator.txt"])
def test_a_missing_or_empty_prompt_is_named(sets: Sets, name: str) -> None:
    import_rows(sets.database, [accepted("a")])
    (sets.folder / name).write_text(" \n")
    with pytest.raises(InputError, match=f"{name}: .*empty"):
        sets.export()
    (sets.folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        sets.export()


def test_a_missing_or_spoilt_source_is_named(sets: Sets) -> None:
    with pytest.raises(InputError, match=r"training\.db: missing; expected the training database"):
        sets.export()
    with pytest.raises(InputError, match=r"v7\.jsonl: cannot be read"):
        sets.export("v8", below="v7")
    write_rows(sets.folder / "v7.jsonl", [row("a"), row("a")])
    with pytest.raises(InputError, match=r"v7\.jsonl:2: the id 'a' stands already in line 1"):
        sets.export("v8", below="v7")


def test_the_shipped_sets_can_be_exported(tmp_path: Path) -> None:
    below = ROOT / "data" / "training.db"
    sizes = []
    for version in ("v6", "v7", "v8"):
        output = tmp_path / f"{version}.jsonl"
        export_set(
            below,
            patches=ROOT / "data" / "patches" / version,
            suites=ROOT / "data" / "suites",
            persona_prompt=ROOT / "data" / "prompts" / "persona.txt",
            evaluator_prompt=ROOT / "data" / "prompts" / "evaluator.txt",
            output=output,
            manifest=tmp_path / f"{version}.manifest.json",
            params=ExportParams(min_score=None, exclude_templates=True, tiers=None),
        )
        sizes.append(len(list(read_examples(output))))
        below = output
    assert sizes[0] >= 120
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_gate_item_in_the_database_stops_the_export(sets: Sets) -> None:
    conversation = [
        {"role": "user", "content": ITEM["prompt"].upper()},
        {"role": "assistant", "content": "Write to him."},
    ]
    import_rows(sets.database, [accepted("a"), accepted("taught", conversations=conversation)])
    with pytest.raises(InputError) as caught:
        sets.export()
    line = str(caught.value)
    assert line.startswith(f"{sets.database}: 'taught' holds prompt of the gate item 'asking-001' (")
    assert f"{sets.folder / 'suites' / 'asking.jsonl'}:1" in line
    assert not (sets.folder / "v6.jsonl").exists()


def test_a_gate_item_in_a_patch_or_a_lower_set_is_named_with_its_line(sets: Sets) -> None:
    import_rows(sets.database, [accepted("a")])
    sets.export("v7")
    patch = sets.patch("v8", [row("fine"), row("taught", f"You told me: {ITEM['prompt']} That is for a court.")])
    with pytest.raises(InputError, match=rf"^{patch}:2: 'taught' holds prompt of the gate item 'asking-001'"):
        sets.export("v8", below="v7")
    patch.unlink()
    with (sets.folder / "v7.jsonl").open("ab") as stream:
        stream.write(write_json_lines([row("lower", ITEM["prompt"])]))
    with pytest.raises(InputError, match=r"v7\.jsonl:2: 'lower' holds prompt of the gate item 'asking-001'"):
        sets.export("v8", below="v7")


def test_a_gate_item_in_a_retired_or_replaced_row_is_no_matter(sets: Sets) -> None:
    import_rows(
        sets.database, [accepted("a"), accepted("retired", ITEM["prompt"]), accepted("replaced", ITEM["prompt"])]
    )
    sets.patch("v6", [{"op": "retire", "id": "retired"}, {"op": "replace", **row("replaced", "Write to him.")}])
    sets.export()
    assert sets.ids() == ["a", "replaced"]


def test_other_items_change_no_byte_of_a_set(sets: Sets) -> None:
    """So that a changed suite stops the rebuild at the export."""
    import_rows(sets.database, [accepted("a")])
    before = sets.export(), sets.manifest()
    write_rows(sets.folder / "suites" / "more.jsonl", [{"id": "more-001", "turns": ["Something else, asked in full."]}])
    assert (sets.export(), sets.manifest()) == before
