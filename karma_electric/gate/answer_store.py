"""Answers that were given before, so that a changed probe asks one probe anew, and a killed run goes on.

One SQLite file in a working folder that is no output of any stage: with the file deleted a run gives the same results,
only later. The key of an answer is the sha256 of everything that can change it: the weights, the axis where the answer
is capped, the engine with its build and arithmetic, and the question. Each answer is committed when it is given.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json
from karma_electric.engines.protocol import CapActivity, EngineIdentity, Generation
from karma_electric.engines.questions import Answer, Question, Weigh, Write
from karma_electric.errors import SetupError

BUSY_TIMEOUT_SECONDS = 30.0
_SCHEMA = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT"


def question_key(identity: EngineIdentity, arithmetic: str, question: Question) -> str:
    """The sha256 of all that the answer depends on. `arithmetic` names what the build computes with on this machine."""
    asked = {
        "kind": type(question).__name__,
        "engine": identity.engine,
        "build": identity.build,
        "arithmetic": arithmetic,
        "weights": identity.weights_sha256,
        "axis": identity.axis_sha256 if question.capped else None,
        "question": asdict(question),
    }
    return hashlib.sha256(canonical_json(asked).encode("utf-8")).hexdigest()


class AnswerStore:
    """Answers by key. Raises SetupError where the file cannot be used; delete it to ask everything anew."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, key: str, question: Question) -> Answer | None:
        """The answer; None when it is not there, or is not what was stored."""
        row = self._connection.execute("SELECT answer, sha256 FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None or _sha256(key, row[0]) != row[1]:
            return None
        return _decode(json.loads(row[0]), question)

    def put(self, key: str, answer: Answer) -> None:
        """Store an answer, at once and whole."""
        text = canonical_json(_encode(answer))
        self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, text, _sha256(key, text)))


@contextmanager
def open_answer_store(path: Path) -> Iterator[AnswerStore]:
    """The store in `path`, made when it is not there. Several runs may use it at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_SCHEMA)
            yield AnswerStore(connection)
    except (OSError, sqlite3.DatabaseError) as error:
        raise SetupError(
            f"{path}: the store of answers cannot be used ({error}); delete it, or free the disk"
        ) from error


def _sha256(key: str, text: str) -> str:
    return hashlib.sha256(f"{key}\n{text}".encode()).hexdigest()


def _encode(answer: Answer) -> Any:
    return asdict(answer) if isinstance(answer, Generation) else answer


def _decode(value: Any, question: Question) -> Answer | None:
    if isinstance(question, Weigh):
        return [float(weight) for weight in value]
    assert isinstance(question, Write)  # noqa: S101 - there are two kinds of question
    return Generation(
        text=value["text"],
        token_ids=tuple(value["token_ids"]),
        finish=value["finish"],
        prompt_tokens=value["prompt_tokens"],
        cap=CapActivity(**value["cap"]),
    )
