"""Is the process alive, can it answer, and how is it doing."""

from __future__ import annotations

import anyio
import anyio.to_thread
from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from patchbay.errors import StoreUnavailable
from patchbay.store.base import Catalog
from patchbay.store.keys import Scope
from patchbay_server.access import ScopedRoute, needs
from patchbay_server.answer_schemas import Health, Readiness
from patchbay_server.deps import EngineDep, HubDep, MetricsDep

router = APIRouter(tags=["health"], route_class=ScopedRoute)
# Its own thread: a probe must not wait behind the requests that fill the common pool.
_probe_threads = anyio.CapacityLimiter(2)


@router.get("/healthz", responses={200: {"model": Health}})
@needs(None)
async def healthz() -> dict[str, str]:
    """The process runs; asks nothing else."""
    return {"status": "ok"}


@router.get("/readyz", responses={200: {"model": Readiness}})
@needs(None, 500, 503)
async def readyz(engine: EngineDep, hub: HubDep) -> dict[str, str]:
    """The base is loaded and sound, the engine runs, and the catalog answers within two seconds; 5xx otherwise.

    A catalog that remembers may be `away`: all servers ask the same one, and if its loss made none of them ready,
    nobody would be sent what they still answer.
    """
    engine.check_health()
    catalog = "answers"
    try:
        await _ping(hub.catalog)
    except StoreUnavailable:
        if not hub.catalog.remembers:
            raise
        catalog = "away"
    return {"status": "ready", "path": engine.path.value, "catalog": catalog}


async def _ping(catalog: Catalog) -> None:
    try:
        with anyio.fail_after(2):
            await anyio.to_thread.run_sync(catalog.ping, limiter=_probe_threads, abandon_on_cancel=True)
    except TimeoutError as error:
        raise StoreUnavailable.plain("the catalog does not answer within two seconds") from error


@router.get("/metrics", response_class=PlainTextResponse)
@needs(Scope.ADMIN)
def metrics(metrics: MetricsDep) -> Response:
    """Prometheus' text format."""
    return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
