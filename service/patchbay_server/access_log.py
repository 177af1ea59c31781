"""What surrounds every request: an id that it keeps, a count, a time and one line in the log. Plain ASGI.

Knows no route by name but the probes, and nothing of bodies.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchbay_server.bodies import GONE
from patchbay_server.errors import unexpected
from patchbay_server.logs import FIELDS, About, current
from patchbay_server.request_metrics import RequestMetrics

REQUEST_ID = "x-request-id"
TOLD = "told"  # in a request's state: another server has it, which counts and logs it itself
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})  # which come every few seconds
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
logger = logging.getLogger("patchbay_server.access")


@dataclass(frozen=True, slots=True)
class Access:
    """Counts, times and logs requests by route template, so that names in paths become neither labels nor lines; not
    those of which another server tells. The id is the caller's where it is well-formed; the answer has it.
    """

    app: ASGIApp
    metrics: RequestMetrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        about = About(request_id(Headers(scope=scope)))
        token = current.set(about)
        started, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = about.request_id
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if status:
                raise  # the answer has begun: all that is left is to end the connection
            await unexpected(error)(scope, receive, noted)
        finally:
            if not state.get(TOLD):
                self._tell(scope, status or GONE, time.perf_counter() - started)
            current.reset(token)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route, method = getattr(scope.get("route"), "path", "unknown"), scope["method"]
        self.metrics.total.labels(route, method, str(status)).inc()
        self.metrics.seconds.labels(route, method).observe(seconds)
        fields = {"method": method, "route": route, "status": status, "ms": round(1000 * seconds, 3)}
        level = logging.DEBUG if route in PROBES else logging.INFO
        logger.log(level, "request", extra={FIELDS: fields})


def request_id(headers: Headers) -> str:
    """The one that the request came with, or a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
