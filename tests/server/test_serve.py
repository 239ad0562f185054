"""`karma serve`, driven by OpenAI's own client."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from karma_electric.conversation import Message
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.engines.llama_cpp_binding import BUILD
from karma_electric.engines.protocol import CapActivity
from karma_electric.engines.sampling import Sampling
from karma_electric.integrity import sha256_file
from tests.cli.running import karma, one_line_of
from tests.server.serving import SECONDS, Release, Server, serving

MODEL = "tiny"
START = "Tell me about the river and the boats. "


@dataclass(frozen=True)
class Ask:
    """A request, and how to make it."""

    text: str
    acap: bool | None = None
    max_tokens: int = 12
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stream: bool = False

    @property
    def capped(self) -> bool:
        return self.acap is not False

    def options(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": self.text}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "logprobs": True,
            "top_logprobs": 2,
            "extra_body": {} if self.acap is None else {"acap": self.acap},
        }


@dataclass(frozen=True)
class Answer:
    text: str
    finish: str
    logprobs: list[Any]
    cap: CapActivity
    prompt_tokens: int


def ask(server: Server, question: Ask) -> Answer:
    if question.stream:
        return streamed(server, question)
    answer = server.complete(**question.options())
    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = [each.model_dump() for each in choice.logprobs.content or []]
    return Answer(choice.message.content or "", choice.finish_reason, content, *usage_of(answer.usage, question))


def streamed(server: Server, question: Ask) -> Answer:
    chunks = list(server.complete(**question.options(), stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert last.choices == []
    assert all(part.usage is None for part in parts)
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    content = [
        each.model_dump() for part in parts if part.choices[0].logprobs for each in part.choices[0].logprobs.content
    ]
    return Answer(text, parts[-1].choices[0].finish_reason, content, *usage_of(last.usage, question))


def usage_of(usage: Any, question: Ask) -> tuple[CapActivity, int]:
    acap = usage.acap
    assert acap["capped"] is question.capped
    activity = CapActivity(acap["positions"], acap["fired"])
    assert acap["firing_rate"] == activity.firing_rate
    return activity, usage.prompt_tokens


def solo(engine: LlamaCppEngine, question: Ask) -> tuple[str, CapActivity]:
    """The same from an engine that does nothing else."""
    sampling = Sampling(question.temperature, question.top_p, question.seed)
    parts = list(
        engine.stream(
            [Message("user", question.text)],
            sampling=sampling,
            max_tokens=question.max_tokens,
            capped=question.capped,
        )
    )
    fired = CapActivity(sum(part.cap.positions for part in parts), sum(part.cap.fired for part in parts))
    return "".join(part.text for part in parts), fired


# --- answers ---


def test_many_at_once_capped_and_uncapped_answer_as_they_would_alone(server: Server, engine: LlamaCppEngine) -> None:
    texts = [START * 3, START * 3 + "Briefly.", "Hello", START, "What may I say? 🐈"]
    questions = [
        Ask(text, acap, seed=seed, temperature=temperature, top_p=0.9 if seed else 1.0, stream=bool(index % 2))
        for index, text in enumerate(texts)
        for acap, seed, temperature in ((None, None, 0.0), (False, None, 0.0), (True, 5, 1.0), (False, 5, 1.0))
    ]
    alone = [ask(server, question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda question: ask(server, question), questions))
    assert together == alone
    for question, answer in zip(questions, together, strict=True):
        text, activity = solo(engine, question)
        assert (answer.text, answer.cap) == (text, activity)
        assert (activity.positions > 0, activity.fired > 0) == (question.capped, question.capped)
        assert len(answer.logprobs) == question.max_tokens
    by_text = [together[index : index + 4] for index in range(0, len(questions), 4)]
    assert any(capped.text != uncapped.text for capped, uncapped, _, _ in by_text)
    assert any(greedy.text != drawn.text for greedy, _, drawn, _ in by_text)


def test_an_answer_without_any_option_is_capped_and_ends_with_the_context(server: Server) -> None:
    answer = server.complete(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
    assert answer.usage is not None
    assert answer.choices[0].finish_reason in ("length", "stop")
    if answer.choices[0].finish_reason == "length":
        assert answer.usage.total_tokens == 1024
    assert answer.usage.acap["capped"] is True
    assert answer.choices[0].logprobs is None
    assert answer.system_fingerprint is not None


def test_a_stop_text_ends_the_answer_before_it(server: Server) -> None:
    whole = ask(server, Ask("Hello", max_tokens=24)).text
    middle = next(place for place in range(8, len(whole) - 3) if whole.find(whole[place : place + 3]) == place)
    stop = whole[middle : middle + 3]
    for stream in (False, True):
        options = {**Ask("Hello", max_tokens=24).options(), "stop": ["not in it", stop], "logprobs": None}
        del options["top_logprobs"]
        created = server.complete(**options, stream=stream)
        if stream:
            parts = [chunk.choices[0] for chunk in created]
            text, finish = "".join(part.delta.content or "" for part in parts), parts[-1].finish_reason
        else:
            text, finish = created.choices[0].message.content, created.choices[0].finish_reason
        assert (text, finish) == (whole[:middle], "stop")


def test_seeds_repeat_and_differ(server: Server) -> None:
    answers = {ask(server, Ask("Hello", temperature=1.5, seed=seed)).text for seed in (1, 2, 3, 1, 2, 3)}
    assert len(answers) == 3


def test_a_conversation_in_all_its_forms_is_read(server: Server, engine: LlamaCppEngine) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": "Yes?", "refusal": None},
        {"role": "user", "content": "Bye"},
    ]
    answer = server.complete(
        model=MODEL,
        messages=messages,
        max_completion_tokens=5,
        temperature=0,
        user="me",
    )
    turns = [Message("system", "Be brief."), Message("user", "Hello"), Message("assistant", "Yes?")]
    expected = engine.generate([*turns, Message("user", "Bye")], max_tokens=5, capped=True)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.prompt_tokens


def test_what_is_in_memory_is_not_read_again(server: Server) -> None:
    text = "A long message about nothing. " * 6

    def cached() -> float:
        options = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
        usage = server.complete(**options).usage
        return float(usage.prompt_tokens_details.cached_tokens / usage.prompt_tokens)

    cached()
    assert cached() > 0.8


# --- what the server says of itself ---


def test_models_and_identity(server: Server, release: Release, engine: LlamaCppEngine) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="'other' is not served here; there is 'tiny'"):
        client.models.retrieve("other")
    identity = httpx.get(f"{server.url}/karma/identity").json()
    assert identity.pop("taus").keys() == {"1", "2"}
    assert identity == {
        "model": MODEL,
        "weights_sha256": sha256_file(release.gguf),
        "axis_sha256": sha256_file(release.axis),
        "engine": "llama.cpp",
        "build": BUILD,
        "context_tokens": 1024,
        "alpha": 1.0,
        "layers": [1, 2],
    }
    assert engine.identity.axis_sha256 == sha256_file(release.axis)


# --- what is refused ---

HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"model": None}, "model", "missing, expected text"),
        ({"messages": []}, "messages", "expected a list"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing, expected text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "expected one of system"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "expected user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "reads text only",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "lone surrogate"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages", "expected at most 1023"),
        ({"max_tokens": 2000}, "max_tokens", "leave room for"),
        ({"max_tokens": 0}, "max_tokens", "whole number from 1"),
        ({"max_tokens": True}, "max_tokens", "whole number from 1"),
        ({"max_completion_tokens": 3}, "max_tokens", "differs from max_completion_tokens"),
        ({"temperature": -0.1}, "temperature", "number from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "number from 0 to 2"),
        ({"top_p": 0}, "top_p", "number from above 0 to 1"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"stop": ["a"] * 5}, "stop", "up to 4 texts"),
        ({"stop": [""]}, "stop", "up to 4 texts"),
        ({"n": 2}, "n", "this server supports 1 only"),
        ({"n": True}, "n", "this server supports 1 only"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options", "include_usage"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"top_logprobs": 1}, "top_logprobs", "without logprobs"),
        ({"tools": [{"type": "function"}]}, "tools", "supports [] only"),
        ({"response_format": {"type": "json_object"}}, "response_format", "supports"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "supports 0 only"),
        ({"acap": "no"}, "acap", "true or false"),
        ({"acap_threshold": 2}, "acap_threshold", "not supported"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_request_names_its_key(server: Server, change: dict[str, Any], key: str, message: str) -> None:
    body = {name: value for name, value in {**HELLO, **change}.items() if value is not None}
    done = httpx.post(f"{server.url}/v1/chat/completions", content=json.dumps(body), headers=JSON, timeout=SECONDS)
    error = done.json()["error"]
    assert (done.status_code, error["param"], error["type"]) == (400, key, "invalid_request_error")
    assert message in error["message"]
    assert "\n" not in error["message"]


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", JSON, 400, "not JSON"),
        (b"[" * 100_000, JSON, 400, "not JSON"),
        (b"[]", JSON, 400, "expected a JSON object"),
        (b'{"model": "\xff"}', JSON, 400, "not JSON"),
        (b'{"temperature": NaN}', JSON, 400, "NaN is no JSON number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", JSON, 400, "not JSON"),
        (b'{"acap": false, "acap": true}', JSON, 400, "stands twice"),
        (b" " * (1024 * 1024 + 1), JSON, 413, "more than 1048576 bytes"),
        (b"{}", {"content-type": "text/plain"}, 415, "expected application/json"),
        (b'{"model": "gpt", "messages": [{"role": "user", "content": "x"}]}', JSON, 404, "not served here"),
    ],
)
def test_a_bad_body_is_refused(server: Server, body: bytes, headers: dict[str, str], status: int, message: str) -> None:
    done = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=SECONDS)
    assert done.status_code == status
    assert message in done.json()["error"]["message"]


def test_other_paths_and_methods_are_json_too(server: Server) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        done = httpx.request(method, f"{server.url}{path}")
        assert done.status_code == status
        assert path in done.json()["error"]["message"]


def test_clients_see_their_own_kinds_of_errors(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.complete(**{**HELLO, "n": 3})
    assert caught.value.param == "n"
    with pytest.raises(openai.BadRequestError) as caught:
        server.complete(**{**HELLO, "max_tokens": 1024})
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")


# --- clients that go away, queues, ends ---

LONG = {**HELLO, "max_tokens": 900, "temperature": 0.0}


def test_a_client_that_leaves_a_stream_frees_its_slot(server: Server) -> None:
    before = server.status()
    for _ in range(server.status()["parallel"] + 1):
        stream = server.complete(**LONG, stream=True)
        next(stream)
        stream.close()
    after = server.wait_until(lambda status: status["running"] == status["waiting"] == 0)
    assert after["cancelled"] - before["cancelled"] == before["parallel"] + 1
    assert after["finished"] - before["finished"] == before["parallel"] + 1


def test_a_client_that_leaves_before_its_answer_frees_its_slot(server: Server) -> None:
    before = server.status()["cancelled"]
    body = json.dumps(LONG)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        connection.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
        server.wait_until(lambda status: status["running"] == 1)
    after = server.wait_until(lambda status: status["running"] == 0)
    assert after["cancelled"] == before + 1


def test_a_full_queue_refuses_and_an_uncapped_server_cannot_cap(release: Release) -> None:
    arguments = ("--uncapped", "--parallel", "1", "--queue", "1", "--context", "1024", "--name", "plain/one")
    with serving(release.gguf, *arguments) as server, ThreadPoolExecutor(1) as pool:
        question = {**HELLO, "model": "plain/one"}
        with pytest.raises(openai.BadRequestError, match="runs without an axis"):
            server.complete(**question, extra_body={"acap": True})
        stream = server.complete(**{**question, "max_tokens": 900}, stream=True)
        next(stream)
        waiting = pool.submit(server.complete, **question)
        server.wait_until(lambda status: status["waiting"] == 1)
        with pytest.raises(openai.InternalServerError) as caught:
            server.complete(**question)
        assert (caught.value.status_code, caught.value.code) == (503, "queue_full")
        assert caught.value.response.headers["retry-after"] == "5"
        stream.close()
        usage: Any = waiting.result(timeout=SECONDS).usage
        assert usage.acap == {"capped": False, "positions": 0, "fired": 0, "firing_rate": None}
        identity = httpx.get(f"{server.url}/karma/identity").json()
        assert {identity[key] for key in ("axis_sha256", "alpha", "layers", "taus")} == {None}
        assert server.client().models.retrieve("plain/one").id == "plain/one"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_tells_who_waits(release: Release, number: signal.Signals) -> None:
    with serving(release.gguf, "--acap", release.axis, "--context", "2048") as server:
        stream = server.complete(**{**LONG, "max_tokens": 1900}, stream=True)
        next(stream)
        server.process.send_signal(number)
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)


def test_an_address_that_is_taken_is_one_line(server: Server, release: Release, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    done = karma("serve", release.gguf, "--acap", release.axis, "--port", port, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: cannot listen on 127.0.0.1 port {port}" in done.stderr


def test_no_cap_is_never_assumed(release: Release, tmp_path: Path) -> None:
    line = one_line_of(karma("serve", release.gguf, folder=tmp_path), exit_code=1)
    assert "name an axis file: --acap FILE; or --uncapped" in line
    line = one_line_of(karma("serve", release.gguf, "--uncapped", "--alpha", "0.5", folder=tmp_path), exit_code=1)
    assert line.startswith("--alpha goes with a cap")
    line = one_line_of(karma("serve", release.folder, "--uncapped", folder=tmp_path), exit_code=1)
    assert "expected a GGUF file" in line
