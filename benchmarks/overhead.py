"""What keys, limits and the audit log add to a request: the same app with them and without, asked in turns.

The one without is the app as it is but for two of its layers. Each is a process of its own with a store of its own, on
SQLite and on a Redis on loopback. A round asks both, in an order that is drawn; what is added is the difference of
their medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection
from transformers import ViTConfig, ViTForImageClassification

from benchmarks.machine import machine
from benchmarks.systems.shapes import draw_delta
from patchbay.backbone import Backbone
from patchbay.store.keys import Scope, new_key
from patchbay.store.tenants import Limits
from patchbay_server.app import create_app
from patchbay_server.audit import Audited
from patchbay_server.auth import Authenticate
from patchbay_server.callers import Caller
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.server import open_engine, open_hub
from patchbay_server.settings import Settings

TENANT, SIZE = "acme", 8
SCOPES = frozenset({Scope.READ, Scope.INFER, Scope.WRITE})
PLENTY = 10**9
LIMITS = Limits(PLENTY, PLENTY, PLENTY, PLENTY, PLENTY)
IMAGE = {"array": [[[0.5] * SIZE] * SIZE] * 3}
# What is asked, and what it costs beside the key and the limits: a change also writes into the audit log.
REQUESTS: dict[str, tuple[str, str, object]] = {
    "read": ("GET", "/v1/models", None),
    "infer": ("POST", "/v1/classify", {"model": "one", "input": IMAGE}),
    "change": ("PUT", "/v1/deltas/one/current", {"version": 1}),
}
ABSENT = {str(Authenticate), str(Audited)}  # from the app without
BARS_MS = {"sqlite": 1.0, "redis": 3.0}


class Nobody:
    """In the place of authentication: everybody is the one tenant."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["caller"] = Caller(TENANT, "nobody", SCOPES)
        await self._app(scope, receive, send)


def serve(base: str, store: str, url: str | None, is_bare: bool, listener: socket.socket) -> None:
    """In a process of its own, until it is killed."""
    settings = Settings(base=base, store=Path(store), store_url=url, check_seconds=0)
    backbone = Backbone.load(base)
    hub = open_hub(settings, backbone.name)
    app = create_app(settings, open_engine(settings, backbone, hub), hub, SqliteQueue(settings.jobs_path))
    if is_bare:
        app.user_middleware = [each for each in app.user_middleware if str(each.cls) not in ABSENT]
        app.add_middleware(Nobody)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


@contextmanager
def serving(base: Path, store: Path, url: str | None, *, is_bare: bool) -> Iterator[httpx2.Client]:
    """A client of a server that has the delta `one`; with its key where it asks for one."""
    settings = Settings(base=str(base), store=store, store_url=url)
    with closing(open_hub(settings, base.name)) as hub:
        key, record = new_key(TENANT, SCOPES)
        hub.catalog.keys.add(record)
        hub.catalog.tenants.set_limits(TENANT, LIMITS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (str(base), str(store), url, is_bare, listener)
        process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
        process.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        headers = {"authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.join()


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis of our own, which syncs once a second."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = shutil.which("redis-server")
    assert program, "redis-server is not on PATH"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--appendonly", "yes"]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            time.sleep(1)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def measure(clients: Sequence[httpx2.Client], request: str, rounds: int) -> list[list[float]]:
    """Seconds to each answer, for every client."""
    method, path, body = REQUESTS[request]
    seconds: list[list[float]] = [[] for _ in clients]
    order, draw = list(range(len(clients))), random.Random(0)
    for number in range(-20, rounds):
        draw.shuffle(order)
        for each in order:
            started = time.perf_counter()
            clients[each].request(method, path, json=body).raise_for_status()
            if number >= 0:
                seconds[each].append(time.perf_counter() - started)
    return seconds


def compare(folder: Path, base: Path, delta: Path, kind: str, url: str | None, rounds: int) -> Iterator[dict[str, Any]]:
    """A line for every kind of request."""
    with ExitStack() as stack:
        clients = []
        for name, is_bare in (("with", False), ("without", True)):
            own = f"{url}/{int(is_bare)}" if url else None
            client = stack.enter_context(serving(base, folder / kind / name, own, is_bare=is_bare))
            client.post("/v1/deltas", params={"name": "one"}, content=delta.read_bytes()).raise_for_status()
            clients.append(client)
        for request in REQUESTS:
            found = [1000 * statistics.median(each) for each in measure(clients, request, rounds)]
            yield {
                "kind": "overhead",
                "catalog": kind,
                "request": request,
                "with_ms": found[0],
                "without_ms": found[1],
                "added_ms": found[0] - found[1],
                "bar_ms": BARS_MS[kind],
                "rounds": rounds,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="requests of each kind to each server")
    rounds = parser.parse_args().rounds
    print(json.dumps(machine(1)), flush=True)
    with tempfile.TemporaryDirectory() as name, redis() as url:
        folder = Path(name)
        config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        config.image_size, config.patch_size = SIZE, SIZE // 2
        ViTForImageClassification(config).save_pretrained(folder / "base")
        delta = draw_delta(folder / "one.delta", Backbone.load(folder / "base"), 0.1, 0)
        for kind, place in (("sqlite", None), ("redis", url)):
            for number, line in enumerate(compare(folder, folder / "base", delta, kind, place, rounds), 1):
                print(json.dumps(line), flush=True)
                print(f"{kind}: {number} of {len(REQUESTS)}", file=sys.stderr)


if __name__ == "__main__":
    main()
