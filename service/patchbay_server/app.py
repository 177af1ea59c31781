"""The ASGI app over a ready engine and store. Loads nothing itself, so that tests and other servers can bring their
own.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from threading import Event
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

import patchbay
from patchbay.engine.engine import Engine
from patchbay.store.hub import Hub
from patchbay_server import errors
from patchbay_server.access_log import PROBES, Access
from patchbay_server.audit import Audited
from patchbay_server.auth import Authenticate
from patchbay_server.callers import Keyring
from patchbay_server.jobs.base import JobQueue
from patchbay_server.limits import Meter
from patchbay_server.metrics import Metrics
from patchbay_server.middleware import BodyLimit
from patchbay_server.observers import Both
from patchbay_server.openapi import Documented
from patchbay_server.recordings import READERS, Turns
from patchbay_server.routes import ROUTERS
from patchbay_server.settings import Settings
from patchbay_server.threads import Threads

if TYPE_CHECKING:
    from patchbay_server.tracing import Tracing


def create_app(
    settings: Settings, engine: Engine, hub: Hub, queue: JobQueue, tracing: Tracing | None = None
) -> FastAPI:
    """Every route of API.md. `/healthz`, `/readyz` and `/openapi.json` are open; all others ask for a key, where
    there is one. Spans go where `tracing` says.
    """
    app = Documented(
        title="Patchbay",
        version=patchbay.__version__,
        summary="Many fine-tunes on one resident model.",
        docs_url=None,  # FastAPI's pages load their scripts from another site
        redoc_url=None,
        telemetry=_telemetry(tracing),
    )
    app.state.settings, app.state.engine = settings, engine
    app.state.queue, app.state.stopping = queue, Event()
    app.state.inference, app.state.turns = Threads(settings.max_waiting), Turns(READERS)
    app.state.meter = Meter()
    app.state.metrics = metrics = Metrics(engine, hub, queue)
    app.state.hub = metrics.store.watched(hub)
    app.state.tracing = tracing
    engine.observe(metrics.of_engine if tracing is None else Both(metrics.of_engine, tracing))
    errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_recording_bytes=settings.max_recording_bytes)
    app.add_middleware(Audited, log=hub.catalog.audit)
    keyring = Keyring(hub.catalog, settings.api_key)
    app.add_middleware(Authenticate, keyring=keyring, meter=app.state.meter, failures=metrics.auth_failures)
    app.add_middleware(Access, metrics=metrics.requests)
    for router in ROUTERS:
        app.include_router(router)
    return app


def _telemetry(tracing: Tracing | None) -> TelemetryConfig:
    """Of FastAPI's own: a span a request, but for probes, which would be most of all traces and say nothing. It would
    put messages of exceptions into logs of OpenTelemetry.
    """
    off: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    if tracing is None:
        return off
    return {
        **off,
        "tracing": True,
        "operation_spans": False,
        "tracer_provider": tracing.provider,
        "exclude": _is_probe,
    }


def _is_probe(scope: MutableMapping[str, Any]) -> bool:
    return scope.get("path") in PROBES
