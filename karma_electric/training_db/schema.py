"""The tables of the training database, as numbered migrations: `PRAGMA user_version` says how many have run."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

from karma_electric.errors import InputError
from karma_electric.training_db.hashes import register_functions
from karma_electric.training_db.language import language_in_sql

STATUSES = ("accepted", "rejected", "pending", "archived")
ROLES = ("conversational", "reward-evaluator")
EVALUATOR_CATEGORY = "reward-evaluation"
EVALUATOR_ROLE = "reward-evaluator"

APPLICATION_ID = 0x4B61526D  # "KaRm": tells our file from any other SQLite file

_FIRST = """
CREATE TABLE examples (
    id TEXT PRIMARY KEY CHECK (length(id) > 0),
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('accepted', 'rejected', 'pending', 'archived')),
    source TEXT NOT NULL,
    category TEXT NOT NULL,
    conversations TEXT NOT NULL CHECK (json_valid(conversations)),
    hermes_score INTEGER CHECK (hermes_score BETWEEN 0 AND 40),
    hermes_evaluation TEXT,
    rejection_reason TEXT,
    template_flag TEXT,
    added_at TEXT NOT NULL,
    scored_at TEXT,
    notes TEXT,
    reasoning TEXT,
    tier TEXT,
    role TEXT NOT NULL DEFAULT 'conversational' CHECK (role IN ('conversational', 'reward-evaluator'))
) STRICT;
CREATE INDEX examples_by_category ON examples (category, id);
CREATE TABLE system_prompts (id TEXT PRIMARY KEY, content TEXT NOT NULL, description TEXT) STRICT;
CREATE VIRTUAL TABLE examples_fts USING fts5 (
    id, conversations, category, content = 'examples', content_rowid = 'rowid',
    tokenize = 'unicode61 remove_diacritics 2'
);
CREATE TRIGGER examples_after_insert AFTER INSERT ON examples BEGIN
    INSERT INTO examples_fts (rowid, id, conversations, category)
    VALUES (new.rowid, new.id, new.conversations, new.category);
END;
CREATE TRIGGER examples_after_delete AFTER DELETE ON examples BEGIN
    INSERT INTO examples_fts (examples_fts, rowid, id, conversations, category)
    VALUES ('delete', old.rowid, old.id, old.conversations, old.category);
END;
CREATE TRIGGER examples_after_update AFTER UPDATE ON examples BEGIN
    INSERT INTO examples_fts (examples_fts, rowid, id, conversations, category)
    VALUES ('delete', old.rowid, old.id, old.conversations, old.category);
    INSERT INTO examples_fts (rowid, id, conversations, category)
    VALUES (new.rowid, new.id, new.conversations, new.category);
