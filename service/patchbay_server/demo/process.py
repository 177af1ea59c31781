"""A real `patchbay serve` in a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from patchbay_server.demo.ask import DemoFailed

END_S = 120.0
_URL = re.compile(r'http://[^\s"]+(?=["\n])')


@dataclass(frozen=True, slots=True)
class Running:
    """`process` answers at `url`; `log` has what it says."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path


@contextmanager
def running_server(base: Path, store: Path, log: Path, *options: str, **environment: str) -> Iterator[Running]:
    """A server on loopback, ended on the way out. Raises DemoFailed with its last words if it does not start."""
    command = [sys.executable, "-m", "patchbay_server.cli", "serve"]
    command += ["--base", str(base), "--store", str(store), "--host", "127.0.0.1", "--port", "0", *options]
    # The server is its caller's own: what the environment says of another one must not reach it.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PATCHBAY_")}
    # A file, not a pipe: nobody reads while the server runs, and a full pipe would stop it.
    with log.open("w") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output, env=inherited | environment)
    try:
        yield Running(process, _announced_url(process, log), log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _announced_url(process: subprocess.Popen[bytes], log: Path) -> str:
    while process.poll() is None:
        found = _URL.search(log.read_text("utf-8"))
        if found:
            return found.group().rstrip("/")
        time.sleep(0.1)
    said = log.read_text("utf-8").strip().splitlines()
    raise DemoFailed(f"the server did not start: {said[-1] if said else 'it said nothing'}")
