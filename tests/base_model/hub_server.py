"""A small server with the hub's read routes, for the real client: one repo, one commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


class _Handler(BaseHTTPRequestHandler):
    server: _Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.refusal is not None and self.path.startswith(self.server.refusal[2]):
            status, code, _ = self.server.refusal
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "refused"}, body)
            return
        path = self.path.split("?")[0]
        files = sorted(p for p in self.server.folder.iterdir())
        if path in {f"/api/models/test/tiny/revision/{COMMIT}", "/api/models/test/tiny"}:
            siblings = [{"rfilename": file.name} for file in files]
            described = {"id": "test/tiny", "modelId": "test/tiny", "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(described).encode(), {}, body)
        elif path == f"/api/models/test/tiny/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f.read_bytes())} for f in files
            ]
            self._send(200, json.dumps(tree).encode(), {}, body)
        elif path.startswith(prefix := f"/test/tiny/resolve/{COMMIT}/"):
            data = (self.server.folder / path.removeprefix(prefix)).read_bytes()
            self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(data)}"'}, body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data)), "Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


class _Hub(ThreadingHTTPServer):
    def __init__(self, folder: Path, refusal: tuple[int, str, str] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.refusal = refusal
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub(folder: Path, refusal: tuple[int, str, str] | None = None) -> Iterator[_Hub]:
    """Serve the files in `folder` as test/tiny at COMMIT; or refuse some paths.

    `refusal` is a status, the hub's error code, and how refused paths begin.
    """
    with _Hub(folder, refusal) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
