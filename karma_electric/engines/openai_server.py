"""A model behind HTTP: any server with OpenAI's chat completions (vLLM, llama-server, Ollama), or our `karma serve`.

Such a server cannot go on from a given beginning of an answer, and weighs no text of our choice; and it can only CLAIM
which weights answer. `karma serve` says at /karma/identity what it runs; every answer of it must then name the same.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import httpx2

from karma_electric.capping.formula import Cap
from karma_electric.conversation import Message
from karma_electric.engines.protocol import CapActivity, EngineIdentity, Generation
from karma_electric.errors import InputError, IntegrityError, SetupError

MAX_REPLY_BYTES = 16 * 1024 * 1024
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0  # a large model on a busy machine, one whole answer
TOP_LOGPROBS = 20  # the most that servers give
UNLISTED_NATS = 1.0  # below the least likely token that is listed, where an option is not
UNKNOWN = "unknown"
_LONGEST_MESSAGE = 300
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ReleaseFiles:
    """What the server ought to run: the sha256 of the release's weights and axis, and the cap that they make."""

    weights_sha256: str
    axis_sha256: str
    cap: Cap


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What errors call the recipe's key for the model, and the environment's variable for the key of the server."""

    model: str = "gate.served_model"
    key: str = "KARMA_API_KEY"


class OpenAIServerEngine:
    """The model `served_model`, or the only one, of the server at `base_url` (as http://127.0.0.1:8080/v1).

    Implements karma_electric.engines.protocol.Engine, but for `prefix`: a server writes whole answers. `tokenize` is a
    function of the release's own file, since the server's vocabulary cannot be asked for. A server that is not meant to
    run a release (a judge) has neither; it is never vouched for. `api_key` is sent to that server only; `settings` are
    the names that errors give to where model and key are chosen. A context manager.

    Raises SetupError for a server that is not there, refuses, or breaks the protocol; IntegrityError where what
    answers changes in between.
    """

    def __init__(
        self,
        base_url: str,
        *,
        tokenize: Callable[[str, bool], list[int]] | None = None,
        release: ReleaseFiles | None = None,
        served_model: str | None = None,
        api_key: str | None = None,
        settings: ServerSettings = ServerSettings(),
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._tokenize = tokenize
        self._settings = settings
        self._url = base_url.rstrip("/")
        self._answer_seconds = answer_seconds
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(answer_seconds, connect=CONNECT_SECONDS),
            transport=httpx2.HTTPTransport(retries=2),
        )
        try:
            self._identity, self._fingerprint = self._identify(release)
            self._model = self._find_model(served_model)
            if self._fingerprint is None:
                build = f"a server that says {_words(self._model.rpartition('/')[2])}"
                self._identity = EngineIdentity("openai", build, UNKNOWN, None, claimed=True)
            self.weighs = self._probe()
        except BaseException:
            self._client.close()
            raise

    @property
    def identity(self) -> EngineIdentity:
        """What the server says that answers."""
        return self._identity

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text` in the vocabulary of the release's file."""
        if self._tokenize is None:
            raise InputError(f"{self._url}: its vocabulary is not known, so it counts no tokens")
        return self._tokenize(text, parse_special)

    def generate(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        capped: bool = False,
        prefix: str = "",
        stop: Sequence[str] = (),
    ) -> Generation:
        """The answer at temperature 0. Token ids are not known; the cap's activity is what `karma serve` reports."""
        if prefix:
            raise InputError("a server goes on from no prefix; ask for a whole answer")
        reply = self._complete(messages, max_tokens=max_tokens, capped=capped, **({"stop": list(stop)} if stop else {}))
        finish = reply.choice.get("finish_reason")
        if finish not in ("stop", "length"):
            raise SetupError(f"{self._url}: an answer ended with {_words(finish)}, expected stop or length")
        text = reply.message.get("content")
        if not (text is None or isinstance(text, str)):
            raise SetupError(f"{self._url}: an answer's content is {_words(text)}, expected text")
        prompt_tokens = reply.usage.get("prompt_tokens")
        return Generation(
            text=(text or "").encode("utf-8", "replace").decode("utf-8"),
            token_ids=(),
            finish=finish,
            prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) else 0,
            cap=self._activity(reply, capped=capped),
        )

    def score(
        self,
        messages: Sequence[Message],
        *,
        prefix: str,
        options: Sequence[str],
        capped: bool = False,
        held: bool = False,
    ) -> list[float]:
        """Log-probability, in nats, of each option as the FIRST token of the answer, from the likeliest tokens there.

        Options must differ in their first tokens, such as letters. One that is not listed is less likely than all that
        are, and gets the least listed value less UNLISTED_NATS.
        """
        if prefix or held or not self.weighs:
            raise InputError("this server weighs the first token of an answer at most; ask for a whole answer")
        reply = self._complete(messages, max_tokens=1, capped=capped, logprobs=True, top_logprobs=TOP_LOGPROBS)
        listed = _likeliest(reply.choice)
        if not listed:
            raise SetupError(f"{self._url}: gave log-probabilities once, and now none; expected them with each answer")
        self._activity(reply, capped=capped)
        floor = min(value for _, value in listed) - UNLISTED_NATS
        return [max((value for token, value in listed if token.strip() == option), default=floor) for option in options]

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _identify(self, release: ReleaseFiles | None) -> tuple[EngineIdentity, str | None]:
        """What `karma serve` says that it runs, and the fingerprint that each of its answers must carry."""
        nobody = EngineIdentity("openai", UNKNOWN, UNKNOWN, None, claimed=True)
        parts = urlsplit(self._url)
        root = urlunsplit(parts._replace(path=parts.path.removesuffix("/v1").rstrip("/")))
        status, found = self._ask("GET", f"{root}/karma/identity")
        names = ("weights_sha256", "engine", "build")
        if status != 200 or found is None or not all(isinstance(found.get(name), str) for name in names):
            return nobody, None
        if not _SHA256.fullmatch(found["weights_sha256"]):
            return nobody, None
        axis = axis if isinstance(axis := found.get("axis_sha256"), str) and _SHA256.fullmatch(axis) else None
        claimed = EngineIdentity(found["engine"], found["build"], found["weights_sha256"], axis)
        identity = EngineIdentity(
            engine="openai",
            build=f"karma serve, {_words(claimed.engine)} {_words(claimed.build)}",
            weights_sha256=claimed.weights_sha256,
            axis_sha256=axis,
            claimed=True,
            vouched=release is not None and _caps_as_released(found, release),
        )
        return identity, claimed.fingerprint

    def _find_model(self, wanted: str | None) -> str:
        status, found = self._ask("GET", f"{self._url}/models")
        if status != 200 or found is None:
            raise self._refusal(status, found, "the list of models")
        listed = found.get("data")
        rows = listed if isinstance(listed, list) else []
        names = [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
        if wanted is not None and wanted not in names:
            raise SetupError(f"{self._url}: does not serve {_words(wanted)}; it serves {_listed(names)}")
        if wanted is None and len(names) != 1:
            raise SetupError(f"{self._url}: serves {_listed(names)}; choose one with {self._settings.model}")
        return names[0] if wanted is None else wanted

    def _probe(self) -> bool:
        """One short question: that the model answers at all, and whether log-probabilities come with it."""
        hello = [Message("user", "Say yes.")]
        body = self._body(hello, max_tokens=1, capped=False, logprobs=True, top_logprobs=TOP_LOGPROBS)
        status, found = self._ask("POST", f"{self._url}/chat/completions", body)
        if status == 200 and found is not None:
            return bool(_likeliest(self._checked(found).choice))
        if 400 <= status < 500 and status not in (401, 403, 404):
            self._complete(hello, max_tokens=1, capped=False)  # it may refuse log-probabilities only
            return False
        raise self._refusal(status, found, "a first question")

    def _complete(self, messages: Sequence[Message], **options: Any) -> _Reply:
        status, found = self._ask("POST", f"{self._url}/chat/completions", self._body(messages, **options))
        if status != 200 or found is None:
            raise self._refusal(status, found, "a question")
        return self._checked(found)

    def _body(self, messages: Sequence[Message], *, capped: bool, **options: Any) -> dict[str, Any]:
        if not messages or messages[-1].role != "user":
            raise InputError("the last turn is not the user's, expected the user's: the answer follows it")
        if capped and self._identity.axis_sha256 is None:
            raise InputError(f"{self._url}: cannot cap, and a capped answer was asked for")
        body = {
            "model": self._model,
            "messages": [message.as_dict() for message in messages],
            "temperature": 0,
            "seed": 0,
        }
        cap = {} if self._fingerprint is None else {"acap": capped}  # nobody else knows this key
        return body | cap | options

    def _checked(self, found: dict[str, Any]) -> _Reply:
        choices = found.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise SetupError(f"{self._url}: answered {_words(found)}, expected a chat completion with choices")
        said = found.get("system_fingerprint")
        if self._fingerprint is not None and said != self._fingerprint:
            raise IntegrityError(
                f"{self._url}: an answer comes from {_words(said)}, expected {self._fingerprint}; the server changed"
            )
        usage = found.get("usage")
        return _Reply(choice, choice["message"], usage if isinstance(usage, dict) else {})

    def _activity(self, reply: _Reply, *, capped: bool) -> CapActivity:
        """What `karma serve` says that its cap did. Raises IntegrityError where it did not do what was asked."""
        if self._fingerprint is None:
            return CapActivity(0, 0)
        said = reply.usage.get("acap")
        told: dict[str, Any] = said if isinstance(said, dict) else {}
        positions, fired = told.get("positions"), told.get("fired")
        if told.get("capped") is capped and isinstance(positions, int) and isinstance(fired, int):
            return CapActivity(positions, fired)
        raise IntegrityError(f"{self._url}: its usage says {_words(said)} of an answer asked with acap {capped}")

    def _ask(self, method: str, url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any] | None]:
        """The HTTP status and the JSON object that came with it, None where it is none."""
        deadline = time.monotonic() + self._answer_seconds
        try:
            with self._client.stream(method, url, json=body) as response:
                data = bytearray()
                for part in response.iter_bytes():
                    data += part
                    if len(data) > MAX_REPLY_BYTES or time.monotonic() > deadline:
                        raise SetupError(
                            f"{self._url}: a reply has {len(data)} bytes and does not end; expected at most "
                            f"{MAX_REPLY_BYTES} in {self._answer_seconds:g} seconds"
                        )
                status = response.status_code
        except httpx2.TimeoutException as error:
            raise SetupError(
                f"{self._url}: no answer in time ({type(error).__name__}); is the server overloaded?"
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise SetupError(f"{self._url}: cannot be asked ({_words(str(error))}); start the server") from error
        try:
            found = json.loads(bytes(data))
        except (ValueError, RecursionError):
            found = None
        return status, found if isinstance(found, dict) else None

    def _refusal(self, status: int, found: dict[str, Any] | None, what: str) -> SetupError:
        if status in (401, 403):
            key = self._settings.key
            return SetupError(f"{self._url}: refused {what} (HTTP {status}); set {key} to a key of this server")
        error = (found or {}).get("error")
        message = error.get("message") if isinstance(error, dict) else error
        said = (
            _words(message) if isinstance(message, str) else "no JSON with a reason" if found is None else "no reason"
        )
        return SetupError(f"{self._url}: refused {what} (HTTP {status}: {said})")


@dataclass(frozen=True, slots=True)
class _Reply:
    choice: dict[str, Any]
    message: dict[str, Any]
    usage: dict[str, Any]


def _caps_as_released(found: dict[str, Any], release: ReleaseFiles) -> bool:
    """Whether an identity names the release's own bytes, and caps with their thresholds and no others."""
    cap = release.cap
    expected = {
        "weights_sha256": release.weights_sha256,
        "axis_sha256": release.axis_sha256,
        "alpha": cap.alpha,
        "layers": list(cap.layers),
        "taus": {str(layer): cap.taus[layer] for layer in cap.layers},
    }
    return all(found.get(name) == value for name, value in expected.items())


def _likeliest(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """The likeliest first tokens with their log-probabilities; empty where the server gives none."""
    try:
        rows = choice["logprobs"]["content"][0]["top_logprobs"]
        listed = [(str(row["token"]), float(row["logprob"])) for row in rows]
    except (KeyError, IndexError, TypeError, ValueError):
        return []
    return [(token, value) for token, value in listed if math.isfinite(value)]


def _listed(names: list[str]) -> str:
    return ", ".join(map(_words, names[:5])) + (" and more" if len(names) > 5 else "") if names else "no model"


def _words(value: object) -> str:
    """What a server said, as an error may show it: printable, on one line, short."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)
    flat = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split()))
    return flat if len(flat) <= _LONGEST_MESSAGE else flat[:_LONGEST_MESSAGE] + "..."
