"""What surrounds every request: a bound on its body, a count and a time. Plain ASGI; knows no route by name but
uploads.

Uploads of deltas and blobs bound themselves while they stream; every other body is JSON and small, or has a recording.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchbay_server.errors import error_body
from patchbay_server.metrics import Metrics

UPLOAD = ("POST", "/v1/deltas")
BLOBS = "/v1/blobs/"
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
        if scope["type"] != "http" or _is_upload(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        most = self.max_recording_bytes if scope["path"].startswith(RECORDINGS) else self.max_bytes
        message = f"the request body is over {most} bytes"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
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


def _is_upload(method: str, path: str) -> bool:
    return (method, path.rstrip("/")) == UPLOAD or (method == "PUT" and path.startswith(BLOBS))


@dataclass(frozen=True, slots=True)
class Measure:
    """Counts and times requests by route template, so that names in paths do not become labels."""

    app: ASGIApp
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(route, scope["method"], str(status)).inc()
            self.metrics.seconds.labels(route, scope["method"]).observe(time.perf_counter() - started)
