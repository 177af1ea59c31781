"""A server as a process, with replicas or without, and clients that ask it for completions. Knows no measurement."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from patchbay_server.demo.process import running_server

TOKENS = 8


@dataclass(frozen=True, slots=True)
class Server:
    """A process of `patchbay serve`, and how long it took until it answered."""

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
    options, start = ("--workers", "0", "--replicas", str(replicas)), time.perf_counter()
    with running_server(base, scratch / "store", scratch / "server.log", *options, OMP_NUM_THREADS="1") as server:
        httpx2.get(f"{server.url}/readyz", timeout=60).raise_for_status()
        yield Server(server.url, time.perf_counter() - start)


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
