"""One HTTP request, passed on to a server and its answer passed back, as both come. Knows no replica and no route.

Until a part of the answer has been passed on the request can be asked again elsewhere: so some of it is kept back.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import httpx2
from starlette.types import Send

from patchbay_server.errors import error_body

KEPT_BACK = 1 << 20  # bytes of an answer that begins only when they are there, or it is over
STREAM = "text/event-stream"
CONNECT_S = 5.0
IDLE_S = 60.0  # less than `replica.KEEP_ALIVE_S`: whoever asks closes first
LOST = "the replica that was answering is gone"
# Of one connection, not of what is sent over it (RFC 9110, section 7.6.1). What is expected was given already.
_HOP = frozenset(
    {"connection", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)


class Lost(Exception):
    """The server was gone before its answer was whole. `sent`: it may have read the request; `begun`: a part of the
    answer was passed back; `told`: and then that it broke off.
    """

    def __init__(self, *, sent: bool = True, begun: bool = False, told: bool = False) -> None:
        super().__init__(LOST)
        self.sent, self.begun, self.told = sent, begun, told


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it goes on. `path` has the query in it."""

    method: str
    path: str
    headers: Mapping[str, str] | list[tuple[str, str]]
    body: bytes | AsyncIterator[bytes]


def new_client() -> httpx2.AsyncClient:
    """Waits for answers as long as they take: whoever asked has a timeout of its own."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=IDLE_S)
    return httpx2.AsyncClient(timeout=httpx2.Timeout(None, connect=CONNECT_S), limits=limits, trust_env=False)


def passed_on(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Without those that are about the connection."""
    named = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
    dropped = _HOP.union(*(value.replace(" ", "").lower().split(",") for name, value in named if name == "connection"))
    return [(name, value) for name, value in named if name not in dropped]


async def relay(client: httpx2.AsyncClient, url: str, request: Outgoing, send: Send) -> None:
    """Raises Lost where the answer did not come whole. Of a stream of events the client was told so by an error event;
    another answer that has begun can only end with its connection.
    """
    asked = client.build_request(
        request.method, url + request.path, headers=request.headers, content=request.body or None
    )
    try:
        answer = await client.send(asked, stream=True)
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise Lost(sent=False) from error
    except httpx2.TransportError as error:
        raise Lost from error
    try:
        await _pass_back(answer, send)
    finally:
        await answer.aclose()


async def _pass_back(answer: httpx2.Response, send: Send) -> None:
    is_stream = answer.headers.get("content-type", "").startswith(STREAM)
    async with aclosing(answer.aiter_raw()) as chunks:
        try:
            first = await _read(chunks, 1 if is_stream else KEPT_BACK)
        except httpx2.TransportError as error:
            raise Lost from error
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in passed_on(answer.headers.raw)]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        await _send_body(send, first, more=True)
        try:
            async for chunk in chunks:
                await _send_body(send, chunk, more=True)
        except httpx2.TransportError as error:
            if is_stream:
                event = json.dumps(error_body(f"{LOST}: ask again", 503, "engine_failed"), separators=(",", ":"))
                await _send_body(send, f"data: {event}\n\n".encode(), more=False)
            raise Lost(begun=True, told=is_stream) from error
        await _send_body(send, b"", more=False)


async def _read(chunks: AsyncIterator[bytes], least: int) -> bytes:
    """At least so many bytes, or all that there are."""
    found = b""
    async for chunk in chunks:
        found += chunk
        if len(found) >= least:
            break
    return found


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
