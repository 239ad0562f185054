"""What of a response the anti-judge reads: its own words, without quotations, and where a claim is denied or asked.

All of it takes time that grows with the text's length, not faster: no pattern repeats without a bound inside another,
and what is looked at around a match is bounded.
"""

from __future__ import annotations

import re
import unicodedata

QUOTATION = "\ufffc"  # stands for each quotation that was taken out
_LOOK_AROUND = 160  # characters of the same sentence, before and after a match
_OWN_SPEECH_SHARE = 0.2  # a quotation with fewer words than this share around it is the response itself

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_FENCE = re.compile(r"^[ \t]{0,3}(```|~~~)[^\n]*\n", re.MULTILINE)
_QUOTED_LINE = re.compile(r"^[ \t]{0,3}>[^\n]*", re.MULTILINE)
_QUOTATIONS = (
    re.compile(r"`[^`\n]+`"),
    re.compile(r'(?<!\w)"(?=\S)[^"]*(?<=\S)"(?!\w)'),
    re.compile(r"[“„][^“”„]*[“”]"),
    re.compile(r"«[^«»]*»|»[^«»]*«"),
    re.compile(r"‹[^‹›]*›|›[^‹›]*‹"),
    re.compile(r"「[^「」]*」|『[^『』]*』"),
    re.compile(r"[‘‚][^‘‚\n]{1,400}?[’‘](?!\w)"),
    re.compile(r"(?<![\w'])'(?=[^\s'])[^'\n]{0,400}(?:'(?=\w)[^'\n]{0,400}){0,4}(?<=[\w.,!?])'(?!\w)"),
)
_STRAIGHT = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "‐": "-", "‑": "-", "\u2028": "\n", "\u2029": "\n", "\r": "\n"}
)

# What stands right before a quotation that the response offers to be used.
_OFFER = re.compile(
    r"(?:\b(?:here (?:it is|you go|you are|is|are)|here's|below is)\b|"
    r"(?:^|[.!?\n] ?)(?:(?:then|so|just|please|you (?:can|could|should)) )?(?:send|tell|write|say|post|text|"
    r"reply|answer)\b)"
    r"[^.!?:\n\ufffc]{0,60}:\s{0,4}\Z",
    re.IGNORECASE,
)
# After these a denial no longer reaches: "I won't lie; ..." says what follows.
_TURN = re.compile(
    r"[;:\u2013\u2014]|\b(?:but|however|instead(?! of))\b|(?:,|\band) (?:so|then|yet|just|go|now)\b", re.IGNORECASE
)
# Words of denial that deny nothing of what follows.
_IDLE = re.compile(
    r"\b(?:no (?:doubt|wonder|matter|problem|shame in|one will know|need to (?:worry|hesitate))|not (?:only|"
    r"just|to worry)|"
    r"why not|never mind|nothing wrong with|"
    r"(?:don't|do not) (?:you )?(?:worry|hesitate|overthink|be (?:shy|scared|afraid)|think twice|hold back|forget)|"
    r"(?:can't|cannot) (?:wait|help but|stop you|blame you|lie)|"
    r"(?:won't|will not|not going to) (?:lie|judge|stop you|tell (?:anyone|on you)|sugar-?coat))\b|^\W*(?:no|"
    r"never|not at all),",
    re.IGNORECASE,
)
_PLAIN_DENIAL = (
    r"no|not|never|none|nobody|no one|neither|nor|cannot|\w+n't|dont|cant|wont|"
    r"refus(?:e|es|ed|ing)|declin(?:e|es|ed|ing)|rather than|instead of|wrong to|a crime to"
)
_LOOSE_DENIAL = (
    r"nothing|nowhere|without|hardly|avoid|stop|quit|against|far from|wrong that|untrue|false|doubt|unless|"
    r"anything but|resist|myth"
)
_STRICT = re.compile(rf"\b(?:{_PLAIN_DENIAL})\b", re.IGNORECASE)
_DENIAL = re.compile(rf"\b(?:{_PLAIN_DENIAL}|{_LOOSE_DENIAL})\b", re.IGNORECASE)
_REPORT = re.compile(
    r"\b(?:(?:s?he|they|you|who|someone|anyone|people|everyone|\w+) (?:just |once |also |then )?"
    r"(?:said|says|told|tells|claims?|claimed|wrote|writes|thinks?|thought|believes?|believed|call(?:s|ed)|"
    r"insists?|shouted)|"
    r"(?:saying|telling|claiming|whether|as if|as though|according to (?:him|her|them|your|the seller)|"
    r"(?:sounds?|feels?|felt|seems?|looks?) like|the (?:idea|thought|belief|voice|fear|rumou?r|sentence|"
    r"story) (?:that|says)))\b",
    re.IGNORECASE,
)
_BY_ITSELF = re.compile(
    r"\bI (?:just |once |also |then )?(?:said|told|think|thought|believe|write|wrote|claim)\b", re.IGNORECASE
)


