"""Servers as processes: started, spoken to over HTTP, killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

import patchbay
import patchbay_server

FORKING = Path(__file__).with_name("forking.py")
ROOTS = [str(Path(package.__file__).parent.parent) for package in (patchbay, patchbay_server)]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PATCHBAY_")} | {
    "PYTHONPATH": os.pathsep.join(ROOTS),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
ANNOUNCEMENT = re.compile(r"patchbay serves (\S+) \((\S+)\) on (http://127\.0\.0\.1:\d+)")


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | environment,
    )


def start_server(base: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ["serve", "--base", str(base), "--store", str(store), *options]
    return start("-m", "patchbay_server.cli", *arguments)


def announced(process: subprocess.Popen[str]) -> re.Match[str]:
    """What the server says once it listens."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := ANNOUNCEMENT.search(line):
            return found
    raise AssertionError("".join(said))


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Whatever happens, the process does not outlive its test."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@dataclass(slots=True)
class Forker:
    """Starts a real server in a fraction of a second, as often as it is asked to."""

    process: subprocess.Popen[str]
    server: int | None = None
    client: httpx2.Client | None = None

    def start(self) -> httpx2.Client:
        """A client of a new server; the one before is killed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.close()
        self.process.stdin.write("start\n")
        self.process.stdin.flush()
        self.server = int(self.process.stdout.readline())
        self.client = httpx2.Client(base_url=announced(self.process)[3], timeout=60)
        return self.client

    def kill(self) -> None:
        assert self.server is not None
        os.kill(self.server, signal.SIGKILL)
        self.server = None

    def close(self) -> None:
        if self.server is not None:
            self.kill()
        if self.client is not None:
            self.client.close()


@contextmanager
def forking(base: Path, store: Path, **environment: str) -> Iterator[Forker]:
    with ended(start(str(FORKING), str(base), str(store), **environment)) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        forker = Forker(process)
        try:
            yield forker
        finally:
            forker.close()
