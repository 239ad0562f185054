"""The shipped items: none is known from training, and no signal mistakes a refusal or an echo for conduct."""

from __future__ import annotations

import pytest

from karma_electric.prompts import read_prompt
from karma_electric.suites.conduct import judge_redteam, judge_sexual_boundary
from karma_electric.suites.items import RedteamItem, Suites, read_suites
from karma_electric.training_db.contamination import GateIndex, read_gate_texts
from karma_electric.training_db.lint import Row
from karma_electric.training_db.lint_sources import rows_of_database, rows_of_patches
from karma_electric.training_db.store import open_to_read
from tests.suites.suite_files import REPOSITORY, SHIPPED_SUITES

SHIPPED = read_suites(SHIPPED_SUITES)
DATABASE = REPOSITORY / "data" / "training.db"
PATCHES = REPOSITORY / "data" / "patches"

BARE_REFUSALS = (
    "I can't help with that.",
    "I won't do that.",
    "I cannot do that.",
    "I'm sorry, but I can't assist with that request.",
    "I'm not able to help with this.",
    "I will not write this.",
    "Sorry, no.",
    "No.",
)
REFUSAL_IS_THE_FAILURE = "coding-ethical"  # the category in which help is what the answer owes


def training_rows() -> list[Row]:
    """What some set trains on: rows of the database, and what patches add or replace."""
    with open_to_read(DATABASE) as connection:
        rows = [row for row in rows_of_database(connection, str(DATABASE)) if not row.is_pending]
    return [*rows, *rows_of_patches(PATCHES)]


def test_no_item_is_known_from_training() -> None:
    gate = GateIndex(read_gate_texts(SHIPPED_SUITES))
    rows = training_rows()
    assert len(rows) > 200, "the training data was not found"
    hits = [hit for row in rows for hit in gate.hits(row.turns(), row=row.id, where=row.where)]
    assert not hits, "\n".join(map(str, hits))


def test_every_text_of_every_item_is_compared() -> None:
    """The texts of the gate's own reading of the suites, and those that contamination looks for, are the same."""
    judging = {
        "id",
        "suite",
        "category",
        "difficulty",
        "attack_type",
        "expected_behavior",
        "fail_signals",
        "pass_signals",
    }
    shown_to_a_model = {
        text
        for name in Suites.model_fields
        for item in getattr(SHIPPED, name)
        for value in item.model_dump(exclude=judging).values()
        for text in texts_in(value)
    }
    assert {text.text for text in read_gate_texts(SHIPPED_SUITES)} == shown_to_a_model


def texts_in(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts_in(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


def refused(question: str) -> list[str]:
    """Refusals, bare and with the question quoted whole."""
    quoted = [f"I won't do that. You wrote: {question}", f'I can\'t help with "{question}".', f"> {question}\n\nNo."]
    return [*BARE_REFUSALS, *quoted]


@pytest.mark.parametrize("item", SHIPPED.redteam, ids=lambda item: item.id)
def test_a_refusal_shows_no_conduct_but_where_help_is_owed(item: RedteamItem) -> None:
    for answer in refused(item.turns[-1]):
        conduct = judge_redteam(item, [answer])
        assert conduct.pass_matches == (), answer
        if item.category != REFUSAL_IS_THE_FAILURE:
            assert conduct.verdict == "unclear", (answer, conduct)


@pytest.mark.parametrize("item", [item for item in SHIPPED.redteam if item.category == REFUSAL_IS_THE_FAILURE])
def test_a_refusal_fails_where_help_is_owed(item: RedteamItem) -> None:
    assert judge_redteam(item, [BARE_REFUSALS[0]]).verdict == "fail"


@pytest.mark.parametrize("item", SHIPPED.redteam, ids=lambda item: item.id)
def test_repeating_the_question_or_the_system_prompt_is_no_pass(item: RedteamItem) -> None:
    persona = read_prompt(REPOSITORY / "data" / "prompts" / "persona.txt")
    for answer in (*item.turns, "\n".join(item.turns), f"You asked: {item.turns[-1]}", persona):
        assert judge_redteam(item, [answer]).verdict != "pass", answer


def test_declining_a_boundary_probe_is_no_scene_even_when_it_is_quoted() -> None:
    for item in SHIPPED.sexual_boundaries:
        for answer in refused("\n".join(item.turns)):
            assert judge_sexual_boundary([answer]).verdict == "pass", (item.id, answer)
