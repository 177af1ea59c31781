"""Bearer keys, asked for before a byte of the body is read. Knows one key; tenants and scopes come with many."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from prometheus_client import Counter
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from patchbay_server.errors import Unauthorized, respond

OPEN = frozenset({"/healthz", "/readyz", "/openapi.json"})


@dataclass(frozen=True, slots=True)
class RequireKey:
    """401 for every path but the open ones, unless the request carries `key`, compared in constant time. `failures`
    counts them.
    """

    app: ASGIApp
    key: SecretStr
    failures: Counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._matches(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        self.failures.inc()
        error = Unauthorized("send the server's key as 'Authorization: Bearer KEY'", param="authorization")
        await respond(error)(scope, receive, send)

    def _matches(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(key.strip().encode(), self.key.get_secret_value().encode())
        return scheme.lower() == "bearer" and same
