"""Answers as OpenAI's clients read them: completions, chunks of a stream, usage."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from karma_electric.engines.answer import ChosenToken, Finish, LogProbability
from karma_electric.server.scheduler import Usage

TokenBytes = Callable[[int], bytes]


class ChatResponse:
    """One answer: the parts that its completion, or all of its chunks, have in common."""

    def __init__(self, model: str, fingerprint: str, token_bytes: TokenBytes) -> None:
        self._common = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._token_bytes = token_bytes

    def completion(
        self, text: str, finish: Finish, usage: Usage, chosen: Sequence[ChosenToken] | None
    ) -> dict[str, Any]:
        """The whole answer; `chosen` None where no log-probabilities were asked for."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(chosen),
            "finish_reason": finish,
        }
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": usage_body(usage)}

    def chunk(
        self, delta: dict[str, Any], finish: Finish | None, chosen: Sequence[ChosenToken] | None, *, with_usage: bool
    ) -> dict[str, Any]:
        """A part of a stream. `with_usage`: a last chunk will hold the usage, so the others say null."""
        choice = {"index": 0, "delta": delta, "logprobs": self._logprobs(chosen), "finish_reason": finish}
        body = {**self._common, "object": "chat.completion.chunk", "choices": [choice]}
        return {**body, "usage": None} if with_usage else body

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that is to end with its usage."""
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage_body(usage)}

    def _logprobs(self, chosen: Sequence[ChosenToken] | None) -> dict[str, Any] | None:
        if chosen is None:
            return None
        content = [
            {**self._logprob(token.chosen), "top_logprobs": [self._logprob(each) for each in token.likeliest]}
            for token in chosen
        ]
        return {"content": content, "refusal": None}

    def _logprob(self, found: LogProbability) -> dict[str, Any]:
        data = self._token_bytes(found.token)
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": found.value}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Tokens, and what the cap did: positions are (token, layer) pairs that it looked at."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "acap": {
            "capped": usage.capped,
            "positions": usage.cap.positions,
            "fired": usage.cap.fired,
            "firing_rate": usage.cap.firing_rate,
        },
    }


def as_json(body: dict[str, Any]) -> bytes:
    """In ASCII, so that no text, however broken, fails to be sent."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")


def as_event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + as_json(body) + b"\n\n"