END;
"""

# The full-text index holds what a person reads: the messages' contents, a line break after each. The stored JSON would
# put the word "role" into every row, and its "\\n" would glue an n to the first word of a line. These replacements undo
# canonical JSON; json_each cannot be used, because FTS5 reads its content table without virtual tables.
_REPLACEMENTS = (
    ("""'[{"content":"'""", "''"),
    ("""',{"content":"'""", "''"),
    ("""'","role":"user"}'""", "char(10)"),
    ("""'","role":"assistant"}'""", "char(10)"),
    ("""'","role":"system"}'""", "char(10)"),
    ("char(10) || ']'", "char(10)"),
    (r"'\\'", "char(1)"),  # stands for a backslash until the other escapes are undone
    (r"'\n'", "char(10)"),
    (r"'\t'", "char(9)"),
    (r"'\r'", "char(13)"),
    ("""'\\"'""", """'"'"""),
    ("char(1)", r"'\'"),
)


def _text_of(row: str) -> str:
    """The SQL expression for the text of a conversation."""
    expression = f"{row}.conversations"
    for found, put in _REPLACEMENTS:
        expression = f"replace({expression}, {found}, {put})"
    return expression


# `conversations` stands last: what is long goes to overflow pages, and the columns before it are read without them.
# An example is never deleted and never renamed, or its history would hang in the air; it is archived.
# The triggers before an insert are for INSERT OR REPLACE, which deletes without calling the triggers of DELETE.
_SECOND = """
CREATE TABLE examples_2 (
    id TEXT PRIMARY KEY CHECK (length(id) > 0),
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('accepted', 'rejected', 'pending', 'archived')),
    source TEXT NOT NULL,
    category TEXT NOT NULL,
    hermes_score INTEGER CHECK (hermes_score BETWEEN 0 AND 40),
    hermes_evaluation TEXT,
    rejection_reason TEXT,
    template_flag TEXT,
    added_at TEXT NOT NULL,
    scored_at TEXT,
    notes TEXT,
    reasoning TEXT,
    tier TEXT,
    role TEXT NOT NULL DEFAULT 'conversational' CHECK (role IN ('conversational', 'reward-evaluator')),
    content_sha256 TEXT NOT NULL CHECK (length(content_sha256) = 64 AND NOT content_sha256 GLOB '*[^0-9a-f]*'),
    language TEXT NOT NULL DEFAULT 'en' CHECK (language IN ('en', 'cs')),
    conversations TEXT NOT NULL CHECK (json_valid(conversations))
) STRICT;
INSERT INTO examples_2 (
    id, status, source, category, hermes_score, hermes_evaluation, rejection_reason, template_flag, added_at,
    scored_at, notes, reasoning, tier, role, content_sha256, conversations
) SELECT
    id, status, source, category, hermes_score, hermes_evaluation, rejection_reason, template_flag, added_at,
    scored_at, notes, reasoning, tier, role,
    karma_content_sha256(id, source, category, karma_canonical(conversations)), karma_canonical(conversations)
FROM examples ORDER BY id;
DROP TABLE examples;
DROP TABLE examples_fts;
ALTER TABLE examples_2 RENAME TO examples;
UPDATE examples SET language = {language of examples};
CREATE INDEX examples_by_category ON examples (category, id);
CREATE INDEX examples_by_time ON examples (added_at, id);
CREATE INDEX examples_for_counts ON examples (status, category, role, tier, language, hermes_score, template_flag);

CREATE TABLE exports (
    number INTEGER PRIMARY KEY,
    record TEXT NOT NULL CHECK (json_valid(record))
) STRICT;
CREATE TABLE history (
    number INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    command TEXT NOT NULL,
    detail TEXT,
    subject TEXT NOT NULL CHECK (subject IN ('examples', 'system_prompts')),
    id TEXT NOT NULL,
    before_sha256 TEXT CHECK (length(before_sha256) = 64),
    after_sha256 TEXT NOT NULL CHECK (length(after_sha256) = 64),
    reverse_patch TEXT CHECK (reverse_patch IS NULL OR json_valid(reverse_patch)),
    CHECK ((before_sha256 IS NULL) = (reverse_patch IS NULL))
) STRICT;
CREATE INDEX history_by_id ON history (id, number);
CREATE TRIGGER history_is_appended BEFORE INSERT ON history
WHEN new.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM history) BEGIN
    SELECT raise(ABORT, 'history is append-only: a new row has the next number');
END;
CREATE TRIGGER history_is_not_changed BEFORE UPDATE ON history BEGIN
    SELECT raise(ABORT, 'history is append-only');
END;
CREATE TRIGGER history_is_not_deleted BEFORE DELETE ON history BEGIN
    SELECT raise(ABORT, 'history is append-only');
END;
INSERT INTO history (number, at, command, detail, subject, id, after_sha256)
SELECT row_number() OVER (ORDER BY id), added_at, 'upgrade', 'from schema 1', 'examples', id, karma_row_sha256(
    id, status, source, category, hermes_score, hermes_evaluation, rejection_reason, template_flag, added_at,
    scored_at, notes, reasoning, tier, role, content_sha256
) FROM examples ORDER BY id;
INSERT INTO history (number, at, command, detail, subject, id, after_sha256)
SELECT (SELECT count(*) FROM examples) + row_number() OVER (ORDER BY id),
    coalesce((SELECT max(added_at) FROM examples), ''), 'upgrade', 'from schema 1', 'system_prompts', id,
    karma_prompt_sha256(id, content, description)
