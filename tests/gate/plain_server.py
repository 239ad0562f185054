"""A small real HTTP server with OpenAI's routes and no identity, which answers as a test wants it to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.gate.scripted_engine import FORM

Reply = tuple[int, Any]  # HTTP status, and what is sent: bytes as they are, anything else as JSON


def completion(text: str, *, letters: str = "", finish: str = "stop") -> dict[str, Any]:
    """A chat completion; with `letters`, log-probabilities of them, the first one the likeliest."""
    rows = [{"token": f" {letter}", "logprob": -float(place)} for place, letter in enumerate(letters, 1)]
    logprobs = {"content": [{"token": rows[0]["token"], "logprob": -1.0, "top_logprobs": rows}]} if rows else None
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
    return {"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def sensible(body: dict[str, Any]) -> Reply:
    """A rating in the form to whoever asks for one, and a refusal otherwise; letters where they are asked for."""
    rates = "Response to rate:" in body["messages"][-1]["content"]
    return 200, completion(FORM if rates else "I would rather not.", letters="AB" if body.get("logprobs") else "")


@dataclass
class PlainServer:
    """A running server; `asked` holds the bodies and `headers` the headers of every question."""

    url: str = ""
    answer: Callable[[dict[str, Any]], Reply] = sensible
    models: Reply = (200, {"object": "list", "data": [{"id": "/home/models/large", "object": "model"}]})
    identity: Reply = (404, {"detail": "Not Found"})
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)  # for an answer that never comes


@contextlib.contextmanager
def plain_server(**parts: Any) -> Iterator[PlainServer]:
    """Serve until the block ends."""
    server = PlainServer(**parts)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            replies = {"/v1/models": server.models, "/karma/identity": server.identity}
            self._send(*replies.get(self.path, (404, {})))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.asked.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self._send(*server.answer(body))

        def _send(self, status: int, reply: Any) -> None:
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client gave up
                self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
        try:
            yield server
        finally:
            server.ended.set()
            listener.shutdown()
            thread.join()
