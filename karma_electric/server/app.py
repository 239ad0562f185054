"""The routes of the server, as a Starlette application.

/v1/chat/completions and /v1/models as OpenAI's clients ask them; /karma/identity says what answers, /karma/status how
busy it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from karma_electric.engines.answer import ChosenToken, GrowingAnswer
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.errors import InputError
from karma_electric.server.errors import RequestError
from karma_electric.server.requests import ChatRequest, parse_chat_request
from karma_electric.server.responses import ChatResponse, as_event, as_json
from karma_electric.server.scheduler import Event, Failure, Job, Progress, QueueFullError, Scheduler, StoppingError
from karma_electric.wording import counted

DEFAULT_MAX_BODY_BYTES: Final = 1024 * 1024
BODY_SECONDS: Final = 60.0  # for a client to send its request
RETRY_SECONDS: Final = 5  # what a client is told when the queue is full

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes share."""

    engine: LlamaCppEngine
    scheduler: Scheduler
    model: str  # the name that clients ask for
    identity: dict[str, Any]
    max_body_bytes: int

    @property
    def can_cap(self) -> bool:
        return self.engine.identity.axis_sha256 is not None

    @property
    def fingerprint(self) -> str:
        return self.engine.identity.fingerprint


def make_app(service: Service) -> Starlette:
    """The application; its scheduler must be started before the first request."""

    async def chat(request: Request) -> Response:
        return await _chat_completions(service, request)

    async def models(_request: Request) -> Response:
        return _json({"object": "list", "data": [_model_body(service)]})

    async def model(request: Request) -> Response:
        _check_model(service, request.path_params["name"])
        return _json(_model_body(service))

    async def identity(_request: Request) -> Response:
        return _json(service.identity)

    async def status(_request: Request) -> Response:
        counts = service.scheduler.counts()
        body = {name: getattr(counts, name) for name in ("running", "waiting", "finished", "cancelled")}
        return _json({**body, "parallel": service.scheduler.parallel, "max_waiting": service.scheduler.max_waiting})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/karma/identity", identity),
            Route("/karma/status", status),
        ],
        exception_handlers={RequestError: _refused, HTTPException: _http_error, Exception: _our_fault},
    )


