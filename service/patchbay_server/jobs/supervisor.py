"""The server's worker processes: started, watched, started again when they die, ended with the server."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from patchbay.errors import PatchbayError
from patchbay_server.jobs.base import JobQueue
from patchbay_server.jobs.worker import make_owner
from patchbay_server.settings import Settings

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
GRACE_S = 5.0  # that a job is given to come to its next report
HEALTHY_S = 60.0  # a worker that lived so long did not die of its start
_STORES = ("store", "store_url", "blob_url", "blob_cache_bytes", "redis_blob_bytes")
_PASSED_ON = ("base", "task", *_STORES, "jobs_db", "max_upload_bytes", "log_format", "log_level")
logger = logging.getLogger("patchbay_server.jobs")


class Workers:
    """`settings.workers` processes. They notice the server's death, however it dies, by the end of their stdin."""

    def __init__(self, settings: Settings, queue: JobQueue) -> None:
        self._environment = _environment(settings)
        self._queue = queue
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        numbers = range(settings.workers)
        self._threads = [threading.Thread(target=self._keep, args=[number], daemon=True) for number in numbers]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [process.pid for process in self._processes.values()]

    def stop(self) -> None:
        """Jobs under way go back into the queue."""
        with self._lock:
            self._ending.set()
            processes = list(self._processes.values())
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
        for thread in self._threads:
            thread.join()

    def _keep(self, number: int) -> None:
        pause = FIRST_PAUSE_S
        while True:
            owner, started = make_owner(), time.monotonic()
            process = self._spawn(number, owner)
            if process is None:
                return
            code = process.wait()
            if process.stdin is not None:
                process.stdin.close()
            self._settle(owner, code)
            pause = FIRST_PAUSE_S if time.monotonic() - started > HEALTHY_S else min(2 * pause, LONGEST_PAUSE_S)
            self._ending.wait(pause)

    def _spawn(self, number: int, owner: str) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._ending.is_set():
                return None
            self._processes[number] = subprocess.Popen(
                [sys.executable, "-m", "patchbay_server.jobs.worker", owner],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=self._environment,
                process_group=0,  # Ctrl-C in a terminal is the server's to answer, not its workers'
            )
            return self._processes[number]

    def _settle(self, owner: str, code: int) -> None:
        """Nobody waits for the lease of a process that is known to be dead."""
        try:
            if self._ending.is_set():
                self._queue.release_owner(owner)
            else:
                logger.warning("a worker ended with code %d and is started again", code)
                self._queue.expire(owner)
        except PatchbayError as error:
            logger.error("%s", error.message)  # the lease runs out by itself


@contextmanager
def working(settings: Settings, queue: JobQueue) -> Iterator[None]:
    """Workers for as long as it lasts."""
    workers = Workers(settings, queue)
    workers.start()
    try:
        yield
    finally:
        workers.stop()


def _environment(settings: Settings) -> dict[str, str]:
    """Ours, but for what makes a server: neither the address nor the key is a worker's business."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PATCHBAY_")}
    given = {name: getattr(settings, name) for name in _PASSED_ON}
    passed = {f"PATCHBAY_{name.upper()}": str(value) for name, value in given.items() if value is not None}
    return inherited | passed | {"OMP_NUM_THREADS": "1"}
