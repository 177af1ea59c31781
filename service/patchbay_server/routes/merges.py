"""Saved merges: recipes with a name. They cost a row, not a model."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request

from patchbay.merge import Recipe, parse
from patchbay.store.base import MergeRecord
from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.audit import about
from patchbay_server.deps import EngineDep, HubDep, MetricsDep, TenantDep
from patchbay_server.documents import MERGEKIT, MergekitRoute
from patchbay_server.resolve import pin_recipe
from patchbay_server.schemas import MergeRequest

router = APIRouter(prefix="/v1/merges", tags=["merges"], route_class=MergekitRoute)


@router.post("", status_code=201, openapi_extra=MERGEKIT)
@needs(Scope.WRITE)
def save_merge(
    request: Request, body: MergeRequest, engine: EngineDep, hub: HubDep, tenant: TenantDep
) -> dict[str, Any]:
    """Saves a recipe under a name. It is planned once before, so that a recipe that cannot be served is not saved."""
    about(request, body.name)
    hub.check_name(body.name)
    recipe = body.recipe if isinstance(body.recipe, Recipe) else parse(body.recipe)
    stored, resolved = pin_recipe(hub, tenant, recipe, follow=body.follow)
    assert resolved.canonical is not None, "a recipe is never the base alone"
    engine.check(resolved.canonical)
    return _to_json(hub.save_merge(tenant, body.name, stored))


@router.get("")
@needs(Scope.READ)
def list_merges(hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """Every saved merge, by name."""
    return {"data": [_to_json(record) for record in hub.catalog.list_merges(tenant)]}


@router.get("/{name}")
@needs(Scope.READ)
def get_merge(name: str, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """One saved merge with its recipe and the digests it is pinned to."""
    return _to_json(hub.catalog.get_merge(tenant, name))


@router.delete("/{name}")
@needs(Scope.WRITE)
def delete_merge(name: str, hub: HubDep, metrics: MetricsDep, tenant: TenantDep) -> dict[str, Any]:
    """Deletes the name; its deltas stay."""
    record = hub.catalog.get_merge(tenant, name)
    hub.catalog.delete_merge(tenant, name)
    metrics.forget(tenant, name)
    return {"deleted": [_to_json(record)]}


def _to_json(record: MergeRecord) -> dict[str, Any]:
    stored = json.loads(record.recipe)
    recipe = Recipe.model_validate(stored["recipe"])
    return {
        "name": record.name,
        "recipe": stored["recipe"],
        "expression": recipe.describe(),
        "follow": stored["follow"],
        "deltas": [{"term": term, **pin} for term, pin in stored["pins"].items()],
        "created_at": record.created_at,
    }
