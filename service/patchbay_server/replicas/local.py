"""`patchbay serve --replicas N`: a Ray of its own on this machine, N replicas, and the front in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from patchbay.errors import EngineFailed
from patchbay_server import logs
from patchbay_server.jobs.opened import open_queue
from patchbay_server.jobs.supervisor import working
from patchbay_server.listen import Server, listen
from patchbay_server.replicas.fleet import REPLICA, RayFleet, replica_deployment
from patchbay_server.replicas.front import make_front
from patchbay_server.replicas.log_socket import listened
from patchbay_server.settings import Settings
from patchbay_server.stores.opened import open_store

APP = "patchbay"
LOOPBACK = "127.0.0.1"


def serve_replicas(settings: Settings, listener: socket.socket) -> None:
    """Blocks until SIGINT or SIGTERM. Raises as `server.serve` does."""
    logs.adopt_libraries()  # Ray has set itself up when it was imported
    settings.store.mkdir(parents=True, exist_ok=True)
    as_text = settings.log_format or ("text" if sys.stderr.isatty() else "json")
    with (
        listened() as log,
        _ray(settings.replicas),
        _replicas(settings.model_copy(update={"log_format": as_text}), log) as fleet,
        closing(open_store(settings)) as hub,
        closing(open_queue(settings)) as queue,
        working(settings, queue),
    ):
        about = asyncio.run(fleet.about())
        app, front = make_front(settings, hub, fleet, about["base"])
        server = Server(app, (front.drain,), front.stop)
        listen(server, listener, f"{about['base']} ({about['task']})")


@contextmanager
def _ray(replicas: int) -> Iterator[None]:
    """Ends with this process. Its own ports ask for a token that it has made for this user."""
    threads = max(1, (os.cpu_count() or 1) // replicas)
    ray.init(
        num_cpus=replicas * threads,
        include_dashboard=False,
        _node_ip_address=LOOPBACK,
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.WARNING,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _replicas(settings: Settings, log: str) -> Iterator[RayFleet]:
    """Raises EngineFailed, which says why they could not be started."""
    threads = max(1, (os.cpu_count() or 1) // settings.replicas)
    app = replica_deployment(
        settings.max_running + settings.max_waiting,  # an engine refuses what is more
        settings,
        LOOPBACK,
        log,
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": threads},
        max_constructor_retry_count=1,
    )
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=LoggingConfig(log_level="WARNING"))
    logs.adopt_libraries()
    try:
        yield RayFleet(_run(app))
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _run(app: serve.Application) -> DeploymentHandle[Any]:
    try:
        return serve.run(app, name=APP, route_prefix=None)
    except RuntimeError as error:
        told = serve.status().applications[APP].deployments[REPLICA].message
        ours = re.findall(r"^patchbay[\w.]*: (.+)$", told, re.MULTILINE)
        why = ours[-1] if ours else f"{told.strip().splitlines()[-1]}; more is in /tmp/ray/session_latest/logs"
        raise EngineFailed(f"no replica could be started: {why}") from error
