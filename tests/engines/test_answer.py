"""Answers that grow: text as it becomes certain, stop texts, ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.engines.answer import GrowingAnswer, TextDecoder, Utf8Decoder, WholeTextDecoder
from karma_electric.engines.sampling import Sampling, log_softmax

END = 255


def decoders() -> list[TextDecoder]:
    """Tokens are bytes."""
    return [
        Utf8Decoder(lambda token: bytes([token])),
        WholeTextDecoder(lambda tokens: bytes(tokens).decode("utf-8", "replace")),
    ]


def grow(
    decoder: TextDecoder, data: bytes, *, stop: tuple[str, ...] = (), max_tokens: int = 1000
) -> tuple[list[str], GrowingAnswer]:
    answer = GrowingAnswer(decoder, END.__eq__, sampling=Sampling(), max_tokens=max_tokens, stop=stop)
    texts = []
    for token in [*data, END]:
        logits = np.zeros(256, np.float32)
        logits[token] = 1
        texts.append(answer.take(logits).text)
        if answer.finish is not None:
            break
    return texts, answer


@given(st.text("aé日🐈\0", max_size=12), st.integers(1, 30))
def test_the_parts_make_up_the_text(text: str, max_tokens: int) -> None:
    data = text.encode()
    for decoder in decoders():
        parts, answer = grow(decoder, data, max_tokens=max_tokens)
        kept = data[:max_tokens]
        assert "".join(parts) == kept.decode("utf-8", "replace")
        assert (bytes(answer.token_ids), answer.finish) == (kept, "length" if len(data) >= max_tokens else "stop")


def test_a_character_comes_when_it_is_whole() -> None:
    for decoder in decoders():
        assert grow(decoder, "a🐈b".encode())[0] == ["a", "", "", "", "🐈", "b", ""]


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_answer_ends_before_the_first_stop_text(text: str, stops: list[str]) -> None:
    # What comes first is found first: at the token that completes a stop text, the earliest one counts.
    ends = [length for length in range(1, len(text) + 1) if any(stop in text[:length] for stop in stops)]
    seen = text[: ends[0]] if ends else text
    expected = seen[: min((seen.find(stop) for stop in stops if stop in seen), default=len(seen))]
    parts, answer = grow(decoders()[0], text.encode(), stop=tuple(stops))
    assert "".join(parts) == expected
    assert len(answer.token_ids) == len(seen)
    assert answer.finish == "stop"


def test_what_may_begin_a_stop_text_is_held_back() -> None:
    parts, _ = grow(decoders()[0], b"ab--c--", stop=("---",))
    assert parts == ["a", "b", "", "", "--c", "", "", "--"]


def test_log_probabilities_are_of_the_model_not_of_the_sampling() -> None:
    logits = np.array([0.0, 3.0, 1.0, 2.0], np.float32)
    answer = GrowingAnswer(
        decoders()[0],
        END.__eq__,
        sampling=Sampling(1.9, 0.5, seed=1),
        max_tokens=1,
        top_log_probabilities=2,
    )
    answer.take(logits)
    (chosen,) = answer.chosen
    expected = log_softmax(logits)
    assert chosen.chosen.value == expected[chosen.chosen.token]
    assert [each.token for each in chosen.likeliest] == [1, 3]
    assert chosen.likeliest[0].value == pytest.approx(float(expected[1]))
