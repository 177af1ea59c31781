"""A bound on the body of every request. Plain ASGI; knows no route by name but uploads.

Uploads of deltas and blobs bound themselves while they stream; every other body is JSON and small, or has a recording.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchbay_server.errors import error_body
from patchbay_server.logs import note

UPLOAD = ("POST", "/v1/deltas")
BLOBS = "/v1/blobs/"
PARTS = "/v1/uploads/"
RECORDINGS = "/v1/eeg/"


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """413 for a body over `max_bytes`, where it may have a recording over `max_recording_bytes`, by its Content-Length
    before reading and by counting while it streams.
    """

    app: ASGIApp
    max_bytes: int
    max_recording_bytes: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_upload(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        most = self.max_recording_bytes if scope["path"].startswith(RECORDINGS) else self.max_bytes
        message = f"the request body is over {most} bytes"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            note(code="body_too_large")
            await JSONResponse(error_body(message, 413, "body_too_large"), 413)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            received = await receive()
            seen += len(received.get("body", b""))
            if seen > most:
                raise HTTPException(413, message)
            return received

        await self.app(scope, counted, send)


def is_upload(method: str, path: str) -> bool:
    """Whether the body is a file, which may be larger than memory."""
    is_blob = (method == "PUT" and path.startswith(BLOBS)) or (method == "PATCH" and path.startswith(PARTS))
    return is_blob or (method, path.rstrip("/")) == UPLOAD
