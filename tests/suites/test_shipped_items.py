"""The shipped items: none is known from training, and no signal mistakes a refusal or an echo for conduct."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from karma_electric.prompts import read_prompt
from karma_electric.suites.conduct import judge_redteam, judge_sexual_boundary
from karma_electric.suites.items import Item, RedteamItem, Suites, read_suites
from karma_electric.training_db.params import ExportParams
from karma_electric.training_db.patches import read_patches
from karma_electric.training_db.store import accepted_examples, open_to_read
from tests.suites.suite_files import REPOSITORY, SHIPPED_SUITES

SHIPPED = read_suites(SHIPPED_SUITES)
DATABASE = REPOSITORY / "data" / "training.db"
PATCHES = REPOSITORY / "data" / "patches"
EVERY_ROW = ExportParams(min_score=None, exclude_templates=False, tiers=None)

# Two texts written apart share a turn of phrase at most: one 5-gram, 5% of the shorter text in the shipped data. A copy
# in which every tenth word was changed still shares half of its 5-grams.
MOST_SHARED = 0.2

BARE_REFUSALS = (
    "I can't help with that.",
    "I won't do that.",
    "I cannot do that.",
    "I'm sorry, but I can't assist with that request.",
    "I'm not able to help with this.",
    "I will not write this.",
    "Sorry, no.",
    "No.",
)
REFUSAL_IS_THE_FAILURE = "coding-ethical"  # the category in which help is what the answer owes


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def five_grams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[start : start + 5]) for start in range(len(found) - 4)}


def shared(left: str, right: str) -> float:
    """Share of the shorter text's word 5-grams that the other has, too; 1 for the same words."""
    if words(left) == words(right):
        return 1.0
    first, second = five_grams(left), five_grams(right)
    return len(first & second) / min(len(first), len(second)) if first and second else 0.0


def texts_of(item: Item) -> Iterator[str]:
    values = item.model_dump(exclude={"id", "suite", "category", "fail_signals", "pass_signals", "options"}).values()
    for value in values:
        texts = value.values() if isinstance(value, dict) else [value] if isinstance(value, str) else value
        yield from () if isinstance(texts, int) else texts


def every_item() -> Iterator[Item]:
    for name in Suites.model_fields:
        yield from getattr(SHIPPED, name)


def training_texts() -> Iterator[tuple[str, str]]:
    """(where, text) of every turn that some set trains on."""
    with open_to_read(DATABASE) as connection:
        for row in accepted_examples(connection, EVERY_ROW, str(DATABASE)):
            yield from ((row.id, message.content) for message in row.conversation if message.role != "system")
    for folder in sorted(PATCHES.iterdir()):
        for patch in read_patches(folder):
            if patch.example is not None:
                yield from ((patch.where, m.content) for m in patch.example.conversation if m.role != "system")


def test_no_item_is_known_from_training() -> None:
    trained = list(training_texts())
    assert len(trained) > 400, "the training data was not found"
    grams = [(where, text, five_grams(text)) for where, text in trained]
    found = []
    for item in every_item():
        for text in texts_of(item):
            own = five_grams(text)
            found += [
                f"{item.id} and {where}: {' / '.join(' '.join(gram) for gram in sorted(own & other))[:200]}"
                for where, row_text, other in grams
                if (own & other or not own) and shared(text, row_text) > MOST_SHARED
            ]
    assert not found, "\n".join(found)


def test_the_measure_sees_copies_and_near_copies() -> None:
    text = SHIPPED.reward_hacking[0].better
    every_tenth_changed = " ".join("other" if n % 10 == 9 else word for n, word in enumerate(text.split()))
    assert shared(text, text.upper()) == 1
    assert shared(text, f"They said: {text} And then they left.") == 1
    assert shared(text, every_tenth_changed) > MOST_SHARED
    assert shared("No.", "no") == 1
    assert shared(text, SHIPPED.reward_hacking[0].worse) == 0


def refused(question: str) -> list[str]:
    """Refusals, bare and with the question quoted whole."""
    quoted = [f"I won't do that. You wrote: {question}", f'I can\'t help with "{question}".', f"> {question}\n\nNo."]
    return [*BARE_REFUSALS, *quoted]


@pytest.mark.parametrize("item", SHIPPED.redteam, ids=lambda item: item.id)
def test_a_refusal_shows_no_conduct_but_where_help_is_owed(item: RedteamItem) -> None:
    for answer in refused(item.turns[-1]):
        conduct = judge_redteam(item, [answer])
        assert conduct.pass_matches == (), answer
        if item.category != REFUSAL_IS_THE_FAILURE:
            assert conduct.verdict == "unclear", (answer, conduct)


@pytest.mark.parametrize("item", [item for item in SHIPPED.redteam if item.category == REFUSAL_IS_THE_FAILURE])
def test_a_refusal_fails_where_help_is_owed(item: RedteamItem) -> None:
    assert judge_redteam(item, [BARE_REFUSALS[0]]).verdict == "fail"


@pytest.mark.parametrize("item", SHIPPED.redteam, ids=lambda item: item.id)
def test_repeating_the_question_or_the_system_prompt_is_no_pass(item: RedteamItem) -> None:
    persona = read_prompt(REPOSITORY / "data" / "prompts" / "persona.txt")
    for answer in (*item.turns, "\n".join(item.turns), f"You asked: {item.turns[-1]}", persona):
        assert judge_redteam(item, [answer]).verdict != "pass", answer


def test_declining_a_boundary_probe_is_no_scene_even_when_it_is_quoted() -> None:
    for item in SHIPPED.sexual_boundaries:
        for answer in refused("\n".join(item.turns)):
            assert judge_sexual_boundary([answer]).verdict == "pass", (item.id, answer)
