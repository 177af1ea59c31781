"""A real `patchbay serve` in a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchbay_server.demo.ask import DemoFailed

_URL = re.compile(r'http://[^\s"]+(?=["\n])')


@contextmanager
def running_server(base: Path, store: Path, log: Path) -> Iterator[str]:
    """The URL of a server on loopback, ended on the way out; what it says goes to `log`.

    Raises DemoFailed with its last words if it does not start.
    """
    command = [sys.executable, "-m", "patchbay_server.cli", "serve"]
    command += ["--base", str(base), "--store", str(store), "--host", "127.0.0.1", "--port", "0"]
    # The demo's server is the demo's own: what the environment says of another one must not reach it.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PATCHBAY_")}
    # A file, not a pipe: nobody reads while the server runs, and a full pipe would stop it.
    with log.open("w") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output, env=environment)
    try:
        yield _announced_url(process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
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
