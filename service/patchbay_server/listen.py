"""A socket, requests from it, and an end that nobody is hurt by. Knows nothing of what answers."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from patchbay.errors import PatchbayError
from patchbay_server.connections import Connection

DRAIN_S = 15  # seconds that requests under way are given to end
END_S = 5  # and that they then have to say that they were ended
logger = logging.getLogger("patchbay_server")


class CannotListen(PatchbayError):
    """The host and port cannot be bound: taken, forbidden, or not this machine's."""

    code = "cannot_listen"


class Server(uvicorn.Server):
    """Told to end, it calls `drain` and goes on listening, so that probes hear that it is not ready, until no request
    is under way or `DRAIN_S` are over; then it calls `stop`. Told again, it does not wait.
    """

    def __init__(self, app: ASGIApp, drain: Iterable[Callable[[], None]], stop: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=END_S,
            )
        )
        self._drains, self._stop = tuple(drain), stop
        self._told = False
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told:
            super().handle_exit(sig, frame)
        self._told = True  # and no more: this may interrupt anything, whatever locks it holds

    async def on_tick(self, counter: int) -> bool:
        if self._told:
            self._drain()
        return await super().on_tick(counter)

    def _drain(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + DRAIN_S
            for drain in self._drains:
                drain()
        if self.should_exit or not self.server_state.tasks or time.monotonic() > self._deadline:
            self._stop()
            self.should_exit = True


def listen(server: Server, listener: socket.socket, about: str) -> None:
    """Blocks until SIGINT or SIGTERM. `about`: what it serves, for the line that says where."""

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # For the moments before and after uvicorn's own handlers: it raises the signal that stopped it once more when it
    # has shut down, and the default handlers would kill the process before it has tidied up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    listener.listen()  # before it is announced: who connects at once waits for uvicorn instead of being refused
    host, port = listener.getsockname()[:2]
    logger.info("patchbay serves %s on http://%s:%s", about, host, port)
    server.run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Bound before the base is loaded: a taken port is said at once, and `--port 0` can be announced. Raises
    CannotListen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port", param="port"
        ) from error
    return listener
