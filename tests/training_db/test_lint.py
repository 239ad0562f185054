"""Each rule of lint: a planted fault is found, and the shipped rows have none."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from karma_electric.errors import InputError
from karma_electric.training_db.contamination import GateIndex, read_gate_texts
from karma_electric.training_db.lint import RULES, Report, Row, TokenLimit, lint
from karma_electric.training_db.lint_sources import rows_of_database, rows_of_patches
from karma_electric.training_db.private_data import find_private_data
from karma_electric.training_db.store import open_to_read
from karma_electric.training_db.token_counts import TokenCounter
from tests.cli.running import ROOT
from tests.training_db.rows import import_rows, row, write_rows

TURNS = [
    {"role": "user", "content": "The lift in our house stands still since Monday. Whom do I call?"},
    {"role": "assistant", "content": "The caretaker first, then the number on the plate inside the cabin."},
]


def stored_row(conversations: object, id_: str = "r", **changes: Any) -> Row:
    fields: dict[str, Any] = {"where": "t.db", "category": "c", "is_pending": False, "template_flag": None, **changes}
    return Row(id=id_, conversations=conversations, **fields)


def answers(*texts: str, **changes: Any) -> list[Row]:
    """Rows of unlike questions with these answers."""
    return [
        stored_row(
            [
                {"role": "user", "content": f"Question {number}, about thing{number}?"},
                {"role": "assistant", "content": t},
            ],
            id_=f"r{number}",
            **changes,
        )
        for number, t in enumerate(texts)
    ]


def rules_of(report: Report, severity: str | None = None) -> list[str]:
    return sorted({found.rule for found in report.findings if severity in (None, found.severity)})


def test_a_sound_row_has_no_finding() -> None:
    report = lint([stored_row(TURNS)], rules=[rule for rule in RULES if rule not in ("too-long", "contamination")])
    assert (report.findings, report.failures, report.rows, report.unchecked) == ([], 0, 1, {})


SPOILT: dict[str, tuple[object, list[str]]] = {
    "no turns": ([], ["empty-turn"]),
    "no list": ({"role": "user"}, ["empty-turn"]),
    "an empty turn": ([TURNS[0], {"role": "assistant", "content": " \n"}], ["empty-turn"]),
    "a turn without text": ([TURNS[0], {"role": "assistant"}], ["empty-turn"]),
    "a turn that is a number": ([TURNS[0], {"role": "assistant", "content": 3}], ["empty-turn"]),
    "an unknown role": ([{**TURNS[0], "role": "human"}, TURNS[1]], ["unknown-role"]),
    "a turn that is text": (["Hello", TURNS[1]], ["empty-turn", "unknown-role"]),
    "the assistant first": ([TURNS[1], *TURNS], ["role-order"]),
    "two questions": ([TURNS[0], *TURNS], ["role-order"]),
    "no answer": (TURNS[:1], ["role-order"]),
    "a system turn": ([{"role": "system", "content": "Be calm."}, *TURNS], ["system-turn"]),
    "a system turn in the middle": ([TURNS[0], {"role": "system", "content": "Stop."}, TURNS[1]], ["system-turn"]),
}


@pytest.mark.parametrize(("conversations", "rules"), SPOILT.values(), ids=SPOILT.keys())
def test_broken_turns_are_failures(conversations: object, rules: list[str]) -> None:
    report = lint([stored_row(conversations)])
    assert rules_of(report, "failure") == rules
    assert all(found.id == "r" and found.where == "t.db" for found in report.findings)


PRIVATE = {
    "write to jan.novak@seznam.cz soon": "e-mail address",
    "call +420 777 123 456 after six": "telephone number",
    "or on 777 123 456, or not": "telephone number",
    "my card is 4111 1111 1111 1111": "payment card",
    "pay to CZ65 0800 0000 1920 0014 5399 by Friday": "bank account",
    "born under 855223/0005 in Brno": "birth number",
    "the server 8.8.8.8 is down": "network address",
    "password: hunter22": "password",
    "https://me:pw123@files.net/x": "password in an address",
    "export HF_TOKEN=hf_abcdefghijklmnopqrst1234": "access key",
    "AKIA1234567890ABCDEF": "access key",
    "-----BEGIN RSA PRIVATE KEY-----": "private key",
    "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK": "web token",
}  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), PRIVATE.items(), ids=PRIVATE.values())
def test_secrets_and_personal_data_are_found_and_not_repeated(text: str, kind: str) -> None:
    assert [name for name, _ in find_private_data(text)] == [kind]
    (found,) = lint([stored_row([TURNS[0], {"role": "assistant", "content": text}])], rules=["private-data"]).findings
    assert f"turn 2 holds what looks like a {kind}" in found.message
    assert text not in found.message


@pytest.mark.parametrize(
    "text",
    [
        "Call 116 123, 988, 112 or 116 111; in the US also 911.",
        "a@example.org and b@mail.example.com are examples",
        "192.168.1.1, 10.0.0.7, 127.0.0.1, and version 1.2.3.4.5 or v1.2.3.4",
        "In 2019, 2020 and 2021 it was 1,200,000 or 1 200 000 crowns, 12.5 % more.",
        "4111 1111 1111 1112 fails the check digit, 855223/0006 too.",
        "Your password: ask for a new one. The secret: patience.",
        "sk-8 and hf_short are no keys",
        "from 7-9 on 24/7, 10:30-11:45, room 302-305",
    ],
)
def test_what_only_looks_alike_is_no_personal_data(text: str) -> None:
    assert list(find_private_data(text)) == []


@pytest.mark.parametrize("part", ["a.", "a@", "1 ", "x:/", "eyJ.", "key="])
def test_a_huge_turn_does_not_take_long(part: str) -> None:
    """Every pattern is bounded; one that is not takes hours here."""
    list(find_private_data(part * (400_000 // len(part))))


def test_a_row_that_is_too_long_is_told_by_the_real_tokenizer(tiny_llama: Path) -> None:
    counter = TokenCounter(tiny_llama)
    limit = TokenLimit(counter, max_tokens=60, prompt_of=lambda category: "Be calm." if category == "long" else None)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    expected = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be calm."}, *TURNS], tokenize=True, return_dict=True
    )["input_ids"]
    report = lint([stored_row(TURNS, category="long")], rules=["too-long"], token_limit=limit)
    (found,) = report.findings
    assert found.message == f"{len(expected)} tokens, training takes 60; shorten it"
    assert found.severity == "warning"
    assert lint([stored_row(TURNS)], token_limit=TokenLimit(counter, 4096)).findings == []
    assert TokenCounter(tiny_llama / "tokenizer.json").count(()) == counter.count(())


def test_a_missing_tokenizer_or_template_is_named(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: missing; `dvc repro base`"):
        TokenCounter(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: no tokenizer"):
        TokenCounter(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_llama / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="has no chat template"):
        TokenCounter(tmp_path)


def test_what_cannot_be_checked_is_said() -> None:
    report = lint([stored_row(TURNS)])
    assert set(report.unchecked) == {"too-long", "contamination"}
    with pytest.raises(InputError, match="no rule 'spelling'; there are empty-turn"):
        lint([], rules=["spelling"])


def test_a_gate_item_is_a_failure_and_in_a_pending_row_a_warning(tmp_path: Path) -> None:
    item = {"id": "x-001", "prompt": TURNS[0]["content"]}
    gate = GateIndex(read_gate_texts(write_rows(tmp_path / "x.jsonl", [item]).parent))
    rows = [stored_row(TURNS, "a"), stored_row([{**TURNS[0], "content": "Hi"}, TURNS[1]], "b", is_pending=True)]
    rows.append(stored_row(TURNS, "c", is_pending=True))
    found = lint(rows, rules=["contamination"], gate=gate).findings
    assert [(finding.id, finding.severity) for finding in found] == [("a", "failure"), ("c", "warning")]
    assert str(found[0]).startswith("t.db: 'a': holds prompt of the gate item 'x-001'")


def test_near_duplicates_and_the_same_question() -> None:
    near = [TURNS[0], {"role": "assistant", "content": TURNS[1]["content"].replace("inside", "within")}]
    other = [{**TURNS[0], "content": TURNS[0]["content"].upper()}, {**TURNS[1], "content": "No idea. Ask at the desk."}]
    report = lint(
        [stored_row(TURNS, "a"), stored_row(near, "b"), stored_row(other, "c"), stored_row(near, "a")],
        rules=["near-duplicates", "same-question"],
    )
    assert [(f.rule, f.severity, f.id) for f in report.findings] == [
        ("near-duplicates", "failure", "a"), ("same-question", "warning", "b"), ("same-question", "warning", "c"),
    ]  # fmt: skip
    assert "nearly the same as 'b', 'c'" in report.findings[0].message or "same as 'b'" in report.findings[0].message


VARIED = [
    " ".join(f"w{number}x{place}" for place in range(30)) for number in range(60)
]  # answers that have no word in common


def test_one_template_of_swapped_nouns_is_found() -> None:
    frame = "I hear that {} is hard for you, and I want you to know that {} will pass if you give {} some time."
    nouns = [("moving", "it", "that"), ("your boss", "anger", "them"), ("the exam", "panic", "yourself")]
    report = lint(answers(*VARIED, *(frame.format(*three) for three in nouns)), rules=["templates"])
    assert report.template_rows == 3
    assert [(f.severity, f.id) for f in report.findings] == [
        ("failure", None), ("warning", "r60"), ("warning", "r61"), ("warning", "r62"),
    ]  # fmt: skip
    assert "templates: 3 of 63 rows, at most 2% may be" in report.findings[0].message


def test_two_percent_of_templates_are_allowed() -> None:
    flagged = stored_row(TURNS, "flagged", template_flag="opening")
    report = lint([*answers(*VARIED), flagged], rules=["templates"])
    assert (report.template_rows, report.failures) == (1, 0)
    assert report.findings[0].message == "flagged opening"


def test_a_common_opening_is_a_template() -> None:
    opened = [f"Thank you for asking {text}" for text in VARIED[:3]]
    assert lint(answers(*opened[:2], *VARIED[3:]), rules=["templates"]).template_rows == 0
    report = lint(answers(*opened, *VARIED[3:]), rules=["templates"])
    assert report.template_rows == 3
    assert "3 answers open with 'thank you for asking'" in report.findings[1].message


def test_the_form_of_a_rating_is_no_template() -> None:
    names = ("Acknowledgment", "Helpfulness", "Authenticity", "Boundaries", "Suffering-reduction", "Overall")
    forms = ["\n".join(f"{n}: 5/10 - {text[i * 9 : i * 9 + 25]}" for i, n in enumerate(names)) for text in VARIED[:30]]
    assert lint(answers(*forms), rules=["templates"]).template_rows == 0


def test_distinct_runs_are_counted_by_category() -> None:
    dull = " ".join(["we will see what we can do about it"] * 20)
    report = lint([*answers(*VARIED, category="varied"), *answers(dull, category="dull")], rules=["diversity"])
    assert list(report.diversity) == ["dull", "varied"]
    assert report.diversity["varied"].distinct_3 == 1
    assert report.diversity["dull"].distinct_3 < 0.1
    (found,) = report.findings
    assert (found.where, found.severity) == ("category dull", "warning")


def test_diversity_does_not_fall_with_the_size_of_a_category() -> None:
    stretch = VARIED[:34]  # 1,020 words
    once = lint(answers(*stretch), rules=["diversity"]).diversity["c"]
    thrice = lint(answers(*itertools.chain(stretch, stretch, stretch)), rules=["diversity"]).diversity["c"]
    assert once.distinct_3 == 1
    assert thrice.distinct_3 > 0.95


def test_rows_come_from_the_database_and_from_patches(tmp_path: Path) -> None:
    statuses = ("accepted", "pending", "rejected", "archived")
    import_rows(tmp_path / "t.db", [row(status, status=status) for status in statuses])
    write_rows(tmp_path / "patches" / "v8" / "a.jsonl", [row("new"), {"op": "retire", "id": "accepted"}])
    write_rows(tmp_path / "patches" / "v7" / "b.jsonl", [{"op": "replace", **row("accepted")}])
    with open_to_read(tmp_path / "t.db") as connection:
        found = list(rows_of_database(connection, "t.db"))
    assert [(one.id, one.is_pending) for one in found] == [("accepted", False), ("pending", True)]
    assert [(one.id, one.where) for one in rows_of_patches(tmp_path / "patches")] == [
        ("accepted", f"{tmp_path}/patches/v7/b.jsonl:1"), ("new", f"{tmp_path}/patches/v8/a.jsonl:1"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="none: missing; expected a folder with a folder of patches"):
        list(rows_of_patches(tmp_path / "none"))


def test_the_shipped_rows_have_no_failure() -> None:
    with open_to_read(ROOT / "data" / "training.db") as connection:
        rows = [*rows_of_database(connection, "data/training.db"), *rows_of_patches(ROOT / "data" / "patches")]
    report = lint(rows, gate=GateIndex(read_gate_texts(ROOT / "data" / "suites")))
    assert report.rows > 200
    assert [str(found) for found in report.findings] == []
    assert all(found.distinct_3 > 0.95 for found in report.diversity.values())
