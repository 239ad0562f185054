from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.canonical import canonical_json
from karma_electric.training_db.language import language_of
from karma_electric.training_db.statistics import Statistics, count_everything
from karma_electric.training_db.store import open_to_read
from tests.cli.running import ROOT
from tests.training_db.rows import accepted, import_rows, language, row, stored

CZECH = "Dobrý večer, přišel jsem se zeptat, kdy zítra otevíráte. Děkuji předem."


def statistics(database: Path) -> Statistics:
    with open_to_read(database) as connection:
        return count_everything(connection)


def test_everything_is_counted_by_status(tmp_path: Path) -> None:
    import_rows(
        tmp_path / "t.db",
        [
            accepted("a", tier="core", category="x"),
            accepted("b", tier="core", template_flag="opening"),
            accepted("c", role="reward-evaluator", template_flag=""),
            row("d", CZECH, status="rejected", conversations=[
                {"role": "user", "content": CZECH}, {"role": "assistant", "content": CZECH}]),
            row("e"),
        ],
    )  # fmt: skip
    found = statistics(tmp_path / "t.db")
    assert (found.examples, found.accepted, found.with_template_flag) == (5, 3, 1)
    assert found.by_status == {"accepted": 3, "pending": 1, "rejected": 1}
    assert found.by_category == {"greeting": {"accepted": 2, "pending": 1, "rejected": 1}, "x": {"accepted": 1}}
    assert found.by_tier == {"core": {"accepted": 2}, "none": {"accepted": 1, "pending": 1, "rejected": 1}}
    assert found.by_role == {
        "conversational": {"accepted": 2, "pending": 1, "rejected": 1}, "reward-evaluator": {"accepted": 1}
    }  # fmt: skip
    assert found.by_language == {"cs": {"rejected": 1}, "en": {"accepted": 3, "pending": 1}}


@pytest.mark.parametrize(
    ("score", "band"),
    [
        (40, "35-40"),
        (35, "35-40"),
        (34, "32-34"),
        (32, "32-34"),
        (31, "28-31"),
        (28, "28-31"),
        (27, "0-27"),
        (0, "0-27"),
        (None, "unscored"),
    ],
)
def test_the_bands_of_scores(tmp_path: Path, score: int | None, band: str) -> None:
    import_rows(tmp_path / "t.db", [accepted("a", hermes_score=score)])
    found = statistics(tmp_path / "t.db").by_score
    assert list(found) == ["35-40", "32-34", "28-31", "0-27", "unscored"]
    assert {name for name, counts in found.items() if counts} == {band}


def test_counting_reads_an_index_and_not_the_texts() -> None:
    with open_to_read(ROOT / "data" / "training.db") as connection:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        count_everything(connection)
        connection.set_trace_callback(None)
        (query,) = (statement for statement in statements if "GROUP BY" in statement)
        plan = " ".join(str(tuple(step)) for step in connection.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "COVERING INDEX" in plan


def conversation(text: str) -> str:
    return canonical_json([{"role": "user", "content": text}, {"role": "assistant", "content": text}])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CZECH, "cs"),
        ("Dobry vecer, kdy zitra otevirate?", "en"),  # known: Czech without accents
        ("Good evening, I'm Jiří from Žďár. When do you open tomorrow, and is there a lift to the first floor?", "en"),
        ("Good evening. When do you open?", "en"),
        ("“Quoted” – and… dashes — don’t count", "en"),
        ("Добрый вечер", "en"),
    ],
)
def test_the_language_of_a_row(text: str, expected: str) -> None:
    assert language_of(conversation(text)) == expected


@settings(max_examples=15)
@given(text=st.text(st.sampled_from("aěščřžůýí ň’\U0001f642")).filter(str.strip))
def test_the_database_tells_the_same_language(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    database = tmp_path_factory.mktemp("language") / "t.db"
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    import_rows(database, [row("a", conversations=turns)])
    (found,) = stored(database)
    assert language(database, "a") == language_of(found["conversations"])


def test_the_language_follows_a_change(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": CZECH}, {"role": "assistant", "content": CZECH}]
    import_rows(tmp_path / "t.db", [row("a")])
    import_rows(tmp_path / "t.db", [row("a", conversations=turns)], on_conflict="replace")
    assert language(tmp_path / "t.db", "a") == "cs"
    import_rows(tmp_path / "t.db", [row("a")], on_conflict="replace")
    assert language(tmp_path / "t.db", "a") == "en"


def test_the_shipped_rows_of_both_languages() -> None:
    found = statistics(ROOT / "data" / "training.db")
    assert set(found.by_language) == {"cs", "en"}
    assert found.by_language["cs"]["accepted"] >= 14