async def _chat_completions(service: Service, request: Request) -> Response:
    body = await _read_body(request, service.max_body_bytes)
    chat = parse_chat_request(body)
    _check_model(service, chat.model)
    capped = service.can_cap if chat.acap is None else chat.acap
    if capped and not service.can_cap:
        raise RequestError(400, "acap: is true, but this server runs without an axis", key="acap")
    prompt, answer = await run_in_threadpool(_prepare, service.engine, chat)
    events: asyncio.Queue[Event] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def emit(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(events.put_nowait, event)

    job = Job(prompt, answer, capped, emit)
    try:
        service.scheduler.submit(job)
    except QueueFullError as error:
        message = f"waiting already: {counted(service.scheduler.max_waiting, 'request')}; try again later"
        raise RequestError(503, message, code="queue_full") from error
    except StoppingError as error:
        raise RequestError(503, "the server is shutting down", code="shutting_down") from error
    return _Answer(service, chat, job, events)


def _prepare(engine: LlamaCppEngine, chat: ChatRequest) -> tuple[list[int], GrowingAnswer]:
    """The prompt's tokens, and the answer to be. Raises RequestError where they do not fit into the context."""
    try:
        prompt = engine.prompt_token_ids(chat.messages)
    except InputError as error:
        raise RequestError(400, f"messages: {error}", key="messages") from error
    room = engine.context_tokens - len(prompt)
    if room < 1:
        message = f"messages: {len(prompt)} tokens, expected at most {engine.context_tokens - 1}; shorten them"
        raise RequestError(400, message, key="messages", code="context_length_exceeded")
    if chat.max_tokens is not None and chat.max_tokens > room:
        message = f"max_tokens: {chat.max_tokens}, but messages of {len(prompt)} tokens leave room for {room}"
        raise RequestError(400, message, key="max_tokens", code="context_length_exceeded")
    answer = engine.new_answer(
        len(prompt),
        sampling=chat.sampling,
        max_tokens=chat.max_tokens,
        stop=chat.stop,
        top_log_probabilities=chat.top_logprobs,
    )
    return prompt, answer


class _Answer(Response):
    """Sends the events of a job, whole or as a stream, and gives the job up when the client goes away."""

    def __init__(self, service: Service, chat: ChatRequest, job: Job, events: asyncio.Queue[Event]) -> None:
        self._service = service
        self._chat = chat
        self._job = job
        self._events = events
        self._response = ChatResponse(service.model, service.fingerprint, service.engine.token_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = asyncio.create_task(self._send_answer(scope, receive, send))
        gone = asyncio.create_task(_until_disconnected(receive))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            self._service.scheduler.cancel(self._job)
            for task in (answering, gone):
                task.cancel()
            await asyncio.gather(answering, gone, return_exceptions=True)

    async def _send_answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await self._events.get()
        if isinstance(first, Failure):
            response = _refusal(RequestError(first.status, first.message))
        elif self._chat.stream:
            await self._send_stream(first, send)
            return
        else:
            response = await self._whole(first)
        await response(scope, receive, send)

    async def _whole(self, first: Progress) -> Response:
        texts: list[str] = []
        chosen: list[ChosenToken] = []
        event: Event = first
        while isinstance(event, Progress):
            texts.append(event.text)
            chosen.extend(event.chosen)
            if event.finish is not None and event.usage is not None:
                measured = None if self._chat.top_logprobs is None else chosen
                return _json(self._response.completion("".join(texts), event.finish, event.usage, measured))
            event = await self._events.get()
        return _refusal(RequestError(event.status, event.message))

    async def _send_stream(self, first: Progress, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for part in self._stream_parts(first):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream_parts(self, first: Progress) -> AsyncIterator[bytes]:
        with_usage = self._chat.include_usage
        start = {"role": "assistant", "content": ""}
        yield as_event(self._response.chunk(start, None, None, with_usage=with_usage))
        event: Event = first
        while isinstance(event, Progress):
            chosen = None if self._chat.top_logprobs is None else event.chosen
            if event.text or event.chosen:
                delta = {"content": event.text}
                yield as_event(self._response.chunk(delta, None, chosen, with_usage=with_usage))
            if event.finish is not None:
                yield as_event(self._response.chunk({}, event.finish, None, with_usage=with_usage))
                if with_usage and event.usage is not None:
                    yield as_event(self._response.usage_chunk(event.usage))
                yield b"data: [DONE]\n\n"
                return
            event = await self._events.get()
        yield as_event(RequestError(event.status, event.message).as_body())


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, most_bytes: int) -> bytes:
    """The body, of JSON by its header: another type is what a web page may send to a server that is not its own."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, f"content-type is {kind[:80] or 'missing'!r}, expected application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise RequestError(413, f"the body has more than {most_bytes} bytes; shorten it")
    except TimeoutError as error:
        raise RequestError(408, f"the body did not come within {BODY_SECONDS:g} seconds") from error
    except ClientDisconnect as error:
        raise RequestError(400, "the client went away before its request was read") from error
    return bytes(body)


def _check_model(service: Service, name: str) -> None:
    if name != service.model:
        message = f"model: {name[:80]!r} is not served here; there is {service.model!r}"
        raise RequestError(404, message, key="model", code="model_not_found")


def _model_body(service: Service) -> dict[str, Any]:
    return {"id": service.model, "object": "model", "created": 0, "owned_by": "karma-electric"}


def _json(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(body), status, headers, media_type="application/json")


def _refusal(error: RequestError) -> Response:
    headers = {"retry-after": str(RETRY_SECONDS)} if error.status == 503 else {}
    if error.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    return _json(error.as_body(), error.status, headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101
    return _refusal(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    where = f"{request.method} {request.url.path[:80]}"
    body = RequestError(error.status_code, f"{where}: {error.detail}").as_body()
    return _json(body, error.status_code, dict(error.headers or {}))


async def _our_fault(_request: Request, error: Exception) -> Response:
    _logger.error("a request failed", exc_info=error)
    return _refusal(RequestError(500, "the server failed; its log says why"))
