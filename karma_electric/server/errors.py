"""Errors of requests, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that is refused: an HTTP status, one line, and the key of the request that is at fault."""

    def __init__(self, status: int, message: str, *, key: str | None = None, code: str | None = None) -> None:
        super().__init__(" ".join(message.splitlines()))
        self.status = status
        self.key = key
        self.code = code

    def as_body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.key, "code": self.code}}
