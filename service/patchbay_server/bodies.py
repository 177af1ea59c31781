"""JSON bodies, read strictly: of a key that is given twice Python would take the last. Knows no route and no field."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar

from fastapi import Request, Response
from starlette.types import Message

from patchbay.merge.read import duplicate_key
from patchbay_server.access import ScopedRoute

JSON = "application/json"
GONE = 499  # what proxies call it where the client left in the middle: for metrics and the audit, nobody else reads it
MAX_SHOWN = 100
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def content_type(request: Request) -> str:
    """`application/json`, without parameters; empty where the request has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))


class JsonRoute(ScopedRoute):
    """A route whose body, if it has one, is JSON. `accepts` is what the refusal of another content type lists."""

    accepts: ClassVar[tuple[str, ...]] = (JSON,)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def with_json(request: Request, body: bytes) -> Request:
    """The request as if it had this body, after which it goes on as it was: until its client hangs up."""
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    headers.append((b"content-type", JSON.encode()))
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            return await request.receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({**request.scope, "headers": headers}, receive)


class _StrictRequest(Request):
    async def json(self) -> Any:
        return json.loads(await self.body(), object_pairs_hook=_distinct)


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Raises JSONDecodeError, the one failure of a body that FastAPI hands on."""
    twice = duplicate_key(pairs)
    if twice is not None:
        raise json.JSONDecodeError(f"{twice[:MAX_SHOWN]!r} is given twice in one object; keep one", "", 0)
    return dict(pairs)
