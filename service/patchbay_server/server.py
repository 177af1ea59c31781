"""One process: load the base, open the stores, listen."""

from __future__ import annotations

import socket
import sys

import uvicorn

from patchbay.backbone import Backbone
from patchbay.delta import Delta, read_delta
from patchbay.engine.engine import Engine
from patchbay.merge import METHODS
from patchbay.store.filesystem import FileBlobs
from patchbay.store.hub import Hub
from patchbay_server.app import create_app
from patchbay_server.resolve import BASE
from patchbay_server.settings import Settings
from patchbay_server.stores.urls import open_catalog


def open_hub(settings: Settings, base_name: str) -> Hub:
    """The store that the settings name. Raises StoreUnavailable."""
    settings.store.mkdir(parents=True, exist_ok=True)
    reserved = frozenset({BASE, base_name, *METHODS})
    return Hub(open_catalog(settings.catalog_url), FileBlobs(settings.store / "blobs"), reserved)


def open_engine(settings: Settings, backbone: Backbone, hub: Hub) -> Engine:
    """An engine that takes its deltas from the store. Blobs were checked when they came, and are checked again."""

    def load(digest: str) -> Delta:
        return read_delta(hub.open_blob(digest), backbone.specs, backbone.fingerprint)

    return Engine(backbone, load, delta_bytes=settings.delta_cache_bytes)


def serve(settings: Settings) -> None:
    """Blocks until SIGINT or SIGTERM. Raises BackboneError or StoreUnavailable before it listens."""
    backbone = Backbone.load(settings.base, task=settings.task, dtype=settings.dtype, device=settings.device)
    hub = open_hub(settings, backbone.name)
    app = create_app(settings, open_engine(settings, backbone, hub), hub)
    listener = _bind(settings)
    host, port = listener.getsockname()[:2]
    print(
        f"patchbay serves {backbone.name} ({backbone.task.value}) on http://{host}:{port}", file=sys.stderr, flush=True
    )
    try:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
    finally:
        hub.close()


def _bind(settings: Settings) -> socket.socket:
    """Bound before the announcement, so that `--port 0` can be announced and a taken port is said plainly."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    return listener
