"""Replicas as Ray Serve runs them: started, watched, started again when they die, and chosen by `AffinityRouter`.

Knows nothing of how requests reach a front, nor of what is in them.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import ray.util
from ray import serve
from ray.serve.config import AutoscalingContext, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from patchbay_server import logs
from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.replicas.affinity import Wanted
from patchbay_server.replicas.front import Chosen
from patchbay_server.replicas.log_socket import LogSocket
from patchbay_server.replicas.replica import Replica
from patchbay_server.replicas.router import WANTED, AffinityRouter
from patchbay_server.settings import Settings

REPLICA = "Replica"
TOLD_EVERY_S = 1.0
LOOK_EVERY_S = 5.0
LOOK_S = 30.0  # a replica that loads a large delta is slow to answer, not dead
ASK_S = 10.0
STOP_S = 20.0


def replica_deployment(
    most_requests: int, settings: Settings | None, host: str | None, log: str | None, **options: Any
) -> serve.Application:
    """Each takes so many requests at a time, has these settings or else those of its environment, listens on `host` or
    else its node's own address, and logs to the socket `log` or else its own stderr. `options` are Serve's, of how many
    there are and what each takes.
    """
    routing = {"request_router_class": AffinityRouter, "request_routing_stats_period_s": TOLD_EVERY_S}
    deploy = serve.deployment(
        name=REPLICA,
        max_ongoing_requests=most_requests,
        request_router_config=RequestRouterConfig.model_validate(routing),
        health_check_period_s=LOOK_EVERY_S,
        health_check_timeout_s=LOOK_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=STOP_S,
    )
    return deploy(_Deployed).options(**options).bind(settings, host, log)


class _Deployed(Replica):
    """Ends with its process."""

    def __init__(self, settings: Settings | None, host: str | None, log: str | None) -> None:
        silence_libraries()
        settings = settings or Settings(base=os.environ["PATCHBAY_BASE"])
        if log is not None:
            sys.stderr = LogSocket(log)
        self._logs = ExitStack()
        self._logs.enter_context(logs.configured(settings.log_format, settings.log_level))
        name = serve.get_replica_context().replica_id.unique_id
        super().__init__(settings, host or ray.util.get_node_ip_address(), name)  # type: ignore[no-untyped-call]

    def __del__(self) -> None:
        """Called by Ray before it ends the process."""
        self.close()
        self._logs.close()


def by_requests(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """As many replicas as it takes for each to have `target_ongoing_requests` under way. Serve's own rule would count
    calls through Ray, and requests do not go that way.
    """
    assert context.config is not None, "Serve gives one to whoever it asks"
    under_way = sum((context.aggregated_metrics or {}).get("under_way", {}).values())
    return math.ceil(under_way / context.config.get_target_ongoing_requests()), {}


class RayFleet:
    """A `Fleet` of a running deployment."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    @asynccontextmanager
    async def choose(self, wanted: Wanted) -> AsyncIterator[Chosen]:
        async with self._handle.hold.choose_replica(**{WANTED: wanted}) as selection:
            yield Chosen(selection.replica_id, selection.replica_metadata["url"])

    async def about(self) -> Mapping[str, str]:
        """Of any of them: `base` and `task`."""
        async with self._handle.hold.choose_replica() as selection:
            found: Mapping[str, str] = selection.replica_metadata
            return found

    async def urls(self) -> list[str]:
        return [url for url in await self._each("url") if isinstance(url, str)]

    async def metrics(self) -> Mapping[str, str]:
        return dict(pair for pair in await self._each("named_metrics") if isinstance(pair, tuple))

    async def forget_deleted(self) -> None:
        await self._each("forget_deleted")

    async def drain(self) -> None:
        await self._each("drain")

    async def stop(self) -> None:
        await self._each("stop")

    async def _each(self, method: str) -> list[Any]:
        """What those answer that do; of the others the exception."""
        answers: list[Any] = await self._handle.broadcast(method).results_async(timeout_s=ASK_S, return_exceptions=True)
        return answers
