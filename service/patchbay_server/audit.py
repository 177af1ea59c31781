"""Every change that a request makes, or was refused, goes into the catalog's audit log before its answer goes out.

A change is what a route for writing or for operators does. Knows no route by name, and nothing of bodies: what a
request was about is in its path or query, or a route has said it (`about`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from patchbay.errors import StoreError
from patchbay.store.audit import Audit, Entry, printable
from patchbay.store.keys import Scope
from patchbay_server.access import ScopedRoute

_CHANGES = (Scope.WRITE, Scope.ADMIN)
_READS = ("GET", "HEAD")
_writes = anyio.CapacityLimiter(4)
logger = logging.getLogger("patchbay_server")


def about(request: Request, subject: str) -> None:
    """What the request is about, where neither path nor query say it."""
    request.state.subject = subject


@dataclass(frozen=True, slots=True)
class Audited:
    """Writes entries for requests that have a caller. A log that cannot be written stops nobody: what happened has
    happened, and the server's own log says it.
    """

    app: ASGIApp
    log: Audit

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _READS or "caller" not in scope.get("state", {}):
            await self.app(scope, receive, send)
            return

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._write(scope, message["status"])
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            await self._write(scope, 500)  # the answer to a bug is sent from further out
            raise

    async def _write(self, scope: Connection, status: int) -> None:
        route = scope.get("route")
        if not isinstance(route, ScopedRoute) or route.scope not in _CHANGES:
            return
        caller, action = scope["state"]["caller"], f"{scope['method']} {route.path_format}"
        entry = Entry(time.time(), caller.tenant, caller.key, action, printable(_subject(scope)), str(status))
        try:
            await anyio.to_thread.run_sync(self.log.append, entry, limiter=_writes)
        except StoreError as error:
            logger.error("not in the audit log (%s): %s", error.message, entry)


def _subject(scope: Connection) -> str:
    said = scope["state"].get("subject")
    if said is not None:
        return str(said)
    named = parse_qs(scope["query_string"].decode("ascii", "replace")).get("name", [])
    return " ".join(map(str, [*scope.get("path_params", {}).values(), *named]))
