"""One replica: the server of a single process, listening where only the front asks, and what it says of itself.

Ray makes it and calls it; it knows nothing of Ray, nor of other replicas.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from threading import Thread
from typing import Any

import anyio.to_thread
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from patchbay.errors import ShuttingDown
from patchbay_server.app import create_app
from patchbay_server.jobs.opened import open_queue
from patchbay_server.listen import bind
from patchbay_server.pins import unpin_deleted
from patchbay_server.server import check_closed, loaded
from patchbay_server.settings import Settings
from patchbay_server.traces import tracing

KEEP_ALIVE_S = 120
MOST_TOLD = 2000  # deltas, those used last


class Replica:
    """Loads the base and the store that `settings` name, and listens on a free port of `host`, until `close`.

    Raises what a server raises before it listens.
    """

    def __init__(self, settings: Settings, host: str, name: str) -> None:
        self.name = name
        self._open = ExitStack()
        settings = settings.model_copy(update={"host": host})
        check_closed(settings)
        self._settings = settings
        with ExitStack() as stack:
            self._engine, self._hub = stack.enter_context(loaded(settings))
            queue = stack.enter_context(closing(open_queue(settings)))
            traces = stack.enter_context(tracing())
            self._app = create_app(settings, self._engine, self._hub, queue, traces)
            self._counted = Counted(self._app)
            listener = stack.enter_context(closing(bind(host, 0)))
            stack.callback(_Serving(self._counted, listener).stop)
            self._open = stack.pop_all()
        address, port = listener.getsockname()[:2]
        self._url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

    async def hold(self) -> None:
        """What a request is counted under while it is passed on over HTTP: nobody calls it."""

    async def url(self) -> str:
        return self._url

    async def record_replica_metadata(self) -> dict[str, Any]:
        """Told once to all who may ask something of this replica."""
        backbone = self._engine.backbone
        return {"url": self._url, "base": backbone.name, "task": backbone.task.value}

    async def record_routing_stats(self) -> dict[str, Any]:
        """Told again and again to those who choose a replica."""
        return {"deltas": self._engine.recipes.deltas.keys[-MOST_TOLD:], "capacity": self._settings.max_running}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Told to whoever decides how many replicas there are."""
        return {"under_way": float(self._counted.under_way)}

    async def check_health(self) -> None:
        """Raises BackboneError where only a new process helps."""
        try:
            self._engine.check_health()
        except ShuttingDown:
            return

    async def named_metrics(self) -> tuple[str, str]:
        """This replica's name, and what its `/metrics` is."""
        rendered = await anyio.to_thread.run_sync(self._app.state.metrics.render)
        return self.name, rendered.decode()

    async def forget_deleted(self) -> None:
        await anyio.to_thread.run_sync(unpin_deleted, self._engine, self._hub)

    async def drain(self) -> None:
        """The whole service is about to end."""
        self._engine.drain()
        self._app.state.stopping.set()

    async def stop(self) -> None:
        """Now."""
        self._engine.stop()

    def close(self) -> None:
        """What is under way ends with an error."""
        self._open.close()


class Counted:
    """An app, and how many requests are under way in it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_request = scope["type"] == "http"
        self.under_way += is_request
        try:
            await self._app(scope, receive, send)
        finally:
            self.under_way -= is_request


class _Serving:
    """An app on a listener, in a thread with an event loop of its own, until `stop`."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        listener.listen()
        self._thread = Thread(target=self._server.run, kwargs={"sockets": [listener]}, name="replica-http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)
