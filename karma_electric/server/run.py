"""Running the server until a signal ends it."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import uvicorn

from karma_electric.capping.formula import Cap
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.errors import InputError, SetupError
from karma_electric.server.app import DEFAULT_MAX_BODY_BYTES, Service, make_app
from karma_electric.server.scheduler import Scheduler

SECONDS_TO_CLOSE: Final = 5  # for clients to take the last they are sent, once the server is told to end


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """How much a server takes on."""

    parallel: int = 4  # requests that are answered at once, each with `context_tokens` of memory
    max_waiting: int = 64  # requests in line behind them
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES

    def __post_init__(self) -> None:
        if not (1 <= self.parallel <= 256 and self.max_waiting >= 0 and self.max_body_bytes >= 1024):
            raise InputError(
                f"parallel is {self.parallel}, the queue {self.max_waiting}, max_body_bytes {self.max_body_bytes}; "
                "expected 1 to 256, at least 0, and at least 1024"
            )


def run_server(
    engine: LlamaCppEngine,
    *,
    cap: Cap | None,
    model_name: str,
    host: str,
    port: int,
    limits: ServerLimits | None = None,
    on_ready: Callable[[str], None],
) -> None:
    """Serve `engine` on `host` and `port` (0: any free one) until SIGINT or SIGTERM; `on_ready` gets the URL.

    `cap` is the engine's own, for /karma/identity; with None the server answers uncapped only. Must be called on the
    main thread. Raises SetupError where the address is taken, and what ended the scheduler, if anything did.
    """
    limits = limits or ServerLimits()
    slots = {capped: engine.open_slots(limits.parallel, capped=capped) for capped in [cap is not None]}
    scheduler = Scheduler(
        lambda capped: slots.pop(capped, None) or engine.open_slots(limits.parallel, capped=capped),
        parallel=limits.parallel,
        max_waiting=limits.max_waiting,
    )
    service = Service(
        engine=engine,
        scheduler=scheduler,
        model=model_name,
        identity=identity_body(engine, cap, model_name),
        max_body_bytes=limits.max_body_bytes,
    )
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
    )
    with _listening(host, port) as listener:
        server = _Server(config, scheduler, lambda: on_ready(_url(host, listener)))
        with _ended_by_signals(server):
            scheduler.start()
            try:
                server.run(sockets=[listener])
            finally:
                scheduler.stop()
    if scheduler.error is not None:
        raise scheduler.error


def identity_body(engine: LlamaCppEngine, cap: Cap | None, model_name: str) -> dict[str, Any]:
    """What answers: hashes, build, and the cap as it is applied, `taus` by layer."""
    identity = engine.identity
    return {
        "model": model_name,
        "weights_sha256": identity.weights_sha256,
        "axis_sha256": identity.axis_sha256,
        "engine": identity.engine,
        "build": identity.build,
        "context_tokens": engine.context_tokens,
        "alpha": None if cap is None else cap.alpha,
        "layers": None if cap is None else list(cap.layers),
        "taus": None if cap is None else {str(layer): cap.taus[layer] for layer in cap.layers},
    }


class _Server(uvicorn.Server):
    """Says when it listens, and stops the scheduler as soon as a signal comes, so that no answer delays the end."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._scheduler = scheduler
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._scheduler.error is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._scheduler.begin_to_stop()
        super().handle_exit(sig, frame)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise SetupError(
                f"cannot listen on {host} port {port} ({error}); choose another --port or --host"
            ) from error
        yield listener
    finally:
        listener.close()


@contextlib.contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """SIGINT and SIGTERM end the server, before uvicorn minds them as well; once it is down, nothing more happens."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, server.handle_exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _url(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
