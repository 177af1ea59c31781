"""One file a resource. Routes translate: HTTP in, one call of the engine or the store, HTTP out."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from patchbay_server.routes import (
    base,
    blobs,
    chat,
    completions,
    compressions,
    deltas,
    eeg,
    embeddings,
    health,
    jobs,
    merges,
    models,
    predictions,
    presigned,
    preview,
    transfers,
    uploads,
)

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    base.router,
    models.router,
    deltas.router,
    merges.router,
    preview.router,
    predictions.router,
    embeddings.router,
    eeg.router,
    completions.router,
    chat.router,
    blobs.router,
    uploads.router,
    presigned.router,
    compressions.router,
    jobs.router,
    transfers.router,
)
_ALL = tuple(route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute))


def route_of(scope: Scope) -> APIRoute | None:
    """The route that would answer, or refuse the method, as a server finds it by itself; None where there is none."""
    found = [(route, route.matches(scope)[0]) for route in _ALL]
    whole = [route for route, match in found if match is Match.FULL]
    return next(iter([*whole, *(route for route, match in found if match is Match.PARTIAL)]), None)
