"""The hub over HTTP, with faults where they were planned."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

from tests.hub_server.faults import Fault, Faults
from tests.hub_server.routes import Answer, Hub, Request, find_route, parse_query
from tests.hub_server.store import HubError, Store

TOKEN = "hf_" + "t0ken" * 7
_PIECE_BYTES = 1 << 16


class Reset(Exception):
    """The connection is to be reset."""


class Body:
    """The request's body, by its length or in chunks. `halfway` is called once, in the middle."""

    def __init__(self, stream: BufferedIOBase, headers: Any) -> None:
        self._stream = stream
        self._chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._left = int(headers.get("Content-Length") or 0)
        self._middle = self._left // 2
        self._ended = not self._chunked and self._left == 0
        self.halfway: Callable[[], None] | None = None

    def read(self, size: int, /) -> bytes:
        if self._ended:
            return b""
        if self.halfway is not None and (self._chunked or self._left <= self._middle):
            call, self.halfway = self.halfway, None
            call()
        if self._chunked and self._left == 0:
            self._left = int(self._stream.readline().split(b";")[0], 16)
            if self._left == 0:
                self._stream.readline()
                self._ended = True
                return b""
        wanted = min(size, self._left, _PIECE_BYTES)
        if self.halfway is not None and not self._chunked:
            wanted = min(wanted, self._left - self._middle)
        data = self._stream.read(wanted)
        if len(data) < wanted:
            raise ConnectionResetError("the client went away")
        self._left -= len(data)
        if self._left == 0 and self._chunked:
            self._stream.readline()
        self._ended = self._left == 0 and not self._chunked
        return data

    def drain(self) -> None:
        while self.read(_PIECE_BYTES):
            pass


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body go out as they are; the client's late ACK would cost 40 ms a request

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = Body(self.rfile, self.headers)
        request = Request(self.command, path, parse_query(query), headers, body)
        name, does = find_route(request)
        fault = self.server.faults.meet(name)
        try:
            answer = self._answer(request, does, fault, body)
            body.drain()
            if fault and fault.kind == "call-answer":
                fault.call()
            if fault and fault.kind == "reset-answer":
                _raise_reset()
            self._send(answer, fault)
        except Reset:
            self._reset()
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(
        self, request: Request, does: Callable[[Hub, Request], Answer], fault: Fault | None, body: Body
    ) -> Answer:
        try:
            if fault is not None:
                self._strike(fault, request, body)
            return does(self.server.hub, request)
        except HubError as error:
            said = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            return Answer({"error": error.message}, error.status, {key: value for key, value in said.items() if value})

    def _strike(self, fault: Fault, request: Request, body: Body) -> None:
        """What happens before the request is answered, or in the middle of its body."""
        statuses = {"error": 500, "unavailable": 503, "disk-full": 507}
        if fault.kind in statuses:
            raise HubError(statuses[fault.kind], "", fault.kind)
        if fault.kind == "refuse":
            raise HubError(403, "", f"refused: {request.headers.get('authorization', 'no token')}")
        if fault.kind == "reset":
            raise Reset
        if fault.kind == "call-before":
            fault.call()
        if fault.kind == "stale-parent":
            commit_something(self.server.hub.store)
        if fault.kind == "call-body":
            body.halfway = fault.call
        if fault.kind == "reset-body":
            body.halfway = _raise_reset
            if not int(self.headers.get("Content-Length") or 0) and "Transfer-Encoding" not in self.headers:
                raise Reset

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        data = b"" if answer.file else json.dumps(answer.value).encode()
        size = answer.file.stat().st_size if answer.file else len(data)
        start, end = 0, size
        headers = {"Content-Type": "application/json"} | answer.headers
        status = answer.status
        if answer.file and (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            start, end = int(wanted[1]), min(size, int(wanted[2] or size - 1) + 1)
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{size}"
            if start >= size:
                status, start, end, headers["Content-Range"] = 416, size, size, f"bytes */{size}"
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(end - start)}).items():
            self.send_header(name, value.replace("\n", " "))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = (end - start) // 2 if fault and fault.kind == "cut-answer" else end - start
        step = 7 if fault and fault.kind == "slow" else _PIECE_BYTES
        if answer.file is None:
            self._send_pieces(iter([data[at : at + step] for at in range(0, limit, step)]))
        else:
            with answer.file.open("rb") as stream:
                stream.seek(start)
                self._send_pieces(_pieces(stream, limit, max(step, 1024)))
        if fault and fault.kind == "cut-answer":
            raise Reset

    def _send_pieces(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()

    def _reset(self) -> None:
        """Close with RST, as a broken line does, and not with a proper end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _raise_reset() -> None:
    raise Reset


def _pieces(stream: IO[bytes], limit: int, step: int) -> Iterator[bytes]:
    while limit > 0 and (piece := stream.read(min(step, limit))):
        limit -= len(piece)
        yield piece


def commit_something(store: Store) -> None:
    """Somebody else adds a file to every repo."""
    with store.lock:
        for repo in store.repos():
            parent = repo.commit_of("main")
            files = repo.files(parent) | {"notes.txt": repo.add_blob(parent.encode())}
            repo.add_commit(files, parent=parent, title="notes")


class HubServer(ThreadingHTTPServer):
    """`hub` is what it knows, `faults` what is to go wrong and what was asked."""

    daemon_threads = True

    def __init__(self, folder: Path, *, port: int = 0, token: str = TOKEN, chunk_bytes: int = 20_000_000) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.hub = Hub(Store(folder), self.url, token, chunk_bytes)
        self.faults = Faults()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A broken connection is what some tests ask for; anything else fails in the client."""


@contextmanager
def serve_hub(folder: Path, *, chunk_bytes: int = 20_000_000) -> Iterator[HubServer]:
    """A hub at a free port of this machine, whose state is in `folder`."""
    with HubServer(folder, chunk_bytes=chunk_bytes) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
