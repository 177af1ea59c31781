"""Large parts on their way in: bytes under the name of their own hash. Jobs name them; nothing gives them out again."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from patchbay.store.hub import Hub, Upload
from patchbay.store.keys import Scope
from patchbay.store.refusals import no_blob
from patchbay_server.access import ScopedRoute, needs
from patchbay_server.answer_schemas import Blob
from patchbay_server.bodies import GONE
from patchbay_server.deps import HubDep, MetricsDep, SettingsDep, TenantDep
from patchbay_server.errors import DigestMismatch
from patchbay_server.openapi import link, octets
from patchbay_server.receiving import check_content, content_digest, content_length, receive, writes
from patchbay_server.schemas import DigestPath

router = APIRouter(prefix="/v1/blobs", tags=["blobs"], route_class=ScopedRoute)
LINKS = {"head": link("head", "/v1/blobs/{digest}", digest="$response.body#/digest")}


@router.put(
    "/{digest}",
    status_code=201,
    responses={
        200: {"description": "The tenant has these bytes already.", "model": Blob},
        201: {"model": Blob, "links": LINKS},
    },
    openapi_extra=octets("The bytes that hash to the digest."),
)
@needs(Scope.WRITE, 413, 422, 507)
async def put_blob(
    digest: DigestPath,
    request: Request,
    response: Response,
    hub: HubDep,
    metrics: MetricsDep,
    settings: SettingsDep,
    tenant: TenantDep,
) -> dict[str, Any]:
    """The raw bytes as body. Their sha256 is taken while they come; other bytes than promised are not kept."""
    promised, most = content_digest(request), settings.max_blob_bytes
    _check_size(content_length(request), most)

    def write(piece: bytes) -> None:
        _check_size(upload.size + len(piece), most)
        upload.write(piece)

    with hub.begin_upload(most) as upload:
        try:
            await receive(request, write)
        except ClientDisconnect:
            response.status_code = GONE
            return {}  # nobody is left to answer; leaving the context removes the partial file
        created = await anyio.to_thread.run_sync(_keep, hub, upload, tenant, digest, promised, limiter=writes)
    metrics.blob_bytes.inc(upload.size if created else 0)
    response.status_code = 201 if created else 200
    return {"digest": digest, "size": upload.size}


@router.head("/{digest}", response_class=Response)
@needs(Scope.WRITE, 404, 422)
def head_blob(digest: DigestPath, hub: HubDep, tenant: TenantDep) -> Response:
    """200 where the tenant has brought the blob, 404 where it has not."""
    if not hub.has_blob(tenant, digest):
        raise no_blob(digest)
    size = hub.blobs.size(digest)
    return Response(headers={"Content-Length": str(size), "ETag": f'"{digest}"'})


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise HTTPException(413, f"the blob is over {max_bytes} bytes: split it, or raise PATCHBAY_MAX_BLOB_BYTES")


def _keep(hub: Hub, upload: Upload, tenant: str, digest: str, promised: str | None) -> bool:
    """False where the tenant had it already."""
    found = upload.finish()
    check_content(promised, found)
    if found != digest:
        raise DigestMismatch(f"the bytes are {found}, not {digest}: nothing was kept, send them again", param="digest")
    return hub.keep_blob(upload, tenant)
