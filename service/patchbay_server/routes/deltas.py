"""Uploading, listing, switching and deleting deltas. Every upload under a name is a new version of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from patchbay.delta import read_delta
from patchbay.engine.engine import Engine
from patchbay.errors import DeltaTooLarge
from patchbay.models.heads import check_head
from patchbay.store.base import DeltaRecord, Digest
from patchbay.store.hub import Upload
from patchbay.store.keys import Scope
from patchbay_server.access import needs
from patchbay_server.answer_schemas import DeletedDeltas, Delta, Deltas, DeltaVersions
from patchbay_server.bodies import GONE, JsonRoute
from patchbay_server.deps import EngineDep, HubDep, MetricsDep, SettingsDep, TenantDep
from patchbay_server.openapi import OCTETS, link, octets
from patchbay_server.pins import forget, split
from patchbay_server.receiving import check_content, content_digest, content_length, receive
from patchbay_server.records import summarise, to_json
from patchbay_server.residents import resident
from patchbay_server.schemas import CurrentRequest, PublishRequest
from patchbay_server.uses import check_unused

NAME, VERSION = "$response.body#/name", "$response.body#/version"
EXACTLY = f"{{{NAME}}}@{{{VERSION}}}"  # the bare name may mean another one, or none: not every upload is activated
LINKS = {
    "get": link("get", "/v1/deltas/{delta}", delta=EXACTLY),
    "file": link("get", "/v1/deltas/{delta}/file", delta=EXACTLY),
    "activate": link("put", "/v1/deltas/{name}/current", {"version": VERSION}, name=NAME),
    "pin": link("post", "/v1/deltas/{delta}/pin", delta=EXACTLY),
    "unpin": link("post", "/v1/deltas/{delta}/unpin", delta=EXACTLY),
    "delete": link("delete", "/v1/deltas/{delta}", delta=EXACTLY),
    "model": link("get", "/v1/models/{name}", name=EXACTLY),
    "merge": link("post", "/v1/merges:preview", {"recipe": EXACTLY}),
}
router = APIRouter(prefix="/v1/deltas", tags=["deltas"], route_class=JsonRoute)
# Checking decodes the whole delta: two at a time bound the memory that uploads can take.
_checks = anyio.CapacityLimiter(2)


@router.post(
    "",
    status_code=201,
    responses={
        200: {"description": "These bytes are already a version of this name.", "model": Delta, "links": LINKS},
        201: {"model": Delta, "links": LINKS},
    },
    openapi_extra=octets("A delta file."),
)
@needs(Scope.WRITE, 409, 413, 415, 422, 507)
async def upload_delta(
    request: Request,
    response: Response,
    engine: EngineDep,
    hub: HubDep,
    metrics: MetricsDep,
    settings: SettingsDep,
    tenant: TenantDep,
    name: Annotated[str, Query(max_length=200)],
    activate: bool = True,
) -> dict[str, Any]:
    """The raw bytes of a delta file as body. Checked as a whole before anything of it becomes visible."""
    hub.check_name(name)
    promised = content_digest(request)
    _check_size(content_length(request), settings.max_upload_bytes)
    with hub.begin_upload(settings.max_upload_bytes) as upload:
        try:
            await receive(request, upload.write)
        except ClientDisconnect:
            response.status_code = GONE
            return {}  # nobody is left to answer; leaving the context removes the partial file
        summary = await anyio.to_thread.run_sync(_check_upload, engine, upload, promised, limiter=_checks)
        record, created = await anyio.to_thread.run_sync(hub.commit, upload, tenant, name, summary, activate)
    metrics.upload_bytes.inc(record.size if created else 0)
    response.status_code = 201 if created else 200
    return _shown(record, engine)


@router.put(
    "/{delta}",
    responses={
        200: {"description": "These bytes are already a version of this name.", "model": Delta, "links": LINKS},
        201: {"description": "A new version.", "model": Delta, "links": LINKS},
    },
)
@needs(Scope.WRITE, 400, 404, 409, 413, 415, 422, 507)
async def publish_blob(
    delta: str,
    body: PublishRequest,
    response: Response,
    engine: EngineDep,
    hub: HubDep,
    metrics: MetricsDep,
    settings: SettingsDep,
    tenant: TenantDep,
) -> dict[str, Any]:
    """Makes a delta of bytes that the tenant has brought as a blob, or has as a delta of another name."""

    def publish() -> tuple[DeltaRecord, bool]:
        blob = hub.blob_for(tenant, delta, body.blob)
        size = hub.blobs.size(body.blob)
        _check_size(size, settings.max_upload_bytes)
        return hub.publish(tenant, delta, body.blob, _check(engine, blob, size), body.activate)

    record, created = await anyio.to_thread.run_sync(publish, limiter=_checks)
    metrics.upload_bytes.inc(record.size if created else 0)
    response.status_code = 201 if created else 200
    return _shown(record, engine)


@router.get("", responses={200: {"model": Deltas}})
@needs(Scope.READ)
def list_deltas(engine: EngineDep, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """The current version of every delta, by name."""
    return {"data": [_shown(record, engine) for record in hub.catalog.list_deltas(tenant)]}


@router.get("/{delta}", responses={200: {"model": DeltaVersions}})
@needs(Scope.READ, 404, 422)
def get_delta(delta: str, engine: EngineDep, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """One delta, `name` (its current version) or `name@version`, with all its versions."""
    name, version = split(delta)
    record = hub.catalog.get_delta(tenant, name, version)
    versions = [_shown(other, engine) for other in hub.catalog.list_versions(tenant, name)]
    return _shown(record, engine) | {"versions": versions}


@router.get("/{delta}/file", response_class=FileResponse, responses={200: {"content": {OCTETS: {}}}})
@needs(Scope.READ, 404, 422)
def get_file(delta: str, hub: HubDep, tenant: TenantDep) -> FileResponse:
    """The bytes that were uploaded."""
    record = hub.catalog.get_delta(tenant, *split(delta))
    return FileResponse(
        hub.open_blob(record.digest),
        media_type="application/octet-stream",
        filename=f"{record.name}-{record.version}.safetensors",
        headers={"ETag": f'"{record.digest}"'},
    )


@router.put("/{name}/current", responses={200: {"model": Delta}})
@needs(Scope.WRITE, 400, 404, 409, 413, 422, 507)
def set_current(name: str, body: CurrentRequest, engine: EngineDep, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """Makes a version the one that the bare name means: roll-out and rollback."""
    return _shown(hub.catalog.set_current(tenant, name, body.version, body.expected), engine)


@router.post("/{delta}/pin", responses={200: {"model": Delta}})
@needs(Scope.ADMIN, 404, 409, 422)
def pin_delta(delta: str, engine: EngineDep, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """Loads a version, `name` (the current one) or `name@version`, and keeps it in memory until it is unpinned or
    deleted, or the server ends.
    """
    record = hub.catalog.get_delta(tenant, *split(delta))
    engine.recipes.pin(resident(tenant, record.digest))
    return _shown(record, engine)


@router.post("/{delta}/unpin", responses={200: {"model": Delta}})
@needs(Scope.ADMIN, 404, 422)
def unpin_delta(delta: str, engine: EngineDep, hub: HubDep, tenant: TenantDep) -> dict[str, Any]:
    """Leaves it to the cache, like any other."""
    record = hub.catalog.get_delta(tenant, *split(delta))
    engine.recipes.unpin(resident(tenant, record.digest))
    return _shown(record, engine)


@router.delete("/{delta}", responses={200: {"model": DeletedDeltas}})
@needs(Scope.WRITE, 404, 409, 422, 507)
def delete_delta(
    delta: str,
    engine: EngineDep,
    hub: HubDep,
    metrics: MetricsDep,
    tenant: TenantDep,
    force: Annotated[bool, Query()] = False,
) -> dict[str, Any]:
    """Deletes a version, or all of them with the bare name; what saved merges are made of only with `force`. Requests
    under way keep what they have; what was pinned is pinned no more.
    """
    name, version = split(delta)
    if not force:
        check_unused(hub, tenant, name, version)
    deleted = hub.catalog.delete_delta(tenant, name, version)
    answer = {"deleted": [_shown(record, engine) for record in deleted]}
    forget(engine, hub, tenant, deleted)
    metrics.forget(tenant, name, version)
    return answer


def _shown(record: DeltaRecord, engine: Engine) -> dict[str, Any]:
    deltas, name = engine.recipes.deltas, resident(record.tenant, record.digest)
    found = deltas.peek(name)
    return to_json(record) | {
        "pinned": deltas.is_pinned(name),
        "resident_bytes": found.num_bytes if found else None,
    }


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise DeltaTooLarge(f"the upload is over {most} bytes", param="file")


def _check_upload(engine: Engine, upload: Upload, promised: Digest | None) -> str:
    check_content(promised, upload.finish())
    return _check(engine, upload.path, upload.size)


def _check(engine: Engine, file: Path, size: int) -> str:
    """Everything that can be wrong with the file is found here; then what the catalog shows of it."""
    backbone = engine.backbone
    delta = read_delta(file, backbone.specs, backbone.fingerprint, read_base=backbone.stored)
    check_head(backbone, delta)
    return json.dumps(summarise(delta.manifest, size, backbone.num_parameters))