FROM system_prompts ORDER BY id;

CREATE VIEW examples_text AS
    SELECT rowid, id, {text of examples} AS conversations, category FROM examples;
CREATE VIRTUAL TABLE examples_fts USING fts5 (
    id, conversations, category, content = 'examples_text', content_rowid = 'rowid',
    tokenize = 'unicode61 remove_diacritics 2'
);
INSERT INTO examples_fts (examples_fts) VALUES ('rebuild');
CREATE TRIGGER examples_are_not_overwritten BEFORE INSERT ON examples
WHEN EXISTS (SELECT 1 FROM examples WHERE id = new.id) BEGIN
    SELECT raise(ABORT, 'UNIQUE constraint failed: examples.id');
END;
CREATE TRIGGER examples_are_not_deleted BEFORE DELETE ON examples BEGIN
    SELECT raise(ABORT, 'an example is archived, not deleted');
END;
CREATE TRIGGER examples_are_not_renamed BEFORE UPDATE OF id ON examples WHEN new.id IS NOT old.id BEGIN
    SELECT raise(ABORT, 'an example keeps its id');
END;
CREATE TRIGGER examples_language_after_insert AFTER INSERT ON examples
WHEN new.language <> {language of new} BEGIN
    UPDATE examples SET language = {language of new} WHERE rowid = new.rowid;
END;
CREATE TRIGGER examples_language_after_update AFTER UPDATE OF conversations ON examples
WHEN new.language <> {language of new} BEGIN
    UPDATE examples SET language = {language of new} WHERE rowid = new.rowid;
END;
CREATE TRIGGER examples_after_update AFTER UPDATE OF conversations, category ON examples BEGIN
    INSERT INTO examples_fts (examples_fts, rowid, id, conversations, category)
    VALUES ('delete', old.rowid, old.id, {text of old}, old.category);
    INSERT INTO examples_fts (rowid, id, conversations, category)
    VALUES (new.rowid, new.id, {text of new}, new.category);
END;
"""

INDEX_TRIGGER_NAME = "examples_after_insert"
_INDEX_TRIGGER = """
CREATE TRIGGER examples_after_insert AFTER INSERT ON examples BEGIN
    INSERT INTO examples_fts (rowid, id, conversations, category)
    VALUES (new.rowid, new.id, {text of new}, new.category);
END;
"""


def _filled(script: str) -> str:
    """The script with the expressions for text and language in place of `{text of new}` and the like."""
    script = re.sub(r"\{text of (\w+)\}", lambda found: _text_of(found[1]), script)
    return re.sub(r"\{language of (\w+)\}", lambda found: language_in_sql(f"{found[1]}.conversations"), script)


INDEX_TRIGGER = _filled(_INDEX_TRIGGER)
_MIGRATIONS = (_FIRST, _filled(_SECOND) + INDEX_TRIGGER)

SCHEMA_VERSION = len(_MIGRATIONS)


def schema_version(connection: sqlite3.Connection, name: str) -> int:
    """How many migrations have run: 0 for an empty file. Another program's file, or a newer one, is an InputError."""
    # One statement, so one moment: another program may be making the tables.
    application_id, done, tables = connection.execute(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version), "
        "(SELECT count(*) FROM sqlite_master)"
    ).fetchone()
    if application_id not in (0, APPLICATION_ID) or (application_id == 0 and tables):
        raise InputError(f"{name}: an SQLite file of another program; expected a training database of this project")
    if done > SCHEMA_VERSION:
        raise InputError(f"{name}: made by a newer version (schema {done}, this one knows {SCHEMA_VERSION}); update")
    return int(done)


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Bring an empty or older database to this schema, in one transaction. Raises InputError as `schema_version` does.

    The connection is in autocommit mode (`isolation_level=None`).
    """
    if schema_version(connection, name) == SCHEMA_VERSION:
        return
    register_functions(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again: another program may have brought it here while this one waited.
        for number in range(schema_version(connection, name), SCHEMA_VERSION):
            for statement in _statements(_MIGRATIONS[number]):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit before each."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
