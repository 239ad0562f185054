"""Many interviews at once: each gets its own answers, known ones are not asked, and a slot reads little twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.conversation import Message
from karma_electric.engines.interviews import hold_all
from karma_electric.engines.questions import Answer, Interview, Question, Weigh

LETTERS = st.lists(st.lists(st.text("ab", max_size=5), max_size=4), max_size=12)


def question(text: str) -> Weigh:
    return Weigh((Message("user", text),), ("x", "y"))


def answer_to(asked: Question) -> Answer:
    return [float(len(asked.messages[0].content)), float(asked.messages[0].content.count("a"))]


class SlowSlots:
    """Answers a question after as many steps as its text is long; remembers what every slot was asked."""

    arithmetic = ""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.asked: dict[int, list[str]] = {slot: [] for slot in range(slots)}
        self._open: dict[int, tuple[Question, int]] = {}

    def submit(self, slot: int, question: Question) -> None:
        assert slot not in self._open
        self.asked[slot].append(question.messages[0].content)
        self._open[slot] = (question, len(question.messages[0].content))

    def step(self) -> list[tuple[int, Answer]]:
        done = [(slot, answer_to(asked)) for slot, (asked, left) in self._open.items() if left == 0]
        self._open = {slot: (asked, left - 1) for slot, (asked, left) in self._open.items() if left > 0}
        return done


class Memory(dict[Question, Answer]):
    def put(self, question: Question, answer: Answer) -> None:
        self[question] = answer


def interview(texts: Sequence[str]) -> Interview[list[Answer]]:
    answers = []
    for text in texts:
        answer: Answer = yield question(text)
        answers.append(answer)
    return answers


@given(LETTERS, st.integers(1, 5), st.sets(st.text("ab", max_size=5)))
def test_each_interview_gets_the_answers_to_its_questions(texts: list[list[str]], slots: int, known: set[str]) -> None:
    memory = Memory({question(text): answer_to(question(text)) for text in known})
    answers = SlowSlots(slots)
    found: dict[int, list[Answer]] = {}
    hold_all(answers, [interview(each) for each in texts], memory=memory, finished=found.__setitem__)
    assert found == {place: [answer_to(question(text)) for text in each] for place, each in enumerate(texts)}
    asked = [text for slot in answers.asked.values() for text in slot]
    assert not set(asked) & known
    assert set(asked) == {text for each in texts for text in each} - known
    assert memory.keys() == {question(text) for text in {*asked, *known}}


def test_what_was_answered_before_a_stop_is_kept() -> None:
    class Stops(SlowSlots):
        def step(self) -> list[tuple[int, Answer]]:
            if len(memory) == 3:
                raise KeyboardInterrupt
            return super().step()

    memory = Memory()
    with pytest.raises(KeyboardInterrupt):
        hold_all(Stops(1), [interview(["a", "b", "c", "d", "e"])], memory=memory, finished=lambda place, answers: None)
    assert list(memory) == [question(text) for text in "abc"]


def test_a_slot_goes_on_with_what_it_has_read() -> None:
    subjects = ["boats, ", "rivers, ", "winter, "]
    texts = [subject + end for end in ("one", "two", "three", "four") for subject in subjects]
    answers = SlowSlots(3)
    hold_all(answers, [interview([text]) for text in texts], memory=Memory(), finished=lambda place, answers: None)
    for slot, subject in enumerate(subjects):
        assert len(answers.asked[slot]) >= 3
        assert all(text.startswith(subject) for text in answers.asked[slot][:3])
