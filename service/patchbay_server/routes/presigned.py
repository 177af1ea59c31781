"""Uploads past the server: a URL of the object store to PUT the bytes to, and a blob made of them when they are there.

Knows no object store and no formats.
"""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from patchbay.store.keys import Scope
from patchbay.store.presigned import SIGNED_S
from patchbay.store.presigned import Presigned as Uploads
from patchbay_server.access import needs
from patchbay_server.answer_schemas import Blob, Presigned
from patchbay_server.audit import about
from patchbay_server.bodies import JsonRoute
from patchbay_server.deps import HubDep, MetricsDep, SettingsDep, TenantDep
from patchbay_server.errors import DigestMismatch
from patchbay_server.openapi import link
from patchbay_server.receiving import writes
from patchbay_server.schemas import DigestPath, PresignRequest

router = APIRouter(prefix="/v1", tags=["blobs"], route_class=JsonRoute)
LINKS = {"finish": link("post", "/v1/uploads/{digest}/finish", digest="$response.body#/blob")}


@router.post(
    "/uploads:presign",
    status_code=201,
    responses={
        200: {"description": "The tenant has the bytes already.", "model": Presigned},
        201: {"model": Presigned, "links": LINKS},
    },
)
@needs(Scope.WRITE, 400, 409, 413, 415, 422, 507)
def presign(
    body: PresignRequest, request: Request, response: Response, hub: HubDep, settings: SettingsDep, tenant: TenantDep
) -> dict[str, Any]:
    """A URL that takes the bytes for an hour, and the headers that go with them."""
    about(request, body.blob)
    if body.length > settings.max_blob_bytes:
        raise HTTPException(413, f"the blob is over {settings.max_blob_bytes} bytes: raise PATCHBAY_MAX_BLOB_BYTES")
    signed = Uploads(hub).begin(tenant, body.blob, body.length)
    if signed is None:
        response.status_code = 200
        return {"blob": body.blob, "url": None, "headers": {}, "expires_in": None}
    return {"blob": body.blob, "url": signed.url, "headers": dict(signed.headers), "expires_in": SIGNED_S}


@router.post(
    "/uploads/{digest}/finish",
    status_code=201,
    responses={200: {"description": "The tenant has the bytes already.", "model": Blob}, 201: {"model": Blob}},
)
@needs(Scope.WRITE, 404, 409, 422, 507)
async def finish(
    digest: DigestPath, response: Response, hub: HubDep, metrics: MetricsDep, tenant: TenantDep
) -> dict[str, Any]:
    """Reads back what was put, and makes a blob of it if it is what was promised."""
    found, size, created = await anyio.to_thread.run_sync(Uploads(hub).finish, tenant, digest, limiter=writes)
    if found != digest:
        raise DigestMismatch(f"the bytes are {found}, not {digest}: nothing was kept, begin again", param="digest")
    metrics.blob_bytes.inc(size if created else 0)
    response.status_code = 201 if created else 200
    return {"digest": digest, "size": size}
