"""Bodies of /v1/chat/completions: what is understood, within which bounds; anything else names its key.

A key that would change the answer and is not supported is refused. Keys that only say who asks are ignored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from karma_electric.conversation import Message, Role
from karma_electric.engines.sampling import Sampling
from karma_electric.errors import shown
from karma_electric.server.errors import RequestError

MAX_STOP_TEXTS: Final = 4
MAX_STOP_CHARACTERS: Final = 256
MAX_TOP_LOGPROBS: Final = 20

_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_IGNORED: Final = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
# Supported with the value that changes nothing.
_FIXED: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that was understood. None stands for what it does not say."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    top_logprobs: int | None  # None: no log-probabilities
    acap: bool | None


def parse_chat_request(body: bytes) -> ChatRequest:
    """The request in `body`. Raises RequestError 400."""
    values = _Values(_read_json(body))
    request = ChatRequest(
        model=values.text("model"),
        messages=_messages(values.take("messages")),
        sampling=Sampling(
            temperature=values.number("temperature", 1.0, 0.0, 2.0),
            top_p=values.number("top_p", 1.0, math.ulp(0.0), 1.0),
            seed=values.integer("seed", -(2**63), 2**63 - 1),
        ),
        max_tokens=_max_tokens(values),
        stop=_stop(values.take("stop")),
        stream=values.flag("stream") or False,
        include_usage=_include_usage(values),
        top_logprobs=_top_logprobs(values),
        acap=values.flag("acap"),
    )
    values.refuse_the_rest()
    if request.include_usage and not request.stream:
        _refuse("stream_options", "given without stream: true; leave it out, the usage is in the answer")
    return request


class _Values:
    """The keys of a body, each taken once; null is as if it were not there."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._left = {key: value for key, value in values.items() if value is not None}

    def take(self, key: str) -> Any:
        return self._left.pop(key, None)

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not value:
            _refuse(key, f"is {_seen(value)}, expected text")
        return value

    def flag(self, key: str) -> bool | None:
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            _refuse(key, f"is {shown(value)}, expected true or false")
        return value

    def number(self, key: str, default: float, least: float, most: float) -> float:
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            bound = "above 0" if least == math.ulp(0.0) else f"{least:g}"
            _refuse(key, f"is {shown(value)}, expected a number from {bound} to {most:g}")
        return float(value)

    def integer(self, key: str, least: int, most: int) -> int | None:
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            _refuse(key, f"is {shown(value)}, expected a whole number from {least} to {most}")
        return value

    def refuse_the_rest(self) -> None:
        for key, value in self._left.items():
            if key in _IGNORED:
                continue
            if key not in _FIXED:
                _refuse(key, "is not supported by this server; leave it out")
            if not any(value == fixed and isinstance(value, bool) == isinstance(fixed, bool) for fixed in _FIXED[key]):
                expected = " or ".join(json.dumps(fixed) for fixed in _FIXED[key])
                _refuse(key, f"is {shown(value)}; this server supports {expected} only")


def _refuse(key: str, problem: str, *, code: str | None = None) -> NoReturn:
    raise RequestError(400, f"{shown(key) if len(key) > 40 else key}: {problem}", key=key[:80], code=code)


def _seen(value: object) -> str:
    return "missing" if value is None else shown(value)


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON in UTF-8 ({error})") from error
    if not isinstance(value, dict):
        raise RequestError(400, f"the body is {shown(value)}, expected a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            _refuse(key, "stands twice")
        found[key] = value
    return found


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        _refuse("messages", f"is {_seen(value)}, expected a list of at least one message")
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))
    if messages[-1].role != "user":
        _refuse("messages", f"the last one is of role {messages[-1].role}, expected user: the answer follows it")
    return messages


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        _refuse(where, f"is {shown(value)}, expected an object with role and content")
    for key in value.keys() - {"role", "content", "name"}:
        if value[key] not in (None, [], {}):  # such as refusal, audio, tool_calls: null in what a client sends back
            _refuse(f"{where}.{key}", "is not supported by this server; leave it out")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(f"{where}.role", f"is {_seen(role)}, expected one of {', '.join(_ROLES)}")
    return Message(_ROLES[role], _content(value.get("content"), f"{where}.content"))


def _content(value: object, where: str) -> str:
    """Text, or a list of parts of type text."""
    if isinstance(value, list):
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if not all(isinstance(text, str) for text in texts):
            _refuse(where, "holds a part that is no text; this model reads text only")
        value = "".join(str(text) for text in texts)
    if not isinstance(value, str):
        _refuse(where, f"is {_seen(value)}, expected text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        _refuse(where, "has a lone surrogate, expected valid Unicode")
    return value


def _max_tokens(values: _Values) -> int | None:
    found = {key: values.integer(key, 1, 2**31 - 1) for key in ("max_tokens", "max_completion_tokens")}
    given = {key: value for key, value in found.items() if value is not None}
    if len(set(given.values())) > 1:
        _refuse("max_tokens", "differs from max_completion_tokens; give one of them")
    return next(iter(given.values()), None)


def _stop(value: object) -> tuple[str, ...]:
    texts = [] if value is None else value if isinstance(value, list) else [value]
    if len(texts) > MAX_STOP_TEXTS or not all(isinstance(t, str) and 0 < len(t) <= MAX_STOP_CHARACTERS for t in texts):
        _refuse("stop", f"is {shown(value)}, expected up to {MAX_STOP_TEXTS} texts of 1 to {MAX_STOP_CHARACTERS}")
    return tuple(texts)


def _include_usage(values: _Values) -> bool:
    options = values.take("stream_options")
    if options is None:
        return False
    known = isinstance(options, dict) and options.keys() <= {"include_usage", "include_obfuscation"}
    if not known or not all(isinstance(value, bool) for value in options.values()):
        _refuse("stream_options", f'is {shown(options)}, expected {{"include_usage": true}} or false')
    return bool(options.get("include_usage", False))


def _top_logprobs(values: _Values) -> int | None:
    wanted = values.flag("logprobs") or False
    top = values.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        _refuse("top_logprobs", "given without logprobs: true")
    return (top or 0) if wanted else None
