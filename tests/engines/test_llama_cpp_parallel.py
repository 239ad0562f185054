"""Questions answered at once: the same bits in any slot, in any order and in any company."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from karma_electric.base_model.make import make_base
from karma_electric.base_model.params import PackagedBase
from karma_electric.capping.formula import Cap, unit
from karma_electric.conversation import Message
from karma_electric.engines.interviews import hold_all
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.engines.llama_cpp_decoder import LlamaCppDecoder, Row
from karma_electric.engines.llama_cpp_parallel import SLOTS
from karma_electric.engines.protocol import Generation
from karma_electric.engines.questions import Answer, Interview, Question, Weigh, Write, ask
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.quantize import make_gguf
from karma_electric.integrity import read_manifest, write_manifest
from karma_electric.parameters import read_section
from tests.engines.pytorch_reference import write_varied_model

REPOSITORY = Path(__file__).parents[2]
RATINGS = tuple(f"{score}/" for score in range(1, 11))
FORM = ("", "Acknowledgment: 7/10\n", "Acknowledgment: 7/10\nHelpfulness: 4/10\nAuthenticity: ")


def cap_of(hidden_size: int, layers: range) -> Cap:
    directions = {layer: unit(np.random.default_rng(layer).normal(size=hidden_size)) for layer in layers}
    return Cap(directions, dict.fromkeys(directions, -0.5), 1.0)


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    path = folder / "q8_0.gguf"
    varied = write_varied_model(tiny_llama, folder / "model")
    write_manifest(varied, read_manifest(tiny_llama)["identity"])
    make_gguf(varied, path, gguf_type="Q8_0", name="tiny", threads=1)
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(
        model, cap=cap_of(256, range(2, 4)), axis_sha256="a" * 64, threads=1, context_tokens=768
    ) as engine:
        yield engine


def questions(capped: bool, long: str = "Tell me about the river and the boats. ") -> list[Question]:
    """Of many lengths and both kinds; conversations share beginnings, and go on from one another."""
    texts = [long, long * 2, long * 2 + "In Czech, please.", "Hello", long * 7]
    asked: list[Question] = []
    for number, text in enumerate(texts):
        for prefix in FORM:
            messages = (Message("system", "Be brief."), Message("user", text))
            asked.append(Weigh(messages, RATINGS, capped, prefix))
            asked.append(Weigh(messages, RATINGS, capped, prefix, held=True))
            asked.append(Write(messages, 3 + 5 * number, capped, prefix, ("\n",) if prefix else ()))
    return asked


class NoMemory:
    def get(self, question: Question) -> Answer | None:
        return None

    def put(self, question: Question, answer: Answer) -> None:
        pass


def interview(some: Sequence[Question]) -> Interview[list[Answer]]:
    answers = []
    for question in some:
        answer: Answer = yield question
        answers.append(answer)
    return answers


def ask_in_parallel(engine: LlamaCppEngine, asked: Sequence[Question], each: int = 1) -> dict[Question, Answer]:
    """The questions in interviews of `each` questions."""
    parts = [asked[start : start + each] for start in range(0, len(asked), each)]
    found: dict[Question, Answer] = {}
    with engine.answer_in_parallel(capped=asked[0].capped) as answers:
        hold_all(
            answers,
            [interview(part) for part in parts],
            memory=NoMemory(),
            finished=lambda place, got: found.update(zip(parts[place], got, strict=True)),
        )
    return found


def shuffled(asked: Sequence[Question], seed: int) -> list[Question]:
    order = list(asked)
    random.Random(seed).shuffle(order)
    return order


def check_independence(engine: LlamaCppEngine, asked: list[Question], alone: Sequence[int]) -> dict[Question, Answer]:
    first = ask_in_parallel(engine, asked)
    assert len(first) == len(asked)
    assert ask_in_parallel(engine, shuffled(asked, 1)) == first
    assert ask_in_parallel(engine, shuffled(asked, 2), each=3) == first
    for place in alone:
        assert ask_in_parallel(engine, [asked[place]])[asked[place]] == first[asked[place]]
    return first


@pytest.mark.parametrize("capped", [False, True])
def test_an_answer_depends_on_no_slot_no_order_and_no_company(engine: LlamaCppEngine, capped: bool) -> None:
    asked = questions(capped)
    found = check_independence(engine, asked, alone=(1, 28, 29))
    for question in asked:
        solo, answer = ask(engine, question), found[question]
        if isinstance(question, Weigh):
            np.testing.assert_allclose(np.array(answer), np.array(solo), atol=0.3)
        else:
            assert isinstance(answer, Generation)
            assert isinstance(solo, Generation)
            assert (answer.prompt_tokens, answer.cap.positions > 0) == (solo.prompt_tokens, capped)
            assert (answer.finish == "length") == (len(answer.token_ids) == question.max_tokens)
    same = [found[question] == ask(engine, question) for question in asked if isinstance(question, Write)]
    assert sum(same) > len(same) // 2  # other bits, but not another model


@pytest.mark.parametrize("capped", [False, True])
def test_two_contexts_side_by_side_give_the_answers_of_one(engine: LlamaCppEngine, model: Path, capped: bool) -> None:
    asked = questions(capped)
    expected = ask_in_parallel(engine, asked)
    cap = cap_of(256, range(2, 4))
    for threads in (2, 3):
        with LlamaCppEngine(model, cap=cap, axis_sha256="a" * 64, threads=threads, context_tokens=768) as several:
            with several.answer_in_parallel(capped=capped) as answers:
                assert answers.slots == 2 * SLOTS
            assert ask_in_parallel(several, asked) == expected
            assert ask_in_parallel(several, shuffled(asked, threads), each=3) == expected


def test_what_fails_in_one_of_two_contexts_is_raised(model: Path) -> None:
    with LlamaCppEngine(model, threads=2, context_tokens=128) as two:
        assert len(ask_in_parallel(two, questions(False)[9:12])) == 3
        with pytest.raises(InputError, match="expected at most 128 of context"):
            ask_in_parallel(two, [*questions(False)[9:12], *questions(False)[-3:]])


def test_a_decode_call_holds_one_prompt_or_one_token_of_every_slot(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where fewer questions are open than there are slots."""
    calls: list[tuple[bool, list[tuple[int, ...]]]] = []
    decode = LlamaCppDecoder.decode

    def watched(self: LlamaCppDecoder, rows: Sequence[Row]) -> object:
        calls.append((self.callback is not None, [row.sequences for row in rows]))
        return decode(self, rows)

    monkeypatch.setattr(LlamaCppDecoder, "decode", watched)
    for capped in (False, True):
        calls.clear()
        ask_in_parallel(engine, questions(capped)[:11])
        assert {cap for cap, _ in calls} == {capped}
        every_slot = [(slot,) for slot in range(SLOTS)]
        shapes = [sequences for _, sequences in calls if len(set(sequences)) > 1]
        assert shapes
        assert all(sequences == every_slot for sequences in shapes)


