"""The PyTorch engine against the reference and against llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from karma_electric.axis.files import load_axis
from karma_electric.conversation import Message
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.engines.protocol import CapActivity, ChatEngine, StreamedToken
from karma_electric.engines.sampling import Sampling
from karma_electric.engines.transformers import TransformersEngine
from karma_electric.errors import InputError
from karma_electric.integrity import MANIFEST_NAME, sha256_file
from tests.engines.pytorch_reference import QUESTION, PytorchReference
from tests.server.serving import Release, make_release


@pytest.fixture(scope="module")
def release(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tiny_llama, tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def engines(release: Release) -> Iterator[tuple[TransformersEngine, LlamaCppEngine]]:
    axis = load_axis(release.axis)
    options: Any = {"cap": axis.cap(), "axis_sha256": axis.sha256, "context_tokens": 256}
    with LlamaCppEngine(release.gguf, threads=1, cache_type="f32", **options) as llama_cpp:
        yield TransformersEngine(release.folder, dtype=torch.float32, **options), llama_cpp


def stream(engine: ChatEngine, sampling: Sampling, *, capped: bool, max_tokens: int | None = 16) -> list[StreamedToken]:
    return list(engine.stream(QUESTION, sampling=sampling, max_tokens=max_tokens, capped=capped))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9, seed=3)])
@pytest.mark.parametrize("capped", [False, True])
def test_both_engines_say_the_same(
    engines: tuple[TransformersEngine, LlamaCppEngine], sampling: Sampling, capped: bool
) -> None:
    pytorch, llama_cpp = (stream(engine, sampling, capped=capped) for engine in engines)
    assert [part.token_id for part in pytorch] == [part.token_id for part in llama_cpp]
    assert "".join(part.text for part in pytorch) == "".join(part.text for part in llama_cpp)
    assert [part.fired_layers for part in pytorch] == [part.fired_layers for part in llama_cpp]
    assert [part.cap.positions for part in pytorch] == [part.cap.positions for part in llama_cpp]
    assert any(part.fired_layers for part in pytorch) is capped


def test_a_stream_is_the_greedy_answer_of_the_gate(engines: tuple[TransformersEngine, LlamaCppEngine]) -> None:
    for capped in (False, True):
        parts = stream(engines[1], Sampling(), capped=capped)
        whole = engines[1].generate(QUESTION, max_tokens=16, capped=capped)
        assert tuple(part.token_id for part in parts if part.token_id is not None) == whole.token_ids
        assert ("".join(part.text for part in parts), parts[-1].finish) == (whole.text, whole.finish)
        activity = CapActivity(sum(part.cap.positions for part in parts), sum(part.cap.fired for part in parts))
        assert activity == whole.cap


def test_answers_are_those_of_the_reference(
    engines: tuple[TransformersEngine, LlamaCppEngine], release: Release
) -> None:
    reference = PytorchReference(release.folder)
    ids = reference.prompt_ids(QUESTION)
    assert engines[0].prompt_token_ids(QUESTION) == ids
    for cap in (None, load_axis(release.axis).cap()):
        tokens = [part.token_id for part in stream(engines[0], Sampling(), capped=cap is not None, max_tokens=6)]
        assert tokens == reference.greedy(ids, 6, cap)


def test_an_abandoned_stream_leaves_the_model_uncapped(engines: tuple[TransformersEngine, LlamaCppEngine]) -> None:
    before = stream(engines[0], Sampling(), capped=False)
    left = engines[0].stream(QUESTION, sampling=Sampling(), capped=True)
    next(left)
    left.close()
    assert stream(engines[0], Sampling(), capped=False) == before


def test_without_a_limit_the_answer_ends_with_the_context(engines: tuple[TransformersEngine, LlamaCppEngine]) -> None:
    prompt = len(engines[0].prompt_token_ids(QUESTION))
    for engine in engines:
        parts = stream(engine, Sampling(), capped=False, max_tokens=None)
        assert parts[-1].finish == "stop" or len(parts) == 256 - prompt
        for wrong in (0, 257 - prompt):
            with pytest.raises(InputError):
                stream(engine, Sampling(), capped=False, max_tokens=wrong)
        with pytest.raises(InputError, match="at most 256"):
            list(engine.stream([Message("user", "word " * 300)], sampling=Sampling()))


def test_identity_and_refusals(release: Release, engines: tuple[TransformersEngine, LlamaCppEngine]) -> None:
    identity = engines[0].identity
    assert identity.engine == "transformers"
    assert identity.weights_sha256 == sha256_file(release.folder / MANIFEST_NAME)
    assert identity.axis_sha256 == sha256_file(release.axis)
    plain = TransformersEngine(release.folder)
    with pytest.raises(InputError, match="capped answers need a cap"):
        stream(plain, Sampling(), capped=True)
    plain.close()
    with pytest.raises(RuntimeError, match="is closed"):
        stream(plain, Sampling(), capped=False)
    with pytest.raises(InputError, match="go together"):
        TransformersEngine(release.folder, axis_sha256="a" * 64)
