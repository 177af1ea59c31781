"""Bearer keys, asked for before a byte of the body is read. Knows no route but the open ones, and no scope."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchbay.errors import StoreUnavailable
from patchbay_server.callers import Caller, Keyring
from patchbay_server.errors import Unauthorized, respond
from patchbay_server.limits import LimitReached, Meter, fields

OPEN = frozenset({"/healthz", "/readyz", "/openapi.json"})
_ASKS = "send a key of this server as 'Authorization: Bearer KEY'"
logger = logging.getLogger("patchbay_server")


@dataclass(frozen=True, slots=True)
class Authenticate:
    """401 for every path but the open ones, unless the request carries a key of `keyring`; whose it is goes on with the
    request as `state.caller`; `failures` counts the others. 429 where the tenant has as many requests under way as it
    may; other answers say what is left.
    """

    app: ASGIApp
    keyring: Keyring
    meter: Meter
    failures: Counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        try:
            caller = await self.keyring.find(_key(Headers(scope=scope)))
        except StoreUnavailable as error:
            logger.error("%s", error.message)
            await respond(error)(scope, receive, send)
            return
        if caller is None:
            self.failures.inc()
            await respond(Unauthorized(_ASKS, param="authorization"))(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        try:
            self.meter.enter(caller.tenant, caller.limits)
        except LimitReached as error:
            await respond(error)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, partial(self._tell, caller, send))
        finally:
            self.meter.leave(caller.tenant)

    async def _tell(self, caller: Caller, send: Send, message: Message) -> None:
        """What is left of the caller's limits goes with every answer; a refusal says its own."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in fields(self.meter.quotas(caller.tenant, caller.limits)).items():
                headers.setdefault(name, value)
        await send(message)


def _key(headers: Headers) -> str:
    """Empty where the request has none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
