"""Saved merges: recipes with a name. They cost a row, not a model."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request

from patchbay.merge import Recipe, parse
from patchbay.store.base import MergeRecord
from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.answer_schemas import DeletedMerges, Merge, Merges
from patchbay_server.audit import about
from patchbay_server.deps import EngineDep, HubDep, MetricsDep, TenantDep
from patchbay_server.documents import MERGEKIT, MergekitRoute
from patchbay_server.openapi import link
from patchbay_server.resolve import pin_recipe
from patchbay_server.schemas import MergeRequest

LINKS = {method: link(method, "/v1/merges/{name}", name="$response.body#/name") for method in ("get", "delete")}
router = APIRouter(prefix="/v1/merges", tags=["merges"], route_class=MergekitRoute)


@router.post("", status_code=201, responses={201: {"model": Merge, "links": LINKS}}, openapi_extra=MERGEKIT)
@needs(Scope.WRITE, 400, 404, 409, 413, 422, 507)
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


@router.get("", responses={200: {"model": Merges}})
@needs(Scope.READ)
def list_merges(hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """Every saved merge, by name."""
    return {"data": [_to_json(record) for record in hub.catalog.list_merges(tenant)]}


@router.get("/{name}", responses={200: {"model": Merge}})
@needs(Scope.READ, 404, 422)
def get_merge(name: str, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """One saved merge with its recipe and the digests it is pinned to."""
    return _to_json(hub.catalog.get_merge(tenant, name))


@router.delete("/{name}", responses={200: {"model": DeletedMerges}})
@needs(Scope.WRITE, 404, 422, 507)
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
