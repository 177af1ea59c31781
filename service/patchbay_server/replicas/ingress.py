"""The front as Ray Serve's own proxies ask it: what a cluster of many machines has in the place of `local`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchbay_server import logs
from patchbay_server.access_log import REQUEST_ID
from patchbay_server.replicas.fleet import RayFleet, by_requests, replica_deployment
from patchbay_server.replicas.front import make_front
from patchbay_server.settings import Settings
from patchbay_server.stores.opened import open_store

FRONT = "Front"
MOST_AT_ONCE = 10_000  # requests that a front passes on at a time: what is too much is for replicas to say


def application(settings: Settings) -> serve.Application:
    """Fronts, which a cluster has one of, and replicas, of which it has as many as it takes for each to have as many
    requests under way as it runs at a time.
    """
    scaling = AutoscalingConfig(
        min_replicas=1,
        max_replicas=64,
        target_ongoing_requests=settings.max_running,
        policy=AutoscalingPolicy.model_validate({"policy_function": by_requests}),
    )
    most_requests = settings.max_running + settings.max_waiting
    replicas = replica_deployment(most_requests, None, None, None, autoscaling_config=scaling)
    front = serve.deployment(name=FRONT, max_ongoing_requests=MOST_AT_ONCE, ray_actor_options={"num_cpus": 0.5})
    return front(_Deployed).bind(replicas)


class _Deployed:
    """Its settings are those of its environment: what a cluster is told would have the key in it."""

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._settings = Settings(base=os.environ["PATCHBAY_BASE"])
        self._fleet = RayFleet(replicas)
        self._logs = ExitStack()
        self._logs.enter_context(logs.configured(self._settings.log_format, self._settings.log_level))
        self._hub = open_store(self._settings)
        self._app: ASGIApp | None = None

    async def __call__(self, request: Request) -> Response:
        if self._app is None:
            base = (await self._fleet.about())["base"]
            self._app, _ = make_front(self._settings, self._hub, self._fleet, base)
        return _Passed(self._app)


class _Passed(Response):
    """Answers as an app does. Serve's proxy gives answers their id itself: the one that the request came with."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[REQUEST_ID]
            await send(message)

        await self._app(scope, receive, without_id)
