"""A real redis-server on a free port, for every test that wants one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

DEADLINE_S = 20.0


@contextmanager
def running_redis(*options: str, port: int | None = None) -> Iterator[str]:
    """Its URL. Skips where there is no redis-server, unless PATCHBAY_REQUIRE_REDIS=1."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("PATCHBAY_REQUIRE_REDIS") == "1":
            pytest.fail("PATCHBAY_REQUIRE_REDIS=1, and redis-server is not on PATH")
        pytest.skip("redis-server is not on PATH")
    port = port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        listen = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        log = Path(folder) / "log"
        process = subprocess.Popen([program, *listen, "--appendonly", "yes", "--logfile", str(log), *options])
        try:
            url = f"redis://127.0.0.1:{port}/0"
            _wait_until_it_answers(url, process)
            yield url
        finally:
            process.kill()
            process.wait()


@dataclass(slots=True)
class RestartableRedis:
    """A redis-server that can be killed and started again, with its data and on its port."""

    options: list[str]
    url: str = ""
    _running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        port = int(self.url.rpartition(":")[2].partition("/")[0]) if self.url else None
        self.url = self._running.enter_context(running_redis(*self.options, port=port))

    def kill(self) -> None:
        self._running.close()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def redis_database(redis_url: str) -> str:
    """One of the server's databases, empty, for what takes the product's own prefix."""
    url = redis_url.removesuffix("/0") + "/9"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                assert process.poll() is None and time.monotonic() < deadline, "redis-server did not start"
                time.sleep(0.02)
