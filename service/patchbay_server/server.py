"""One process: load the base, open the stores, listen. With several replicas, one process that starts the others."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from patchbay.backbone import Backbone
from patchbay.delta import Delta, read_delta
from patchbay.engine.engine import Budgets, Engine
from patchbay.engine.scheduler import Limits
from patchbay.errors import DeltaError, InputError, InvalidName, NotFound, StoreUnavailable, WrongBase
from patchbay.merge import METHODS
from patchbay.store.base import DEFAULT_TENANT, DeltaRecord
from patchbay.store.hub import Hub, tenants_of
from patchbay_server import logs
from patchbay_server.app import create_app
from patchbay_server.jobs.opened import open_queue
from patchbay_server.jobs.supervisor import working
from patchbay_server.listen import Server, bind, listen
from patchbay_server.pins import preload
from patchbay_server.residents import digest_of
from patchbay_server.resolve import BASE
from patchbay_server.settings import Settings
from patchbay_server.stores.opened import open_store
from patchbay_server.stores.urls import open_catalog
from patchbay_server.traces import tracing

logger = logging.getLogger("patchbay_server")


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
                f"the stored bytes of {digest} cannot be served: {error.message}; upload the same file again",
                outside=f"the stored bytes of {digest} cannot be served: upload the same file again",
            ) from error

    budgets = Budgets(
        deltas=settings.delta_cache_bytes,
        plans=settings.plan_cache_bytes,
        kv=settings.kv_bytes,
        prefixes=settings.prefix_bytes,
    )
    limits = Limits(settings.max_running, settings.max_step_tokens, settings.max_waiting)
    return Engine(backbone, load, budgets=budgets, limits=limits, check_every=settings.check_seconds)


@contextmanager
def loaded(settings: Settings) -> Iterator[tuple[Engine, Hub]]:
    """The base in memory and the store, ready to answer. Raises BackboneError, WrongBase, StoreUnavailable, and
    NotFound for a delta to preload.
    """
    backbone = Backbone.load(settings.base, task=settings.task, dtype=settings.dtype, device=settings.device)
    with closing(open_hub(settings, backbone.name)) as hub:
        for name in check_store(hub, backbone):
            logger.warning("the bytes of %r are not in the blob store: upload it again", name)
        with closing(open_engine(settings, backbone, hub)) as engine:
            preload(engine, hub, settings.preloaded)
            yield engine, hub


def serve(settings: Settings) -> None:
    """Blocks until SIGINT or SIGTERM. Raises InputError, BackboneError, CannotListen, WrongBase, StoreUnavailable, or
    NotFound for a delta to preload, before it listens.
    """
    check_closed(settings)
    with (
        logs.configured(settings.log_format, settings.log_level),
        bind(settings.host, settings.port) as listener,
    ):  # before the base is loaded, which can take minutes
        if settings.replicas > 1:
            _serve_replicas(settings, listener)
            return
        with loaded(settings) as (engine, hub):
            _answer(settings, engine, hub, listener)


def _answer(settings: Settings, engine: Engine, hub: Hub, listener: socket.socket) -> None:
    with closing(open_queue(settings)) as queue, working(settings, queue), tracing() as traces:
        app = create_app(settings, engine, hub, queue, traces)
        stopping = app.state.stopping  # streams of events, which end no other way
        listen(Server(app, (engine.drain, stopping.set), engine.stop), listener, _about(engine.backbone))


def _about(backbone: Backbone) -> str:
    return f"{backbone.name} ({backbone.task.value})"


def _serve_replicas(settings: Settings, listener: socket.socket) -> None:
    try:
        from patchbay_server.replicas.local import serve_replicas  # noqa: PLC0415 - comes with an extra
    except ModuleNotFoundError as error:
        raise InputError("--replicas needs Ray: pip install 'patchbay[ray]'", param="replicas") from error
    serve_replicas(settings, listener)
