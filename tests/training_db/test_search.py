"""Search takes whatever a person types, ranks it, and marks what matched."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.errors import InputError
from karma_electric.training_db.search import Found, search
from karma_electric.training_db.store import open_immutable, open_to_read
from tests.training_db.rows import accepted, import_rows, row

TEXTS = {
    "plain": "I don't know what to call it.",
    "curly": "I don’t know either.",
    "plus": "Is C++ still worth it, or C#?",
    "letter": "Vitamin C is in peppers.",
    "czech": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "quoted": 'He said "leave me alone" and left.',
    "apart": "Leave the key alone with me.",
    "lines": "First line\nnext line\tand a tab",
    "path": "The file is C:\\new\\role.txt, at 50% off & more.",
    "crisis": "A crisis. The crisis line. Every crisis ends.",
    "mention": "After the long and quiet crisis came other years, with other worries and other people in them.",
    "smile": "That was kind 🙂",
    "hyphen": "Self-harm is asked about plainly.",
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "t.db"
    import_rows(path, [accepted(id_, text, category="ones") for id_, text in TEXTS.items()])
    import_rows(path, [row("waiting", "Another crisis.", category="others")])
    return path


def found(database: Path, query: str, **options: Any) -> list[Found]:
    with open_to_read(database) as connection:
        return search(connection, query, **options)


QUERIES = {
    "don't": {"plain", "curly"},
    "don’t": {"plain", "curly"},
    "DON'T know": {"plain", "curly"},
    "c++": {"plus"},
    "c#": {"plus"},
    "c": {"plus", "letter", "path"},
    "prilis": {"czech"},
    "Příliš": {"czech"},
    "zlutoucky KŮŇ": {"czech"},
    '"leave me alone"': {"quoted"},
    "leave me alone": {"quoted", "apart"},
    '"leave me': {"quoted"},
    "next line": {"lines"},
    "line next": {"lines"},
    "nnext": set(),
    "50%": {"path"},
    "role.txt": {"path"},
    "new role": {"path"},
    "cris*": {"crisis", "mention", "waiting"},
    "crisis -line": {"crisis"},
    "self-harm": {"hyphen"},
    "self harm": {"hyphen"},
    "NOT": set(),
    "crisis AND": {"mention"},
    "NEAR(crisis line)": set(),
    "id:crisis": set(),
    "role": {"path"},
    "content": set(),
    "user": set(),
    "🙂": {"smile"},
    "kind 🙂": {"smile"},
    "++": {"plus"},
    "%": {"path"},
    "others": {"waiting"},
}


@pytest.mark.parametrize(("query", "ids"), QUERIES.items(), ids=QUERIES.keys())
def test_what_a_person_types_is_found(database: Path, query: str, ids: set[str]) -> None:
    assert {hit.id for hit in found(database, query)} - {"id"} == ids


def test_the_best_match_is_first(database: Path) -> None:
    hits = found(database, "crisis")
    assert hits[0].id == "crisis"
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[-1].id == "mention"


def test_two_halves_are_ranked_as_the_whole(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = ["crisis", "the", "i", "crisis the", "lin*", "zeppelin", "c++"]
    options: list[dict[str, Any]] = [{}, {"limit": 2}, {"statuses": ["accepted"]}, {"categories": ["others"]}]
    whole = [found(database, query, **wanted) for query in queries for wanted in options]
    opened: list[Path] = []

    def opening(path: Path) -> AbstractContextManager[sqlite3.Connection]:
        opened.append(path)
        return open_immutable(path)

    monkeypatch.setattr("karma_electric.training_db.search._MANY_ROWS", 2)
    monkeypatch.setattr("karma_electric.training_db.search.open_immutable", opening)
    assert [found(database, query, **wanted) for query in queries for wanted in options] == whole
    assert len(opened) == len(whole)


def test_what_matched_is_marked(database: Path) -> None:
    (hit,) = found(database, "zlutoucky kun")
    assert [hit.snippet[start:end] for start, end in hit.matches] == ["žluťoučký", "kůň"]
    (hit,) = found(database, "next*")
    assert [hit.snippet[start:end] for start, end in hit.matches] == ["next"]
    assert "First line next line and a tab" in hit.snippet
    (hit,) = found(database, "++")
    assert [hit.snippet[start:end] for start, end in hit.matches] == ["++"]


def test_limits_and_filters(database: Path) -> None:
    assert len(found(database, "crisis", limit=1)) == 1
    assert [hit.id for hit in found(database, "crisis", statuses=["pending"])] == ["waiting"]
    assert {hit.id for hit in found(database, "crisis", categories=["ones"])} == {"crisis", "mention"}
    assert found(database, "crisis", statuses=["pending"], categories=["ones"]) == []
    assert [hit.id for hit in found(database, "++", statuses=["pending"])] == []


def test_a_changed_row_is_found_by_its_new_text_only(tmp_path: Path) -> None:
    import_rows(tmp_path / "t.db", [accepted("a", "An old harbour.")])
    import_rows(tmp_path / "t.db", [accepted("a", "A new station.")], on_conflict="replace")
    assert found(tmp_path / "t.db", "harbour") == []
    assert [hit.id for hit in found(tmp_path / "t.db", "station")] == ["a"]


@pytest.mark.parametrize("query", ["", "   ", '""', '" "', "\0", "\ud800"])
def test_nothing_to_search_for_is_said(database: Path, query: str) -> None:
    with pytest.raises(InputError, match="nothing to search for"):
        found(database, query)


def test_a_huge_query_is_refused(database: Path) -> None:
    with pytest.raises(InputError, match="has 2000 characters, at most 1000"):
        found(database, "ab" * 1000)


@given(query=st.text(min_size=1, max_size=30))
def test_no_text_is_a_syntax_error(database: Path, query: str) -> None:
    try:
        found(database, query)
    except InputError as error:
        assert "nothing to search for" in str(error)  # noqa: PT017


@given(query=st.lists(st.sampled_from([*'"*()^:+-{}', "AND", "OR", "NOT", "NEAR", "crisis", " "]), max_size=8))
def test_the_signs_of_the_index_mean_nothing(database: Path, query: list[str]) -> None:
    try:
        found(database, "".join(query))
    except InputError as error:
        assert "nothing to search for" in str(error)  # noqa: PT017
