"""Everything that `model` can name, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from patchbay.errors import NotFound
from patchbay.store.keys import Scope
from patchbay_server.access import ScopedRoute, needs
from patchbay_server.answer_schemas import Model, Models
from patchbay_server.deps import EngineDep, HubDep, TenantDep
from patchbay_server.pins import split

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=ScopedRoute)


@router.get("", responses={200: {"model": Models}})
@needs(Scope.READ)
def list_models(engine: EngineDep, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """The base, then deltas and saved merges by name."""
    base = engine.backbone.name
    data = [_model(base, 0, None, "base")]
    data += [_model(r.name, r.created_at, base, "delta") for r in hub.catalog.list_deltas(tenant)]
    data += [_model(r.name, r.created_at, base, "merge") for r in hub.catalog.list_merges(tenant)]
    return {"object": "list", "data": data}


@router.get("/{name:path}", responses={200: {"model": Model}})
@needs(Scope.READ, 404, 422)
def get_model(name: str, engine: EngineDep, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """One model by its name, or a delta's version by `name@version`; expressions are not listed."""
    if "@" in name:
        record = hub.catalog.get_delta(tenant, *split(name))
        return _model(name, record.created_at, engine.backbone.name, "delta")
    models = {model["id"]: model for model in list_models(engine, hub, tenant)["data"]}
    if name not in models:
        raise NotFound.named("model", name, models, param="model")
    found: dict[str, Any] = models[name]
    return found


def _model(name: str, created: float, parent: str | None, kind: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(created),
        "owned_by": "patchbay",
        "parent": parent,
        "kind": kind,
    }