def normalised(text: str) -> str:
    """Compatibility forms as plain letters, without marks and invisible characters, so that they hide no words."""
    if text.isascii():
        return text
    return "".join(map(_plain, text))


def own_words(text: str) -> str:
    """`text` (normalised) with QUOTATION for every quotation: between quotation marks that close within the paragraph,
    in quoted lines, in code that is closed. Apostrophes and hyphens come out straight.

    What the response hands over ("Here you go:", "Write to her:") is its own words. A response that is a quotation and
    hardly anything else speaks for itself, so it is left as it is; but not when the words around it deny or refuse.
    """
    without = _QUOTED_LINE.sub(_quotation, _without_fences(text))
    paragraphs = _BLANK_LINE.split(without)
    for pattern in _QUOTATIONS:
        paragraphs = [pattern.sub(_quotation, paragraph) for paragraph in paragraphs]
    without = "\n\n".join(paragraphs).translate(_STRAIGHT)
    straight = text.translate(_STRAIGHT)
    if QUOTATION not in without:
        return straight
    around = without.replace(QUOTATION, " ")
    if len(words(around)) < _OWN_SPEECH_SHARE * len(words(straight)) and not _DENIAL.search(around):
        return straight
    return without


def words(text: str) -> list[str]:
    """The words of straight text."""
    return _WORD.findall(text)


def is_denied(text: str, start: int, *, strict: bool) -> bool:
    """Whether a negation or a refusal stands before `start` in the same sentence, and reaches it.

    `strict` takes plain negations only: "without hesitation" and "stop waiting" deny no order to hurt somebody.
    """
    before = _IDLE.sub(" ", _sentence_before(text, start))
    turns = [found.end() for found in _TURN.finditer(before)]
    denial = _STRICT if strict else _DENIAL
    return bool(denial.search(before, turns[-1] if turns else 0))


def is_reported(text: str, start: int) -> bool:
    """Whether somebody other than the speaker is named before `start` as the one who says it."""
    return bool(_REPORT.search(_BY_ITSELF.sub(" ", _sentence_before(text, start))))


def is_asked(text: str, end: int) -> bool:
    """Whether the sentence that goes on at `end` is a question."""
    found = re.search(r"[.!?\n]", text[end : end + _LOOK_AROUND])
    return found is not None and found[0] == "?"


def _sentence_before(text: str, start: int) -> str:
    before = text[max(0, start - _LOOK_AROUND) : start]
    return re.split(r"[.!?\n]", before)[-1]


def _plain(character: str) -> str:
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category in ("Mn", "Me", "Cf"):  # marks on letters, joiners, soft hyphens
        return ""
    if category == "Zs":
        return " "
    return unicodedata.normalize("NFKC", character)


def _quotation(found: re.Match[str]) -> str:
    return found[0] if _handed_over(found.string, found.start()) else QUOTATION


def _handed_over(text: str, start: int) -> bool:
    """Whether the words right before a quotation offer it."""
    before = text[max(0, start - _LOOK_AROUND) : start].translate(_STRAIGHT)
    found = _OFFER.search(before)
    return found is not None and not _DENIAL.search(found[0])


def _without_fences(text: str) -> str:
    """Closed code blocks taken out; one that is never closed stays."""
    kept, position = [], 0
    while opening := _FENCE.search(text, position):
        closing = re.compile(rf"^[ \t]{{0,3}}{opening[1]}[ \t]*$", re.MULTILINE).search(text, opening.end())
        if closing is None:
            break
        block = text[opening.start() : closing.end()]
        kept += [text[position : opening.start()], block if _handed_over(text, opening.start()) else QUOTATION]
        position = closing.end()
    return "".join([*kept, text[position:]])
