"""Full-text search for whatever a person types.

Words must all be there, in any order; words in double quotes must stand together; a word that ends in `*` is the
beginning of one. Case and accents don't matter: `prilis` finds `Příliš`. Signs inside a word separate (`don't` is
`don` before `t`, with either apostrophe), but `+`, `#` and other symbols must be there, so `c++` is not `c`.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from karma_electric.errors import InputError
from karma_electric.training_db.store import open_immutable

MAX_QUERY_CHARACTERS = 1000
SNIPPET_WORDS = 24
_MANY_ROWS = 50_000
_ID_WEIGHT, _TEXT_WEIGHT, _CATEGORY_WEIGHT = 4.0, 1.0, 2.0

# Marks around a match in a snippet; the store refuses texts that hold a NUL, and these are as rare.
_OPEN, _CLOSE = "\x02", "\x03"
_TERM = re.compile(r'"([^"]*)"?|([^\s"]+)')


@dataclass(frozen=True, slots=True)
class Found:
    """An example that was found. `matches` are (start, end) of what matched in `snippet`; the first is the best."""

    id: str
    status: str
    category: str
    score: float
    snippet: str
    matches: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Term:
    text: str
    is_beginning: bool

    def as_fts(self) -> str:
        """The term as a string of FTS5, in which nothing but a quote has a meaning; a term never holds one."""
        return f'"{self.text}"' + ("*" if self.is_beginning else "")

    def has_words(self) -> bool:
        return any(character.isalnum() for character in self.text)

    def symbols(self) -> str | None:
        """The folded text when it holds a symbol, which the index does not know."""
        inside = self.text.strip("\"'.,;:!?()[]…“”„’‘")
        if any(_is_symbol(character) for character in inside):
            return _folded(inside)
        return None


def search(
    connection: sqlite3.Connection,
    query: str,
    *,
    limit: int = 20,
    statuses: Sequence[str] = (),
    categories: Sequence[str] = (),
) -> list[Found]:
    """The best `limit` examples, best first. Raises InputError for a query without a word or symbol, or a huge one."""
    terms = _parse(query)
    symbols = [folded for term in terms if (folded := term.symbols())]
    with_words = [term for term in terms if term.has_words()]
    condition, arguments = _filters(statuses, categories)
    rows: Iterable[tuple[int, float]]
    if with_words:
        match = " ".join(term.as_fts() for term in with_words)
        most = None if symbols else limit  # of what the index finds, the texts may leave out some
        rows = _ranked(connection, match, condition, arguments, most)
    else:
        rows = _scanned(connection, [_folded(term.text) for term in terms], condition, arguments)
    found: list[Found] = []
    for rowid, score in rows:
        if len(found) == limit:
            break
        if symbols and not _holds(connection, rowid, symbols):
            continue
        found.append(_found(connection, rowid, score, with_words, symbols))
    return found


def _parse(query: str) -> list[_Term]:
    if len(query) > MAX_QUERY_CHARACTERS:
        raise InputError(f"the query has {len(query)} characters, at most {MAX_QUERY_CHARACTERS} are searched for")
    visible = "".join(" " if unicodedata.category(character) in ("Cc", "Cs") else character for character in query)
    terms: list[_Term] = []
    for match in _TERM.finditer(visible):
        phrase, word = match[1], match[2]
        if phrase is not None:
            terms.append(_Term(phrase, is_beginning=False))
        else:
            beginning = len(word) > 1 and word.endswith("*") and word[-2].isalnum()
            terms.append(_Term(word[:-1] if beginning else word, beginning))
    terms = [term for term in terms if term.text.strip()]
    if not terms:
        raise InputError('nothing to search for; give a word, a "quoted phrase", or the beginning of a word with *')
    return terms


def _filters(statuses: Sequence[str], categories: Sequence[str]) -> tuple[str, list[str]]:
    condition = ""
    for column, values in (("status", statuses), ("category", categories)):
        if values:
            condition += f" AND examples.{column} IN ({', '.join('?' * len(values))})"
    return condition, [*statuses, *categories]


def _ranked(
    connection: sqlite3.Connection, match: str, condition: str, arguments: list[str], most: int | None
) -> list[tuple[int, float]]:
    """(rowid, score) by BM25, the best first, at most `most`. FTS5 gives better matches lower numbers; turned round.

    A score takes FTS5 a microsecond or two, so a word of most rows takes a while in a large database: two threads then
    rank a half each. What a word weighs is counted over all rows by either.
    """
    join = "JOIN examples ON examples.rowid = examples_fts.rowid" if condition else ""
    query = (
        f"SELECT examples_fts.rowid, rank FROM examples_fts {join} "  # noqa: S608 - names of ours; values are bound
        f"WHERE examples_fts MATCH ? AND rank MATCH 'bm25({_ID_WEIGHT}, {_TEXT_WEIGHT}, {_CATEGORY_WEIGHT})' "
        f"AND examples_fts.rowid BETWEEN ? AND ?{condition} ORDER BY rank, examples_fts.rowid LIMIT ?"
    )

    def best(connection: sqlite3.Connection, first: int, last: int) -> list[tuple[float, int]]:
        found = connection.execute(query, (match, first, last, *arguments, -1 if most is None else most))
        return [(rank, rowid) for rowid, rank in found]

    def best_of_the_file(path: Path, first: int, last: int) -> list[tuple[float, int]]:
        with open_immutable(path) as another:
            return best(another, first, last)

    (last,) = connection.execute("SELECT coalesce(max(rowid), 0) FROM examples").fetchone()
    file = connection.execute("PRAGMA database_list").fetchone()[2]
    if last < _MANY_ROWS or not file:
        ranked = best(connection, 0, last)
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as threads:
            half = threads.submit(best_of_the_file, Path(file), 0, last // 2)
            ranked = best(connection, last // 2 + 1, last)
            ranked = sorted(ranked + half.result())[:most]
    return [(rowid, -rank) for rank, rowid in ranked]


def _scanned(
    connection: sqlite3.Connection, wanted: list[str], condition: str, arguments: list[str]
) -> Iterator[tuple[int, float]]:
    """(rowid, 0) of the rows that hold every text of `wanted`: signs alone, which no index knows. Reads every row."""
    query = f"SELECT rowid FROM examples WHERE true{condition} ORDER BY category, id"  # noqa: S608
    for (rowid,) in connection.execute(query, arguments):
        if _holds(connection, rowid, wanted):
            yield rowid, 0.0


def _holds(connection: sqlite3.Connection, rowid: int, wanted: list[str]) -> bool:
    row = connection.execute("SELECT id, conversations, category FROM examples_text WHERE rowid = ?", (rowid,))
    text = _folded("\n".join(row.fetchone()))
    return all(part in text for part in wanted)


def _found(connection: sqlite3.Connection, rowid: int, score: float, terms: list[_Term], symbols: list[str]) -> Found:
    id_, status, category = connection.execute(
        "SELECT id, status, category FROM examples WHERE rowid = ?", (rowid,)
    ).fetchone()
    if terms:
        marked = connection.execute(
            f"SELECT snippet(examples_fts, 1, '{_OPEN}', '{_CLOSE}', '…', {SNIPPET_WORDS}) FROM examples_fts "  # noqa: S608
            "WHERE examples_fts MATCH ? AND rowid = ?",
            (" ".join(term.as_fts() for term in terms), rowid),
        ).fetchone()[0]
    else:
        text = connection.execute("SELECT conversations FROM examples_text WHERE rowid = ?", (rowid,)).fetchone()[0]
        marked = _marked_sign(text, symbols)
    snippet, matches = _unmarked(" ".join(str(marked).split()))
    return Found(id_, status, category, round(score, 4), snippet, matches)


def _marked_sign(text: str, symbols: list[str]) -> str:
    """Some words around the first sign, marked; the beginning when folding moved it."""
    for symbol in symbols:
        place = text.casefold().find(symbol)
        if place >= 0:
            end = place + len(symbol)
            start = max(0, place - 60)
            return f"{'…' * (start > 0)}{text[start:place]}{_OPEN}{text[place:end]}{_CLOSE}{text[end : end + 90]}"
    return text[:150]


def _unmarked(marked: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    matches: list[tuple[int, int]] = []
    text = ""
    start = 0
    for part in re.split(f"([{_OPEN}{_CLOSE}])", marked):
        if part == _OPEN:
            start = len(text)
        elif part == _CLOSE:
            matches.append((start, len(text)))
        else:
            text += part
    return text, tuple(matches)


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character)).casefold()


def _is_symbol(character: str) -> bool:
    """A sign that changes what a word means, unlike punctuation and the accents that stand for an apostrophe."""
    return character in "#@&%/*_" or (unicodedata.category(character)[0] == "S" and character not in "`´")
