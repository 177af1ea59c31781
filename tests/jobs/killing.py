"""Real workers to be killed, and the search that they are killed in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.processes import ENVIRONMENT, ended
from tests.service.compressing import blobs_of, digest_of

from patchbay.checkpoint import Checkpoint
from patchbay.store.base import BlobStore
from patchbay_server.jobs.base import Job, Json

FORKING = Path(__file__).with_name("forking.py")
ROOT = Path(__file__).parents[2]
EVALUATIONS = 60  # at most
TEXTS = b"the cat runs\na big dog eats one fox\nmy owl likes good film\nbad\nred green two is not small\n"
LABELS = b"cat\ndog\nowl\ncat\ndog\n"


class Forker:
    """Starts workers in a fraction of a second; `alive` are their processes by owner."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout
        self.alive: dict[str, int] = {}

    def start(self, owner: str, store: Path, lease_s: float = 30.0, **settings: str) -> None:
        """With these settings, and this process's credentials for object storage."""
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        made = {"owner": owner, "lease_s": lease_s, "settings": {"store": str(store), **settings}}
        self._orders.write(json.dumps(made | {"environment": environment}) + "\n")
        self._orders.flush()
        self.alive[owner] = int(self._answers.readline())

    def kill(self, owner: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.alive.pop(owner), signal.SIGKILL)

    def close(self) -> None:
        for owner in list(self.alive):
            self.kill(owner)


@contextmanager
def forking_workers(base: Path) -> Iterator[Forker]:
    paths = {"PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, str(FORKING), str(base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | paths,
    )
    with ended(process):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        forker = Forker(process)
        try:
            yield forker
        finally:
            forker.close()  # they hold the pipes that the end waits for


def search_spec(blobs: BlobStore, base: Path, tuned: Path, bound: Mapping[str, object]) -> Json:
    """The spec of a search on calibration inputs, whose blobs are put into the store."""
    named = blobs_of(tuned)
    for data in [TEXTS, LABELS, *(data for _, data in named.values())]:
        temp = blobs.new_temp()
        temp.write_bytes(data)
        blobs.put(temp, digest_of(data))
    request = {
        "name": "math",
        "files": {name: digest for name, (digest, _) in named.items()},
        "calibration": digest_of(TEXTS),
        "labels": digest_of(LABELS),
        "score": "log_likelihood",
        "evaluations": EVALUATIONS,
    }
    return {"request": request | dict(bound), "fingerprint": Checkpoint.open(base).fingerprint}


@dataclass(frozen=True, slots=True)
class Outcome:
    """An ended job, its evaluations, and the bytes of the delta that it has made."""

    job: Job
    evaluations: list[Json]
    delta: bytes

    @property
    def report(self) -> dict[str, Any]:
        """Without the time that it took."""
        assert self.job.result is not None, self.job.error
        return {name: value for name, value in self.job.result["report"].items() if name != "seconds"}
