"""Uploads that break and go on: the core of tus 1.0 (creation, expiration, termination), each under its bytes' hash.

What is whole is a blob, as PUT would have made it. Knows no formats.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from email.utils import formatdate

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Send
from starlette.types import Scope as Connection

from patchbay.errors import InputError
from patchbay.store.base import Digest, is_digest
from patchbay.store.keys import Scope
from patchbay.store.partial import Partial
from patchbay.store.resumable import Resumable, State
from patchbay_server.access import ScopedRoute, needs
from patchbay_server.audit import about
from patchbay_server.bodies import GONE, content_type
from patchbay_server.deps import HubDep, MetricsDep, SettingsDep, TenantDep
from patchbay_server.errors import DigestMismatch, WrongOffset
from patchbay_server.openapi import header, octets
from patchbay_server.receiving import check_content, content_digest, content_length, receive, writes
from patchbay_server.schemas import DigestPath

TUS = "1.0.0"
PART = "application/offset+octet-stream"
MAX_DIGITS = 18


class TusRoute(ScopedRoute):
    """Every answer says which version of tus it speaks."""

    async def handle(self, scope: Connection, receive: Receive, send: Send) -> None:
        async def versioned(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"tus-resumable", TUS.encode())]
            await send(message)

        await super().handle(scope, receive, versioned)


async def _speaks(request: Request) -> None:
    """A client that names no version means this one."""
    if request.headers.get("tus-resumable", TUS) != TUS:
        raise HTTPException(412, f"this server speaks tus {TUS}", {"Tus-Version": TUS})


router = APIRouter(prefix="/v1/uploads", tags=["blobs"], route_class=TusRoute, dependencies=[Depends(_speaks)])
NUMBER = {"type": "integer", "minimum": 0, "maximum": 10**MAX_DIGITS - 1}
BEGINS = [header("Upload-Length", NUMBER), header("Upload-Metadata", {"type": "string"})]
CONTINUES = [header("Upload-Offset", NUMBER)]


@router.post("", status_code=201, response_class=Response, openapi_extra={"parameters": BEGINS})
@needs(Scope.WRITE, 409, 412, 413, 422, 507)
async def begin(request: Request, hub: HubDep, settings: SettingsDep, tenant: TenantDep) -> Response:
    """Without a body: `Upload-Length`, and in `Upload-Metadata` the `digest` that the whole will have."""
    digest, length = _promised_digest(request), _number(request, "Upload-Length")
    about(request, digest)
    if length > settings.max_blob_bytes:
        raise HTTPException(
            413,
            f"the upload is over {settings.max_blob_bytes} bytes: split it, or raise PATCHBAY_MAX_BLOB_BYTES",
            {"Tus-Max-Size": str(settings.max_blob_bytes)},
        )
    state = await anyio.to_thread.run_sync(Resumable(hub).begin, tenant, digest, length, limiter=writes)
    if length == 0 and state.expires_at is not None:  # no part will come
        await anyio.to_thread.run_sync(_finish_empty, Resumable(hub), tenant, digest, limiter=writes)
    return Response(status_code=201, headers=_headers(state) | {"Location": f"{router.prefix}/{digest}"})


@router.head("/{digest}", response_class=Response)
@needs(Scope.WRITE, 404, 412, 422)
def state_of(digest: DigestPath, hub: HubDep, tenant: TenantDep) -> Response:
    """`Upload-Offset`: where to go on."""
    state = Resumable(hub).state(tenant, digest)
    return Response(headers=_headers(state) | {"Cache-Control": "no-store"})


@router.patch(
    "/{digest}",
    status_code=204,
    openapi_extra={"parameters": CONTINUES, **octets("The bytes from the offset on.", PART)},
)
@needs(Scope.WRITE, 404, 409, 412, 413, 415, 422, 507)
async def append(digest: DigestPath, request: Request, hub: HubDep, metrics: MetricsDep, tenant: TenantDep) -> Response:
    """The body continues the upload at `Upload-Offset`. What came of it before a connection broke is kept."""
    if content_type(request) != PART:
        raise HTTPException(415, f"send the part with Content-Type: {PART}")
    at, promised = _number(request, "Upload-Offset"), content_digest(request)
    uploads = Resumable(hub)
    begun, partial = await anyio.to_thread.run_sync(uploads.open, tenant, digest, limiter=writes)
    with partial:
        if at != partial.offset:
            raise WrongOffset(partial.offset, at)
        if at + content_length(request) > partial.length:
            raise HTTPException(413, f"the upload has {partial.length} bytes, and this part goes beyond them")
        try:
            await _take(request, partial, promised)
        except ClientDisconnect:
            return Response(status_code=GONE)  # nobody is left to answer
        if partial.is_whole:
            await anyio.to_thread.run_sync(_finish, uploads, tenant, digest, partial, limiter=writes)
            metrics.blob_bytes.inc(partial.length)
    state = State(digest, begun.length, partial.size, None if partial.is_whole else begun.expires_at)
    return Response(status_code=204, headers=_headers(state))


@router.delete("/{digest}", status_code=204)
@needs(Scope.WRITE, 404, 409, 412, 422)
def drop(digest: DigestPath, hub: HubDep, tenant: TenantDep) -> Response:
    """Ends an upload that is not whole; nothing of it is kept."""
    Resumable(hub).drop(tenant, digest)
    return Response(status_code=204)


async def _take(request: Request, partial: Partial, promised: Digest | None) -> None:
    """Of a part with a digest all is kept or nothing; of another one whatever came."""
    found = hashlib.sha256()

    def write(piece: bytes) -> None:
        partial.write(piece)
        if promised is None:
            partial.sync_often()
        else:
            found.update(piece)

    try:
        await receive(request, write)
        check_content(promised, f"sha256:{found.hexdigest()}" if promised else "")
    except BaseException:
        if promised is None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(partial.sync, limiter=writes)
        raise
    await anyio.to_thread.run_sync(partial.sync, limiter=writes)


def _finish(uploads: Resumable, tenant: str, digest: Digest, partial: Partial) -> None:
    found = uploads.finish(tenant, digest, partial)
    if found != digest:
        raise DigestMismatch(f"the bytes are {found}, not {digest}: nothing was kept, send them again", param="digest")


def _finish_empty(uploads: Resumable, tenant: str, digest: Digest) -> None:
    with uploads.open(tenant, digest)[1] as partial:
        _finish(uploads, tenant, digest, partial)


def _headers(state: State) -> dict[str, str]:
    headers = {"Upload-Offset": str(state.offset), "Upload-Length": str(state.length)}
    if state.expires_at is not None:
        headers["Upload-Expires"] = formatdate(state.expires_at, usegmt=True)
    return headers


def _number(request: Request, name: str) -> int:
    """Of a header. Raises InputError."""
    text = request.headers.get(name, "")
    if not (text.isascii() and text.isdecimal()) or len(text) > MAX_DIGITS:
        raise InputError(f"the header {name} is {text[:40]!r}: it has to be a number of bytes", param=name)
    return int(text)


def _promised_digest(request: Request) -> Digest:
    """`digest` in `Upload-Metadata`: pairs of a key and base64, with commas between. Raises InputError."""
    pairs = (pair.strip().partition(" ") for pair in request.headers.get("upload-metadata", "").split(","))
    coded = {key: value for key, _, value in pairs}.get("digest", "")
    try:
        digest = base64.b64decode(coded, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        digest = ""
    if not is_digest(digest):
        raise InputError(
            "Upload-Metadata has to say which bytes will come: `digest`, a space, and the base64 of sha256:HEX of the "
            "whole",
            param="Upload-Metadata",
        )
    return digest
