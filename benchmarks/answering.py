"""A server as a process, with replicas or without, and clients that ask it for completions. Knows no measurement."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

TOKENS = 8
END_S = 120.0
_URL = re.compile(r'http://[^\s"]+(?=")')


@dataclass(frozen=True, slots=True)
class Server:
    """A process of `patchbay serve`, and how long it took until it answered."""

    process: subprocess.Popen[bytes]
    url: str
    ready_s: float

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        text = httpx2.get(f"{self.url}/metrics", timeout=60).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = re.findall(rf"^{name}({{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for found, value in lines if all(each in found for each in wanted))

    def replicas(self) -> list[int]:
        """Process ids, the one that has done most first."""
        found = subprocess.run(["ps", "-eo", "pid,sid,time,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 3) for line in found.splitlines()]
        named = [(cpu, int(pid)) for pid, _, cpu, name in rows if name.startswith("ray::ServeReplica:patchbay:Replica")]
        return [pid for _, pid in sorted(named, reverse=True)]


@contextmanager
def served(base: Path, scratch: Path, replicas: int) -> Iterator[Server]:
    """On loopback with a store in `scratch`, ended on the way out."""
    command = [sys.executable, "-m", "patchbay_server.cli", "serve", "--base", str(base), "--workers", "0"]
    command += ["--store", str(scratch / "store"), "--port", "0", "--replicas", str(replicas)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PATCHBAY_")}
    log, start = scratch / f"server-{replicas}.log", time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment | {"OMP_NUM_THREADS": "1"})
    try:
        url = _announced(process, log)
        httpx2.get(f"{url}/readyz", timeout=60).raise_for_status()
        yield Server(process, url, time.perf_counter() - start)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _announced(process: subprocess.Popen[bytes], log: Path) -> str:
    while process.poll() is None:
        if found := _URL.search(log.read_text("utf-8")):
            return found.group()
        time.sleep(0.1)
    sys.exit(f"the server did not start: {log.read_text('utf-8')}")


def upload(server: Server, files: Sequence[Path]) -> None:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for number, file in enumerate(files):
            client.post("/v1/deltas", params={"name": f"d{number}"}, content=file.read_bytes()).raise_for_status()


def ask(client: httpx2.Client, delta: int) -> float | None:
    """Seconds; None where it failed."""
    body = {
        "model": f"d{delta}",
        "prompt": "1 2 3 4 5 6 7 8",
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    start = time.perf_counter()
    try:
        answer = client.post("/v1/completions", json=body)
    except httpx2.TransportError:
        return None
    done = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == TOKENS
    return time.perf_counter() - start if done else None


def ask_all(server: Server, deltas: Sequence[int], clients: int) -> tuple[list[float | None], float]:
    """What `ask` says of each, and the seconds that all took, with so many clients at a time."""
    with httpx2.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        found = list(pool.map(lambda delta: ask(client, delta), deltas))
        return found, time.perf_counter() - start
