"""What can go wrong at a request: which one, what happens, and how often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

KINDS = {
    "error": "500, and nothing was done",
    "unavailable": "503, and nothing was done",
    "refuse": "the token is refused, in words that repeat it",
    "disk-full": "507, and nothing was done",
    "reset": "the connection is reset before anything was read",
    "reset-body": "the connection is reset in the middle of the request's body",
    "reset-answer": "it was done, and the connection is reset before the answer",
    "cut-answer": "half of the answer's body, then a reset",
    "slow": "the answer's body comes in small pieces",
    "stale-parent": "somebody else commits to the repo first",
    "call-before": "a function is called before anything was read",
    "call-body": "a function is called in the middle of the request's body",
    "call-answer": "a function is called when it was done, before the answer",
}


@dataclass
class Fault:
    """`at` is a request's place in the sequence, from 0, or its route's name; `times` None is for ever."""

    kind: str
    at: int | str
    times: int | None = None
    call: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind}: no fault; there are {', '.join(KINDS)}")


@dataclass
class Faults:
    """The requests that came, by route, and the faults that are to meet them."""

    planned: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def meet(self, route: str) -> Fault | None:
        """Count a request; the fault that strikes it. A fault at a number goes on striking that route."""
        with self._lock:
            number = len(self.seen)
            self.seen.append(route)
            for fault in self.planned:
                if fault.at in (number, route) and fault.times != 0:
                    fault.at = route
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def clear(self) -> None:
        with self._lock:
            self.planned.clear()
            self.seen.clear()
