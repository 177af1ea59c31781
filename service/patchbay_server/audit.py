"""Every change that a request makes goes into the catalog's audit log before its answer goes out, and of what was
refused as much as `Refusals` lets through.

A change is what a route for writing or for operators does. Knows no route by name, and nothing of bodies: what a
request was about is in its path or query, or a route has said it (`about`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
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
from patchbay_server.bodies import GONE
from patchbay_server.refused import Refusals

_CHANGES = (Scope.WRITE, Scope.ADMIN)
_READS = ("GET", "HEAD")
REFUSED = range(400, GONE)  # nothing was changed; what a client broke off, or a server, may have been in part
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
    refusals: Refusals = field(default_factory=Refusals)

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            await self._append(self.refusals.rest())
            return
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
        await self._append(self.refusals.add(entry) if status in REFUSED else [entry])

    async def _append(self, entries: list[Entry]) -> None:
        for entry in entries:
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
