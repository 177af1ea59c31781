"""The ASGI app over a ready engine and store. Loads nothing itself, so that tests and other servers can bring their
own.
"""

from __future__ import annotations

from threading import Event

from fastapi import FastAPI

import patchbay
from patchbay.engine.engine import Engine
from patchbay.store.hub import Hub
from patchbay_server import errors
from patchbay_server.auth import RequireKey
from patchbay_server.jobs.base import JobQueue
from patchbay_server.metrics import Metrics
from patchbay_server.middleware import BodyLimit, Measure
from patchbay_server.recordings import READERS, Turns
from patchbay_server.routes import ROUTERS
from patchbay_server.settings import Settings
from patchbay_server.threads import Threads


def create_app(settings: Settings, engine: Engine, hub: Hub, queue: JobQueue) -> FastAPI:
    """Every route of API.md. `/healthz`, `/readyz` and `/openapi.json` are open; all others ask for the key, where
    there is one.
    """
    app = FastAPI(
        title="Patchbay",
        version=patchbay.__version__,
        summary="Many fine-tunes on one resident model.",
        docs_url=None,  # FastAPI's pages load their scripts from another site
        redoc_url=None,
    )
    app.state.settings, app.state.engine = settings, engine
    app.state.queue, app.state.stopping = queue, Event()
    app.state.inference, app.state.turns = Threads(settings.max_waiting), Turns(READERS)
    app.state.metrics = metrics = Metrics(engine, hub, queue)
    app.state.hub = metrics.store.watched(hub)
    engine.observe(metrics.of_engine)
    errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_recording_bytes=settings.max_recording_bytes)
    if settings.api_key is not None:
        app.add_middleware(RequireKey, key=settings.api_key, failures=metrics.auth_failures)
    app.add_middleware(Measure, metrics=metrics)
    for router in ROUTERS:
        app.include_router(router)
    return app
