"""Texts as words, for comparing them: case, accents, apostrophes, punctuation and layout left out."""

from __future__ import annotations

import re
import unicodedata

from karma_electric.conversation import Conversation

_WORD = re.compile(r"[^\W_]+")
_DROPPED = re.compile("['’‘ʼ´`\u00ad\u200b-\u200f\u2060\ufeff]")  # apostrophes; marks that nobody sees

Grams = frozenset[tuple[str, ...]]


def folded(text: str) -> str:
    """`text` in lower case, without accents, apostrophes and invisible marks: `Příliš don’t` gives `prilis dont`."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in decomposed if not unicodedata.combining(character))
    return _DROPPED.sub("", text.casefold())


def words(text: str) -> list[str]:
    """The words of `text` in their order, folded."""
    return _WORD.findall(folded(text))


def grams(found: list[str], size: int) -> Grams:
    """Every run of `size` words; none when there are fewer."""
    return frozenset(zip(*(found[start:] for start in range(size)), strict=False))


def turns(conversation: Conversation) -> list[str]:
    """The texts that people and the model wrote: every turn but the system's."""
    return [message.content for message in conversation if message.role != "system"]
