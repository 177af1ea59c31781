"""The one address in front of all replicas: asks for keys, finds out which deltas a request needs, passes it on.

Plain ASGI. What replicas are, where they run and who chooses among them is the `Fleet`'s.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import anyio
import anyio.to_thread
import httpx2
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from patchbay.errors import EngineFailed, ShuttingDown
from patchbay.store.hub import Hub
from patchbay.store.keys import Scope as Needs
from patchbay_server.access import Forbidden
from patchbay_server.access_log import REQUEST_ID, TOLD, Access
from patchbay_server.auth import Authenticate
from patchbay_server.callers import Caller, Keyring
from patchbay_server.limits import Meter
from patchbay_server.logs import current, note
from patchbay_server.middleware import BodyLimit, is_upload
from patchbay_server.replicas.affinity import Wanted
from patchbay_server.replicas.answered import Answered
from patchbay_server.replicas.asked import asked, deltas_of
from patchbay_server.replicas.front_metrics import FrontMetrics
from patchbay_server.replicas.gathered import gathered
from patchbay_server.replicas.relay import LOST, Lost, Outgoing, new_client, passed_on, relay
from patchbay_server.routes import route_of
from patchbay_server.settings import Settings

CHOOSE_S = 30.0  # that a request waits for a replica: one that is started again loads its base first
PROBE_S = 2.5  # a replica waits two seconds for the catalog
PAUSE_S = 0.1
TRIES = 50  # while nobody listens where a replica was said to be
REPEATED = 1  # times that what a replica may have read is sent to another: a request that kills one must not kill all
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
INFERENCE = ("/v1/completions", "/v1/chat/", "/v1/classify", "/v1/embeddings", "/v1/eeg/", "/v1/merges:preview")
logger = logging.getLogger("patchbay_server")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A replica and where it listens."""

    name: str
    url: str


class Fleet(Protocol):
    """The replicas that there are at the moment."""

    def choose(self, wanted: Wanted) -> AbstractAsyncContextManager[Chosen]:
        """The request counts as under way there while inside. Waits for as long as there is none."""

    async def urls(self) -> list[str]:
        """Of all of them."""

    async def metrics(self) -> Mapping[str, str]:
        """What `/metrics` of each is, by its name."""

    def forget_deleted(self) -> Coroutine[Any, Any, None]:
        """A delta was deleted: nobody keeps it pinned."""

    def drain(self) -> Coroutine[Any, Any, None]:
        """No text is begun any more, and streams of events end."""

    def stop(self) -> Coroutine[Any, Any, None]:
        """Texts end at their next token."""


def make_front(settings: Settings, hub: Hub, fleet: Fleet, base: str) -> tuple[ASGIApp, Front]:
    """The app, and what of it can be told to end. `base` is the base's name."""
    front = Front(hub, fleet, base)
    app: ASGIApp = BodyLimit(front, settings.max_body_bytes, settings.max_recording_bytes)
    keyring, failures = Keyring(hub.catalog, settings.api_key), front.metrics.auth_failures
    return Access(Answered(Authenticate(app, keyring, Meter(), failures)), front.metrics.requests), front


