"""`karma db export`: which rows, which prompts, and the same bytes every time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.canonical import canonical_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.training_db.curation import set_system_prompt
from karma_electric.training_db.export_rows import Exported, PromptChoice, export_rows
from karma_electric.training_db.selection import Selection
from karma_electric.training_db.store import open_to_write
from tests.training_db.rows import NOW, accepted, import_rows, row, write_database

CZECH = "Dobrý večer, přišel jsem se zeptat, kdy zítra otevíráte."


def export(folder: Path, prompts: PromptChoice | None = None, *, reasoning: bool = False, **wanted: Any) -> Exported:
    return export_rows(
        folder / "t.db",
        folder / "rows.jsonl",
        manifest=folder / "rows.manifest.json",
        selection=Selection(**wanted),
        prompts=prompts or PromptChoice(),
        with_reasoning=reasoning,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]


def ids(folder: Path) -> list[str]:
    return [found["id"] for found in rows(folder)]


def add_prompts(folder: Path, **texts: str) -> None:
    with open_to_write(folder / "t.db") as connection:
        for id_, text in texts.items():
            set_system_prompt(connection, id_, text, None, at=NOW)


def test_a_row_has_the_exact_form_of_the_contract(tmp_path: Path) -> None:
    import_rows(tmp_path / "t.db", [accepted("a", 'Say "yes"\n.', hermes_score=40, tier="core", reasoning="why")])
    done = export(tmp_path)
    data = (tmp_path / "rows.jsonl").read_bytes()
    assert data.decode() == (
        '{"category":"greeting","conversations":[{"content":"Hello from a","role":"user"},'
        '{"content":"Say \\"yes\\"\\n.","role":"assistant"}],"id":"a","source":"test"}\n'
    )
    assert done == Exported(rows=1, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_accepted_rows_only_by_category_and_id(tmp_path: Path) -> None:
    statuses = [row(status, status=status) for status in ("rejected", "pending", "archived")]
    import_rows(
        tmp_path / "t.db", [*statuses, accepted("2", category="č"), accepted("10", category="č"), accepted("z")]
    )
    export(tmp_path)
    assert ids(tmp_path) == ["z", "10", "2"]


def test_system_turns_go_and_the_prompt_of_the_category_or_the_default_comes(tmp_path: Path) -> None:
    old = {"role": "system", "content": "An old prompt."}
    import_rows(
        tmp_path / "t.db",
        [accepted("a", conversations=[old, *row("a")["conversations"]]), accepted("b", category="other")],
    )
    add_prompts(tmp_path, calm="Be calm.", kind="Be kind.")

    def first_turns(prompts: PromptChoice) -> dict[str, str]:
        export(tmp_path, prompts)
        return {found["id"]: found["conversations"][0]["content"] for found in rows(tmp_path)}

    assert first_turns(PromptChoice()) == {"a": "Hello from a", "b": "Hello from b"}
    assert first_turns(PromptChoice(default="calm")) == {"a": "Be calm.", "b": "Be calm."}
    assert first_turns(PromptChoice(by_category={"other": "kind"})) == {"a": "Hello from a", "b": "Be kind."}
    assert first_turns(PromptChoice("calm", {"other": "kind"})) == {"a": "Be calm.", "b": "Be kind."}
    assert all([turn["role"] for turn in found["conversations"]].count("system") == 1 for found in rows(tmp_path))


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "cs flag none one zero"),
    ({"exclude_templates": True}, "cs none one zero"),
    ({"min_score": 0}, "cs flag one zero"),
    ({"min_score": 1}, "cs flag one"),
    ({"min_score": 40}, "cs"),
    ({"tiers": ["core"]}, "one zero"),
    ({"tiers": ["core", "extended"]}, "cs one zero"),
    ({"roles": ["reward-evaluator"]}, "none"),
    ({"categories": ["other"]}, "flag"),
    ({"languages": ["cs"]}, "cs"),
    ({"languages": ["en"], "min_score": 0, "exclude_templates": True}, "one zero"),
]


@pytest.mark.parametrize(("wanted", "expected"), FILTERS, ids=[str(wanted) for wanted, _ in FILTERS])
def test_filters(tmp_path: Path, wanted: dict[str, Any], expected: str) -> None:
    czech = [{"role": "user", "content": CZECH}, {"role": "assistant", "content": CZECH}]
    import_rows(
        tmp_path / "t.db",
        [
            accepted("zero", hermes_score=0, tier="core"),
            accepted("one", hermes_score=1, tier="core"),
            accepted("none", role="reward-evaluator"),
            accepted("flag", hermes_score=30, template_flag="opening", category="other"),
            accepted("cs", hermes_score=40, tier="extended", conversations=czech),
        ],
    )
    export(tmp_path, **wanted)
    assert sorted(ids(tmp_path)) == expected.split()


def test_reasoning_is_there_when_it_is_asked_for(tmp_path: Path) -> None:
    import_rows(tmp_path / "t.db", [accepted("a", reasoning='Because "so".'), accepted("b")])
    export(tmp_path)
    assert all("reasoning" not in found for found in rows(tmp_path))
    export(tmp_path, reasoning=True)
    lines = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    assert [found.get("reasoning") for found in rows(tmp_path)] == ['Because "so".', None]
    assert [canonical_json(json.loads(line)) for line in lines] == lines


def test_the_manifest_holds_the_hash_of_file_and_rows(tmp_path: Path) -> None:
    import_rows(tmp_path / "t.db", [accepted("b"), accepted("ž", category="x"), accepted("a")])
    done = export(tmp_path)
    data = (tmp_path / "rows.jsonl").read_bytes()
    hashes = {json.loads(line)["id"]: hashlib.sha256(line).hexdigest() for line in data.splitlines()}
    manifest = json.loads((tmp_path / "rows.manifest.json").read_text("utf-8"))
    assert manifest == {
        "sha256": done.sha256,
        "rows": 3,
        "root_sha256": hashlib.sha256("".join(hashes[id_] for id_ in sorted(hashes)).encode()).hexdigest(),
        "categories": {"greeting": 2, "x": 1},
        "row_sha256": hashes,
    }
    assert list(manifest["row_sha256"]) == ["a", "b", "ž"]


@settings(max_examples=20)
@given(texts=st.lists(st.text(min_size=1, max_size=60).filter(lambda text: text.strip()), min_size=2, max_size=2))
def test_every_line_is_canonical_and_holds_the_text(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The lines are put together from stored text; parsed and written anew they must be the same bytes."""
    texts = [text.replace("\0", "?") for text in texts]
    folder = tmp_path_factory.mktemp("lines")
    turns = [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
    import_rows(folder / "t.db", [accepted("a", category=texts[0].strip()[:9] or "c", conversations=turns)])
    add_prompts(folder, one=texts[1])
    export(folder, PromptChoice("one"))
    data = (folder / "rows.jsonl").read_bytes()
    (found,) = rows(folder)
    assert (canonical_json(found) + "\n").encode("utf-8") == data
    assert [turn["content"] for turn in found["conversations"]] == [texts[1], *texts]


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    batch = [accepted(f"{number:02}", category=f"c{number % 3}") for number in range(9)]
    written = []
    for name, ordered in (("a", batch), ("b", list(reversed(batch)))):
        (tmp_path / name).mkdir()
        import_rows(tmp_path / name / "t.db", ordered)
        export(tmp_path / name)
        written.append([(tmp_path / name / f"rows.{end}").read_bytes() for end in ("jsonl", "manifest.json")])
    assert written[0] == written[1]


WRONG: list[tuple[PromptChoice, dict[str, Any], str]] = [
    (PromptChoice("clam"), {}, "no system prompt 'clam' in the database; there are calm"),
    (PromptChoice(by_category={"greeting": "x"}), {}, "no system prompt 'x'"),
    (PromptChoice(by_category={"greetings": "calm"}), {}, "category 'greetings'; the nearest are greeting"),
    (PromptChoice(), {"categories": ["greetin"]}, "no example has the category 'greetin'"),
    (PromptChoice(), {"tiers": ["gold"]}, "no example has the tier 'gold'; no row has one"),
    (PromptChoice(), {"roles": ["judge"]}, "no example has the role 'judge'"),
    (PromptChoice(), {"min_score": 3}, "no accepted row fits the filters .a row without a score"),
    (PromptChoice(), {"languages": ["cs"]}, "no accepted row fits the filters; leave one out"),
]  # fmt: skip


@pytest.mark.parametrize(("prompts", "wanted", "message"), WRONG, ids=[message[:40] for _, _, message in WRONG])
def test_a_misspelt_name_or_an_empty_set_writes_nothing(
    tmp_path: Path, prompts: PromptChoice, wanted: dict[str, Any], message: str
) -> None:
    import_rows(tmp_path / "t.db", [accepted("a")])
    add_prompts(tmp_path, calm="Be calm.")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message):
        export(tmp_path, prompts, **wanted)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_database_is_not_overwritten(tmp_path: Path) -> None:
    import_rows(tmp_path / "t.db", [accepted("a")])
    before = (tmp_path / "t.db").read_bytes()
    with pytest.raises(InputError, match="is the database; choose another name"):
        export_rows(
            tmp_path / "t.db", tmp_path / "t.db", manifest=tmp_path / "m", selection=Selection(), prompts=PromptChoice()
        )
    assert (tmp_path / "t.db").read_bytes() == before


def test_a_row_that_another_program_changed_is_refused(tmp_path: Path) -> None:
    import_rows(tmp_path / "t.db", [accepted("a")])
    write_database(tmp_path / "t.db", "UPDATE examples SET conversations = '[]'")
    with pytest.raises(IntegrityError, match="example 'a' is not what its content_sha256 says"):
        export(tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()
