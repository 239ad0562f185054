"""The PyTorch engine against the reference and against llama.cpp."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from karma_electric.axis.files import load_axis
from karma_electric.axis.model import copy_of_module
from karma_electric.conversation import Message
from karma_electric.engines import transformers as transformers_engine
from karma_electric.engines.interviews import hold_all
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.engines.protocol import CapActivity, ChatEngine, StreamedToken
from karma_electric.engines.questions import Answer, Interview, Question, Weigh, Write, ask
from karma_electric.engines.sampling import Sampling
from karma_electric.engines.transformers import TransformersEngine
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.quantize import make_gguf
from karma_electric.gguf_files.writer import write_gguf
from karma_electric.integrity import MANIFEST_NAME, sha256_file, write_manifest
from tests.engines.pytorch_reference import QUESTION, PytorchReference, write_varied_model
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


WORDS = ["river", "boats", "rivers and boats", "a 12"]


@pytest.mark.parametrize("capped", [False, True])
def test_greedy_answers_and_weights_are_those_of_llama_cpp(
    engines: tuple[TransformersEngine, LlamaCppEngine], capped: bool
) -> None:
    for prefix, stop in (("", ()), ("The ", ()), ("The", (" ", "e"))):
        pytorch, llama_cpp = (
            engine.generate(QUESTION, max_tokens=12, capped=capped, prefix=prefix, stop=stop) for engine in engines
        )
        assert (pytorch.text, pytorch.token_ids, pytorch.finish) == (
            llama_cpp.text,
            llama_cpp.token_ids,
            llama_cpp.finish,
        )
        assert (pytorch.prompt_tokens, pytorch.cap.positions) == (llama_cpp.prompt_tokens, llama_cpp.cap.positions)
        for held in (False, True):
            options = [f"{word}/" for word in WORDS]
            scores = [
                engine.score(QUESTION, prefix=prefix, options=options, capped=capped, held=held) for engine in engines
            ]
            assert scores[0] == pytest.approx(scores[1], abs=2e-3)
            assert held == (abs(sum(map(math.exp, scores[0])) - 1) < 1e-6)


@pytest.mark.parametrize("capped", [False, True])
def test_gpus_share_the_questions(
    engines: tuple[TransformersEngine, LlamaCppEngine], monkeypatch: pytest.MonkeyPatch, capped: bool
) -> None:
    """Two copies of the model on one device give the answers of one."""
    monkeypatch.setattr(transformers_engine, "other_gpus", lambda _device: [torch.device("cpu")])
    questions: list[Question] = []
    for number in range(4):
        messages = (Message("user", f"{number} boats on the river, and one more"),)
        questions += [Write(messages, 6 + number, capped), Weigh(messages, ("1/", "10/"), capped, held=True)]
    found: dict[int, Answer] = {}

    def interview(question: Question) -> Interview[Answer]:
        answer: Answer = yield question
        return answer

    class Nothing:
        def get(self, question: Question) -> None: ...

        def put(self, question: Question, answer: Answer) -> None: ...

    with engines[0].answer_in_parallel(capped=capped) as answers:
        assert answers.slots == 2
        hold_all(answers, [interview(each) for each in questions], memory=Nothing(), finished=found.__setitem__)
    assert [found[place] for place in range(len(questions))] == [ask(engines[0], question) for question in questions]


def test_a_copy_of_a_model_is_one_of_its_own() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "norm": torch.nn.BatchNorm1d(3)})
    model["tied"] = model["a"]
    copied = copy_of_module(model, torch.device("cpu"), torch.float64)
    pairs = [*zip(model.state_dict().values(), copied.state_dict().values(), strict=True)]
    assert all(torch.equal(one.double(), other.double()) for one, other in pairs)
    assert not {one.data_ptr() for one, _ in pairs} & {other.data_ptr() for _, other in pairs}
    assert copied["tied"].weight is copied["a"].weight
    assert {other.dtype for _, other in pairs} == {torch.float64, torch.int64}


def test_weights_are_the_sums_of_the_definition(
    engines: tuple[TransformersEngine, LlamaCppEngine], release: Release
) -> None:
    reference = PytorchReference(release.folder)
    prompt = reference.prompt_ids(QUESTION)
    for option, found in zip(WORDS, engines[0].score(QUESTION, prefix="", options=WORDS), strict=True):
        tokens = engines[0].tokenize(option)
        logits = torch.tensor(reference.logits([*prompt, *tokens]))
        each = torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : -1]
        assert found == pytest.approx(float(sum(each[place, token] for place, token in enumerate(tokens))), abs=1e-3)


def test_control_tokens_are_read_only_where_they_are_asked_for(
    engines: tuple[TransformersEngine, LlamaCppEngine],
) -> None:
    for text in ("plain words", "a<|im_end|>b", "<|im_start|>assistant"):
        for parse_special in (False, True):
            found = [engine.tokenize(text, parse_special=parse_special) for engine in engines]
            assert found[0] == found[1]
    assert engines[0].tokenize("a<|im_end|>") != engines[0].tokenize("a<|im_end|>", parse_special=True)


@pytest.mark.parametrize(("rope", "gguf_type"), [(None, "F32"), (None, "Q8_0"), ("llama3", "F32")])
def test_a_gguf_file_answers_as_in_llama_cpp(
    rope: str | None, gguf_type: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """With the factors of Llama 3's rotation frequencies, too, which transformers leaves in the file."""
    close: Any = {"abs": 2e-3} if gguf_type == "F32" else {"rel": 0.01}  # llama.cpp multiplies 8 by 8 bits
    folder = write_varied_model(tiny_llama, tmp_path / "merged")
    if rope is not None:
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"] = {
            "rope_type": rope,
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        (folder / "config.json").write_text(json.dumps(config))
    identity = {"source": "folder", "repo": "test/tiny", "license": "mit", "architecture": "LlamaForCausalLM"}
    write_manifest(folder, identity)
    path = tmp_path / "tiny.gguf"
    if gguf_type == "F32":
        write_gguf(folder, path, gguf_type="F32", name="tiny")
    else:
        make_gguf(folder, path, gguf_type="Q8_0", name="tiny", threads=1)
    long = [Message("user", "Tell me about the river and the boats. " * 8)]
    pytorch = TransformersEngine(path)
    assert pytorch.identity.weights_sha256 == sha256_file(path)
    assert "float32" in pytorch.arithmetic
    with LlamaCppEngine(path, threads=1, cache_type="f32") as llama_cpp:
        assert pytorch.prompt_token_ids(long) == llama_cpp.prompt_token_ids(long)
        scores = [engine.score(long, prefix="", options=WORDS) for engine in (pytorch, llama_cpp)]
        assert scores[0] == pytest.approx(scores[1], **close)
    if rope is not None:
        unscaled = json.loads((folder / "config.json").read_text()) | {"rope_parameters": {"rope_theta": 10000.0}}
        (folder / "config.json").write_text(json.dumps(unscaled))
        write_manifest(folder, identity)
        plain = TransformersEngine(folder, dtype=torch.float32).score(long, prefix="", options=WORDS)
        assert scores[0] != pytest.approx(plain, **close)


def test_a_file_that_is_no_model_of_transformers_is_one_line(release: Release, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(release.gguf.read_bytes()[:4000])
    with pytest.raises((InputError, IntegrityError)):
        TransformersEngine(broken)