class Front:
    """Passes every request on to a replica, but for what is about all of them."""

    def __init__(self, hub: Hub, fleet: Fleet, base: str) -> None:
        self._hub, self._fleet, self._base = hub, fleet, base
        self.metrics = FrontMetrics()
        self._client: httpx2.AsyncClient = new_client()
        self._own_name = f"front-{secrets.token_hex(4)}"
        self._draining = False
        self._telling: set[asyncio.Future[None]] = set()

    def drain(self) -> None:
        """No inference is begun any more; texts under way go on, streams of events end. In the event loop's thread."""
        self._draining = True
        self._tell(self._fleet.drain())

    def stop(self) -> None:
        """Texts under way end at their next token: the process is about to."""
        self._tell(self._fleet.stop())

    def _tell(self, replicas: Coroutine[Any, Any, None]) -> None:
        """Whoever asked need not wait for it, and may hang up."""
        telling = asyncio.ensure_future(replicas)
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await self._answer(scope, receive, send)
            finally:
                if not scope["state"].get(TOLD):
                    scope["route"] = route_of(scope)  # for the log
        elif scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._client.aclose()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path == "/healthz":
            await JSONResponse({"status": "ok"})(scope, receive, send)
        elif path == "/readyz":
            await self._ready(scope, receive, send)
        elif path == "/metrics" and method == "GET":
            await (await self._gathered(scope))(scope, receive, send)
        elif self._draining and _is_inference(method, path):
            raise ShuttingDown("the server is shutting down: ask again elsewhere or later")
        else:
            await self._watched(scope, receive, send)

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._draining:
            raise ShuttingDown("the server is shutting down: ask again elsewhere or later")
        with anyio.move_on_after(PROBE_S):
            await self._pass_on(scope, Outgoing(scope["method"], "/readyz", _id(), b""), Wanted(), True, send)
            return
        scope["state"][TOLD] = False
        raise EngineFailed(f"no replica answers within {PROBE_S} seconds")

    async def _gathered(self, scope: Scope) -> Response:
        caller: Caller = scope["state"]["caller"]
        if not caller.may(Needs.ADMIN):
            raise Forbidden("this key may not do that: it needs the scope 'admin'", param="authorization")
        texts = await self._fleet.metrics()
        self.metrics.replicas.set(len(texts))
        found = await anyio.to_thread.run_sync(gathered, {**texts, self._own_name: self.metrics.render()})
        return Response(found, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passed on for as long as the client is there."""
        body = Body(receive)
        error: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(body.until_gone, group.cancel_scope.cancel)
            try:
                await self._route(scope, body, send)
            except Exception as raised:
                error = raised  # as it is: groups put what was raised inside into groups
            group.cancel_scope.cancel()
        if error is not None:
            raise error

    async def _route(self, scope: Scope, body: Body, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        is_file = is_upload(method, path)
        whole = b"" if is_file else await body.read()
        outgoing = Outgoing(method, _target(scope), _headers(scope), body.stream() if is_file else whole)
        if method == "POST" and path.startswith("/v1/deltas/") and path.endswith(("/pin", "/unpin")):
            await self._everywhere(scope, outgoing, send)
            return
        wanted = await self._wanted(scope, whole)
        await self._pass_on(scope, outgoing, wanted, method in SAFE or _is_inference(method, path), send)
        if method == "DELETE" and path.startswith("/v1/deltas/"):
            self._tell(self._fleet.forget_deleted())

    async def _wanted(self, scope: Scope, body: bytes) -> Wanted:
        caller: Caller | None = scope.get("state", {}).get("caller")
        found = asked(scope["path"], Headers(scope=scope).get("content-type", ""), body) if caller else None
        if caller is None or found is None:
            return Wanted()
        look = partial(deltas_of, self._hub, caller.tenant, self._base, found)
        return Wanted(await anyio.to_thread.run_sync(look))

    async def _pass_on(self, scope: Scope, request: Outgoing, wanted: Wanted, repeatable: bool, send: Send) -> None:
        """Raises EngineFailed where there is no replica, or it was lost and asking another might do a thing twice."""
        repeated = 0
        for _ in range(TRIES):
            try:
                with anyio.fail_after(CHOOSE_S) as waiting:
                    async with self._fleet.choose(wanted) as chosen:
                        waiting.deadline = float("inf")
                        self.metrics.routed.labels(wanted.outcome).inc()
                        await self._relay(scope, chosen.url, request, send)
                        return
            except TimeoutError as error:
                raise EngineFailed(f"no replica took the request within {CHOOSE_S:.0f} seconds: ask again") from error
            except Lost as lost:
                if lost.begun:
                    raise
                repeated += lost.sent
                if not isinstance(request.body, bytes) or (lost.sent and not repeatable) or repeated > REPEATED:
                    raise EngineFailed(f"{LOST}: whether it has done what was asked is not known") from lost
                await anyio.sleep(0 if lost.sent else PAUSE_S)
        raise EngineFailed("no replica could be reached: ask again")

    async def _relay(self, scope: Scope, url: str, request: Outgoing, send: Send) -> None:
        """Who answers tells of the request, in metrics and log; of one that was lost nobody else can. Raises Lost."""
        scope["state"][TOLD] = True
        try:
            await relay(self._client, url, request, send)
        except Lost as lost:
            scope["state"][TOLD] = False
            self.metrics.lost.inc()
            note(code=EngineFailed.code)
            logger.warning("the replica at %s was lost (%s)", url, type(lost.__cause__).__name__)
            if not lost.told:
                raise

    async def _everywhere(self, scope: Scope, request: Outgoing, send: Send) -> None:
        """What every replica has to do, and tells of, for itself. One answer is passed back, the worst."""
        answers: list[httpx2.Response] = []
        for url in await self._fleet.urls():
            with suppress(httpx2.TransportError):  # one that is gone has nothing to keep
                answers.append(await self._client.request(request.method, url + request.path, headers=request.headers))
        worst = max(answers, key=lambda answer: answer.status_code, default=None)
        if worst is None:
            raise EngineFailed("no replica could be reached: ask again")
        scope["state"][TOLD] = True
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in passed_on(worst.headers.raw)]
        await send({"type": "http.response.start", "status": worst.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": worst.content})


class Body:
    """What a client sends, and then whether it is still there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._over = anyio.Event()

    async def stream(self) -> AsyncIterator[bytes]:
        """Raises ClientDisconnect."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self._over.set()

    async def read(self) -> bytes:
        """All of it. Raises ClientDisconnect."""
        return b"".join([chunk async for chunk in self.stream()])

    async def until_gone(self, tell: Callable[[], None]) -> None:
        """Calls `tell` when the client hangs up after its request."""
        await self._over.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        tell()


def _is_inference(method: str, path: str) -> bool:
    return method == "POST" and path.startswith(INFERENCE)


def _target(scope: Scope) -> str:
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return (path + b"?" + scope["query_string"] if scope["query_string"] else path).decode("latin-1")


def _headers(scope: Scope) -> list[tuple[str, str]]:
    return [*((name, value) for name, value in passed_on(scope["headers"]) if name != REQUEST_ID), *_id()]


def _id() -> list[tuple[str, str]]:
    about = current.get()
    return [(REQUEST_ID, about.request_id)] if about else []
