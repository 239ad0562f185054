"""The language of a row: `cs` or `en`, told apart by letters.

A row is Czech when at least one in forty characters of its stored conversation is one of the letters below. Czech text
has about one in thirteen, and a Czech name in an English row stays far under the bound. What else is honest to say:
Czech written without accents counts as `en`, Slovak as `cs`, and there is no third answer. Triggers of the database
keep the column `language` at what this says, so that rows can be counted without reading their texts.
"""

from __future__ import annotations

LANGUAGES = ("en", "cs")
_LETTERS = "ěščřžůýí"
_ONE_IN = 40


def language_of(conversations: str) -> str:
    """The language of a conversation, given as its canonical JSON text."""
    letters = sum(conversations.count(letter) for letter in _LETTERS)
    return "cs" if letters * _ONE_IN >= len(conversations) else "en"


def language_in_sql(column: str) -> str:
    """The same, as an SQL expression over a column that holds the JSON text.

    The letters are counted only where there are enough bytes beyond ASCII: counting takes longest.
    """
    letters = " + ".join(f"length({column}) - length(replace({column}, '{letter}', ''))" for letter in _LETTERS)
    return (
        f"CASE WHEN (length(CAST({column} AS BLOB)) - length({column})) * {_ONE_IN} < length({column}) THEN 'en' "
        f"WHEN ({letters}) * {_ONE_IN} >= length({column}) THEN 'cs' ELSE 'en' END"
    )
