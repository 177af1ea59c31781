"""One process: load the base, open the stores, listen."""

from __future__ import annotations

import json
import logging
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from threading import Event
from types import FrameType

import uvicorn

from patchbay.backbone import Backbone
from patchbay.delta import Delta, read_delta
from patchbay.engine.engine import Budgets, Engine
from patchbay.engine.scheduler import Limits
from patchbay.errors import DeltaError, InputError, InvalidName, NotFound, PatchbayError, StoreUnavailable, WrongBase
from patchbay.merge import METHODS
from patchbay.store.base import DEFAULT_TENANT, DeltaRecord
from patchbay.store.hub import Hub, tenants_of
from patchbay_server import logs
from patchbay_server.app import create_app
from patchbay_server.connections import Connection
from patchbay_server.jobs.base import JobQueue
from patchbay_server.jobs.opened import open_queue
from patchbay_server.jobs.supervisor import Workers
from patchbay_server.pins import preload
from patchbay_server.residents import digest_of
from patchbay_server.resolve import BASE
from patchbay_server.settings import Settings
from patchbay_server.stores.opened import open_store
from patchbay_server.stores.urls import open_catalog
from patchbay_server.traces import tracing

logger = logging.getLogger("patchbay_server")
DRAIN_S = 15  # seconds that requests under way are given to end
END_S = 5  # and that they then have to say that they were ended


class CannotListen(PatchbayError):
    """The host and port cannot be bound: taken, forbidden, or not this machine's."""

    code = "cannot_listen"


def open_hub(settings: Settings, base_name: str) -> Hub:
    """The store that the settings name. Raises StoreUnavailable."""
    settings.store.mkdir(parents=True, exist_ok=True)
    return open_store(settings, frozenset({BASE, base_name, *METHODS}))


def check_closed(settings: Settings) -> None:
    """Raises InputError for a server that everybody could use: the world reaches it, and there is no key."""
    if settings.api_key is not None or settings.is_loopback:
        return
    settings.store.mkdir(parents=True, exist_ok=True)
    with closing(open_catalog(settings.catalog_url)) as catalog:
        if not catalog.keys.list_keys():
            raise InputError(
                f"refusing to listen on {settings.host} without PATCHBAY_API_KEY or a key in the store: set one, make "
                "one with `patchbay keys create`, or use 127.0.0.1",
                param="host",
            )


def check_store(hub: Hub, backbone: Backbone) -> list[str]:
    """The names, of all tenants, whose bytes are not in this server's blob store.

    Raises WrongBase where the store holds deltas of another base: a catalog belongs to one base.
    """
    records = [record for tenant in tenants_of(hub.catalog) for record in hub.catalog.list_deltas(tenant)]
    for record in records:
        if record.name == backbone.name:
            raise InvalidName(
                f"the store has a delta {_shown(record)!r}, named as the base is: rename the base's folder"
            )
        made_for = json.loads(record.summary).get("base", backbone.fingerprint)
        if made_for != backbone.fingerprint:
            raise WrongBase(
                f"the store holds {_shown(record)!r}, a delta of another base ({made_for[:19]}..., this one is "
                f"{backbone.fingerprint[:19]}...): give every base a store of its own with --store or --store-url",
                param="store",
            )
    stored = hub.blobs.digests()  # one question, where one a record would be a second for every hundred
    return [_shown(record) for record in records if record.digest not in stored]


def _shown(record: DeltaRecord) -> str:
    return record.name if record.tenant == DEFAULT_TENANT else f"{record.tenant}/{record.name}"


def open_engine(settings: Settings, backbone: Backbone, hub: Hub) -> Engine:
    """An engine that takes its deltas from the store. Blobs were checked when they came, and are checked again."""

    def load(resident: str) -> Delta:
        digest = digest_of(resident)
        try:
            return read_delta(hub.open_blob(digest), backbone.specs, backbone.fingerprint, read_base=backbone.stored)
        except (DeltaError, NotFound) as error:  # the store's failure, not the caller's
            raise StoreUnavailable(
                f"the stored bytes of {digest} cannot be served: {error.message}; upload the same file again"
            ) from error

    budgets = Budgets(
        deltas=settings.delta_cache_bytes,
        plans=settings.plan_cache_bytes,
        kv=settings.kv_bytes,
        prefixes=settings.prefix_bytes,
    )
    limits = Limits(settings.max_running, settings.max_step_tokens, settings.max_waiting)
    return Engine(backbone, load, budgets=budgets, limits=limits, check_every=settings.check_seconds)


def serve(settings: Settings) -> None:
    """Blocks until SIGINT or SIGTERM. Raises InputError, BackboneError, CannotListen, WrongBase, StoreUnavailable, or
    NotFound for a delta to preload, before it listens.
    """
    check_closed(settings)
    with (
        logs.configured(settings.log_format, settings.log_level),
        _bind(settings) as listener,
    ):  # before the base is loaded, which can take minutes
        backbone = Backbone.load(settings.base, task=settings.task, dtype=settings.dtype, device=settings.device)
        hub = open_hub(settings, backbone.name)
        try:
            for name in check_store(hub, backbone):
                logger.warning("the bytes of %r are not in the blob store: upload it again", name)
            with closing(open_engine(settings, backbone, hub)) as engine:
                preload(engine, hub, settings.preloaded)
                _answer(settings, engine, hub, listener)
        finally:
            hub.close()


def _answer(settings: Settings, engine: Engine, hub: Hub, listener: socket.socket) -> None:
    with closing(open_queue(settings)) as queue, _working(settings, queue), tracing() as traces:
        app = create_app(settings, engine, hub, queue, traces)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=END_S,
        )
        _listen(_Server(config, engine, app.state.stopping), listener)


@contextmanager
def _working(settings: Settings, queue: JobQueue) -> Iterator[None]:
    workers = Workers(settings, queue)
    workers.start()
    try:
        yield
    finally:
        workers.stop()


class _Server(uvicorn.Server):
    """Told to end, it goes on listening, so that probes hear that it is not ready, until no request is under way or
    `DRAIN_S` are over. Told again, it does not wait.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, stopping: Event) -> None:
        super().__init__(config)
        self.engine, self.stopping = engine, stopping
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
            self.engine.drain()
            self.stopping.set()  # streams of events, which end no other way
        if self.should_exit or not self.server_state.tasks or time.monotonic() > self._deadline:
            self.engine.stop()
            self.should_exit = True


def _listen(server: _Server, listener: socket.socket) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # For the moments before and after uvicorn's own handlers: it raises the signal that stopped it once more when it
    # has shut down, and the default handlers would kill the process before it has tidied up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    backbone = server.engine.backbone
    listener.listen()  # before it is announced: who connects at once waits for uvicorn instead of being refused
    host, port = listener.getsockname()[:2]
    logger.info("patchbay serves %s (%s) on http://%s:%s", backbone.name, backbone.task.value, host, port)
    server.run(sockets=[listener])


def _bind(settings: Settings) -> socket.socket:
    """Bound before the base is loaded: a taken port is said at once, and `--port 0` can be announced."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}; choose another --port",
            param="port",
        ) from error
    return listener