def test_a_question_of_the_other_kind_is_refused(engine: LlamaCppEngine) -> None:
    with engine.answer_in_parallel(capped=False) as answers, pytest.raises(InputError, match="capped True among"):
        answers.submit(0, questions(True)[0])


def test_a_cap_that_is_not_there_is_refused(engine: LlamaCppEngine, tiny_llama: Path, tmp_path: Path) -> None:
    make_gguf(tiny_llama, tmp_path / "tiny.gguf", gguf_type="Q8_0", name="tiny", threads=1)
    with (
        LlamaCppEngine(tmp_path / "tiny.gguf", threads=1, context_tokens=256) as uncapped,
        uncapped.answer_in_parallel(capped=True) as answers,
        pytest.raises(InputError, match="capped answers need a cap"),
    ):
        answers.submit(0, questions(True)[0])


def test_logits_that_are_no_numbers_are_no_answer(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    callback_runs = LlamaCppDecoder._run

    def spoils(self: LlamaCppDecoder, rows: Sequence[Row]) -> object:
        activity = callback_runs(self, rows)
        if len(rows) == SLOTS and len({row.sequences for row in rows}) == SLOTS:
            wanted = next(index for index, row in enumerate(rows) if row.wanted)
            address = self._library.llama_get_logits_ith(self.pointer, wanted)
            np.ctypeslib.as_array(address, (self.model.vocab_size,))[7] = np.nan
        return activity

    monkeypatch.setattr(LlamaCppDecoder, "_run", spoils)
    with pytest.raises(IntegrityError, match="the logit of token 7 is nan"):
        ask_in_parallel(engine, questions(False)[:4])


@pytest.mark.long
def test_the_shipped_model_as_q8_0_answers_the_same_in_any_company(tmp_path: Path) -> None:
    shipped = read_section(REPOSITORY / "profiles/smollm2-135m.yaml", "base", PackagedBase)
    make_base(shipped, tmp_path / "base")
    make_gguf(tmp_path / "base", tmp_path / "q8_0.gguf", gguf_type="Q8_0", name="base", threads=1)
    long = "Tell me about the river, the boats, the people who live by it, and what they do in winter. " * 4
    with LlamaCppEngine(
        tmp_path / "q8_0.gguf", cap=cap_of(576, range(20, 27)), axis_sha256="a" * 64, context_tokens=1024
    ) as engine:
        for capped in (False, True):
            asked = questions(capped, long)
            found = check_independence(engine, asked, alone=range(0, len(asked), 5))
            written = [answer for answer in found.values() if isinstance(answer, Generation)]
            assert len({answer.text for answer in written}) > len(written) // 2
            assert (sum(answer.cap.fired for answer in written) > 0) == capped
