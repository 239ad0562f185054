"""The tables of the training database, as numbered migrations: `PRAGMA user_version` says how many have run."""

from __future__ import annotations

import sqlite3

from karma_electric.errors import InputError

STATUSES = ("accepted", "rejected", "pending", "archived")
ROLES = ("conversational", "reward-evaluator")

APPLICATION_ID = 0x4B61526D  # "KaRm": tells our file from any other SQLite file

_MIGRATIONS = (
    """
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
    """,
)


SCHEMA_VERSION = len(_MIGRATIONS)


def schema_version(connection: sqlite3.Connection, name: str) -> int:
    """How many migrations have run: 0 for an empty file. Another program's file, or a newer one, is an InputError."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    done = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application_id not in (0, APPLICATION_ID) or (application_id == 0 and tables):
        raise InputError(f"{name}: an SQLite file of another program; expected a training database of this project")
    if done > SCHEMA_VERSION:
        raise InputError(f"{name}: made by a newer version (schema {done}, this one knows {SCHEMA_VERSION}); update")
    return int(done)


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Bring an empty or older database to this schema. Raises InputError as `schema_version` does."""
    for number in range(schema_version(connection, name), SCHEMA_VERSION):
        connection.executescript(
            f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA user_version = {number + 1}; "
            f"PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
        )
