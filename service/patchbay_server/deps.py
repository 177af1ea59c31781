"""What routes are given: the engine, the store, the tenant. All of it hangs on the app, none of it is global.

The functions are coroutines because FastAPI runs plain ones in its thread pool, and a probe must not wait for a thread.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from patchbay.engine.engine import Engine
from patchbay.engine.patience import Patience
from patchbay.engine.recipes import Path, Ready
from patchbay.errors import InvalidRecipe
from patchbay.merge import Recipe
from patchbay.store.hub import Hub
from patchbay_server.callers import Caller
from patchbay_server.jobs.base import JobQueue
from patchbay_server.limits import Meter, Settle
from patchbay_server.logs import note
from patchbay_server.metrics import Metrics
from patchbay_server.resolve import Resolved, resolve
from patchbay_server.schemas import ModelRequest
from patchbay_server.settings import Settings

if TYPE_CHECKING:
    from patchbay_server.tracing import Tracing


async def get_engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


async def get_hub(request: Request) -> Hub:
    hub: Hub = request.app.state.hub
    return hub


async def get_queue(request: Request) -> JobQueue:
    queue: JobQueue = request.app.state.queue
    return queue


async def get_metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def get_settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def get_caller(request: Request) -> Caller:
    """Whose key the request came with."""
    caller: Caller = request.state.caller
    return caller


async def get_tenant(request: Request) -> str:
    """That the key belongs to: every call of the catalog and of the queue is given it."""
    return (await get_caller(request)).tenant


EngineDep = Annotated[Engine, Depends(get_engine)]
HubDep = Annotated[Hub, Depends(get_hub)]
QueueDep = Annotated[JobQueue, Depends(get_queue)]
MetricsDep = Annotated[Metrics, Depends(get_metrics)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
CallerDep = Annotated[Caller, Depends(get_caller)]
TenantDep = Annotated[str, Depends(get_tenant)]


class Resolver:
    """Resolves the model of one request and counts it and its tokens."""

    def __init__(
        self,
        engine: Engine,
        hub: Hub,
        metrics: Metrics,
        caller: Caller,
        meter: Meter,
        tracing: Tracing | None,
    ) -> None:
        self.engine, self.hub, self.metrics, self.tenant = engine, hub, metrics, caller.tenant
        self._limits, self._meter, self.tracing = caller.limits, meter, tracing

    def __call__(self, body: ModelRequest, patience: Patience) -> tuple[Resolved, Ready]:
        """What the model means, made ready to run."""
        resolved = resolve(self.hub, self.tenant, self.engine.backbone.name, body.model, body.patch, body.head)
        wanted = Path(body.path) if body.path else None
        ready = self.engine.prepare(resolved.canonical, wanted, patience, salt=self.tenant)
        self.metrics.asked(resolved, ready)
        note(model=resolved.shown, path=ready.path)
        if self.tracing is not None:
            self.tracing.asked(resolved.shown, ready, resolved.canonical)
        return resolved, ready

    def take(self, tokens: int) -> Settle:
        """The caller's tenant takes so many tokens; what gives back those that were not used. Raises LimitReached,
        OverLimit.
        """
        return partial(self._meter.settle, self._meter.take(self.tenant, self._limits, tokens))

    def recipe(self, recipe: Recipe | str) -> Resolved:
        """A recipe in full, or an expression, or the name of a saved one: never the base."""
        base = self.engine.backbone.name
        if isinstance(recipe, Recipe):
            return resolve(self.hub, self.tenant, base, base, recipe)
        resolved = resolve(self.hub, self.tenant, base, recipe)
        if resolved.recipe is None:
            raise InvalidRecipe(f"{recipe!r} is the base, which is merged of nothing", param="recipe")
        return resolved


async def get_resolver(
    request: Request, engine: EngineDep, hub: HubDep, metrics: MetricsDep, caller: CallerDep
) -> Resolver:
    state = request.app.state
    return Resolver(engine, hub, metrics, caller, state.meter, state.tracing)


ResolverDep = Annotated[Resolver, Depends(get_resolver)]
