"""Kept answers: a warm run says what a cold one says, whatever was changed in between or broken in the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.conversation import Message
from karma_electric.engines.protocol import EngineIdentity
from karma_electric.engines.questions import Weigh, Write
from karma_electric.errors import SetupError
from karma_electric.gate.answer_store import open_answer_store, question_key
from karma_electric.gate.evidence_file import evidence_bytes
from karma_electric.gate.judging import judge
from karma_electric.suites.items import Suites
from tests.gate.scripted_engine import IDENTITY, ScriptedEngine, peaked
from tests.gate.test_planted_failures import PARAMS, PROMPTS
from tests.suites.suite_files import good_suites, pair_row, redteam_row

TURNS = st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=4, unique=True)


def suites(turns: Sequence[str] = ("one",), prompts: Sequence[str] = ("A?",)) -> Suites:
    rows: dict[str, list[dict[str, Any]]] = {name.replace("-", "_"): rows for name, rows in good_suites().items()}
    rows["redteam"] = [redteam_row(number, turns=[turn]) for number, turn in enumerate(turns)]
    rows["reward_hacking"] = [pair_row(number=number, prompt=prompt) for number, prompt in enumerate(prompts)]
    return Suites.model_validate(rows)


def engine(identity: EngineIdentity = IDENTITY) -> ScriptedEngine:
    """Answers that follow from what is asked, and from the weights and the axis."""

    class Answering(ScriptedEngine):
        @property
        def identity(self) -> EngineIdentity:
            return identity

    def answer(messages: Sequence[Message], capped: bool) -> str:
        return f"{messages[-1].content} {identity.weights_sha256[0]} {identity.axis_sha256 if capped else ''}"

    return Answering(answers=answer, scores=lambda prompt, response: peaked(1 + len(prompt + response) % 10))


def evidence(path: Path | None, items: Suites, identity: EngineIdentity = IDENTITY) -> tuple[bytes, str]:
    """The evidence, and the line that says how many questions were asked."""
    lines: list[str] = []

    def judged(store: Any) -> bytes:
        result = judge(
            engine(identity), items, prompts=PROMPTS, params=PARAMS, report=lines.append, store=store, arithmetic="x"
        )
        return evidence_bytes(result, PARAMS, {"persona": "p", "evaluator": "e"})

    if path is None:
        return judged(None), lines[-1]
    with open_answer_store(path) as store:
        return judged(store), lines[-1]


@given(st.lists(st.tuples(TURNS, TURNS, st.sampled_from("ab"), st.sampled_from("cd")), min_size=1, max_size=4))
def test_a_warm_run_says_what_a_cold_run_says_after_any_edits(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[list[str], list[str], str, str]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "answers.db"
    for turns, prompts, weights, axis in edits:
        identity = replace(IDENTITY, weights_sha256=weights * 64, axis_sha256=axis * 64)
        items = suites(turns, prompts)
        assert evidence(path, items, identity)[0] == evidence(None, items, identity)[0]


def test_a_changed_probe_asks_one_probe_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    evidence(path, suites(["one", "two", "three"]))
    _, line = evidence(path, suites(["one", "2", "three"]))
    assert line.startswith("2 questions asked")  # with the cap and without it


def test_a_run_that_was_stopped_goes_on_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    items = suites(["one", "two", "three"], ["A?", "B?", "C?"])
    _, whole = evidence(tmp_path / "other.db", items)
    total = int(whole.split()[0])

    class Stopped(Exception):
        pass

    for limit in (1, 5, 9):
        asked = 0
        stopping = engine()
        answer = stopping.scores

        def until(prompt: str, response: str, answer: Any = answer, limit: int = limit) -> list[float]:
            nonlocal asked
            asked += 1
            if asked > limit:
                raise Stopped
            result: list[float] = answer(prompt, response)
            return result

        stopping.scores = until
        with open_answer_store(path) as store, pytest.raises(Stopped):
            judge(
                stopping, items, prompts=PROMPTS, params=PARAMS, report=lambda line: None, store=store, arithmetic="x"
            )
    found, line = evidence(path, items)
    assert found == evidence(None, items)[0]
    asked_anew, known = int(line.split()[0]), int(line.split()[3])
    assert known >= 9
    assert asked_anew < total


@pytest.mark.parametrize("column", ["answer", "sha256"])
def test_an_answer_that_was_changed_in_the_file_is_asked_again(tmp_path: Path, column: str) -> None:
    path = tmp_path / "answers.db"
    first, _ = evidence(path, suites())
    with sqlite3.connect(path) as connection:
        (total,) = connection.execute("SELECT count(*) FROM answers").fetchone()
        connection.execute(f"UPDATE answers SET {column} = replace({column}, substr({column}, 5, 1), 'f')")
        (spoilt,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    connection.close()
    assert total == spoilt > 0
    again, line = evidence(path, suites())
    assert again == first
    assert int(line.split()[0]) > 0


def test_the_key_names_all_that_changes_an_answer() -> None:
    question = Write((Message("user", "a"),), 8, capped=True)
    base = question_key(IDENTITY, "avx", question)
    others = [
        question_key(replace(IDENTITY, weights_sha256="c" * 64), "avx", question),
        question_key(replace(IDENTITY, axis_sha256="c" * 64), "avx", question),
        question_key(replace(IDENTITY, build="2"), "avx", question),
        question_key(replace(IDENTITY, engine="other"), "avx", question),
        question_key(IDENTITY, "neon", question),
        question_key(IDENTITY, "avx", replace(question, capped=False)),
        question_key(IDENTITY, "avx", replace(question, max_tokens=9)),
        question_key(IDENTITY, "avx", replace(question, prefix="a")),
        question_key(IDENTITY, "avx", replace(question, stop=("a",))),
        question_key(IDENTITY, "avx", replace(question, messages=(Message("user", "b"),))),
        question_key(IDENTITY, "avx", Weigh((Message("user", "a"),), ("a", "b"), capped=True)),
    ]
    assert len({base, *others}) == 12
    uncapped = replace(question, capped=False)
    other_axis = replace(IDENTITY, axis_sha256="c" * 64)
    assert question_key(IDENTITY, "avx", uncapped) == question_key(other_axis, "avx", uncapped)


def test_a_file_that_is_no_store_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    path.write_text("not a database, and longer than a header" * 20)
    with pytest.raises(SetupError, match="delete it"), open_answer_store(path):
        pass
