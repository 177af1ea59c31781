"""Workers killed with SIGKILL, again and again: a compression ends as if nothing had happened, in the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.processes import ENVIRONMENT, ended
from tests.long import LONG
from tests.service.compressing import blobs_of, digest_of

from patchbay.checkpoint import Checkpoint
from patchbay.store import FileBlobs, Hub, SqliteCatalog
from patchbay_server.jobs.base import Job, Json, State
from patchbay_server.jobs.sqlite import SqliteQueue

FORKING = Path(__file__).with_name("forking.py")
ROOT = Path(__file__).parents[2]
KILLS = 11 if LONG else 5
EVALUATIONS = 60  # at most
BOUNDS = {"target_size": {"target_size": 15_000}, "target_kl": {"target_kl": 0.00003}}
TEXTS = b"the cat runs\na big dog eats one fox\nmy owl likes good film\nbad\nred green two is not small\n"
LABELS = b"cat\ndog\nowl\ncat\ndog\n"
DEADLINE_S = 60.0
T = "default"


class Forker:
    """Real workers, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout
        self.count, self.worker = 0, 0

    @property
    def owner(self) -> str:
        return f"worker-{self.count}"

    def start(self, store: Path) -> None:
        self.count += 1
        self._orders.write(f"{self.owner} {store}\n")
        self._orders.flush()
        self.worker = int(self._answers.readline())

    def kill(self, queue: SqliteQueue) -> None:
        """And say so, as the server does that watches its workers."""
        self.close()
        queue.expire(self.owner)

    def close(self) -> None:
        if self.worker:
            os.kill(self.worker, signal.SIGKILL)
        self.worker = 0


@pytest.fixture(scope="module")
def forker(model_folder: Callable[..., Path]) -> Iterator[Forker]:
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, str(FORKING), str(model_folder("bert_classifier"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with ended(process):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        forker = Forker(process)
        try:
            yield forker
        finally:
            forker.close()  # it holds the pipes that the end waits for


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def request_of(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path]
) -> Callable[[Path, Mapping[str, object]], Json]:
    """The spec of a search on calibration inputs, whose blobs are put into the store."""

    def make(store: Path, bound: Mapping[str, object]) -> Json:
        named = blobs_of(finetune_folder("bert_classifier"))
        with closing(FileBlobs(store / "blobs")) as blobs:
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
        fingerprint = Checkpoint.open(model_folder("bert_classifier")).fingerprint
        return {"request": request | bound, "fingerprint": fingerprint}

    return make


@dataclass(frozen=True, slots=True)
class Outcome:
    """The ended job, its evaluations, and the bytes of every delta there is."""

    job: Job
    evaluations: list[Json]
    deltas: list[bytes]

    @property
    def report(self) -> dict[str, Any]:
        """Without the time that it took."""
        assert self.job.result is not None, self.job.error
        return {name: value for name, value in self.job.result["report"].items() if name != "seconds"}


def is_over(queue: SqliteQueue, job: Job) -> bool:
    return queue.get(T, job.id).state.is_final


def run(forker: Forker, store: Path, spec: Json, kills: int, evaluations: int) -> Outcome:
    """A job whose worker is killed `kills` times, in the middle of a search of that many evaluations."""
    source = random.Random(kills)
    with closing(SqliteQueue(store / "jobs.db")) as queue:
        job, _ = queue.submit(T, "compression", spec)
        for kill in range(kills):
            forker.start(store)
            # At least one evaluation further, so that no job is given up, then anywhere: even in the last one's commit.
            further = 1 + len(queue.evaluations(job.id)) + source.randrange(evaluations // kills)
            wanted = min(further, evaluations - (kills - kill - 1))
            wait_for(lambda wanted=wanted: len(queue.evaluations(job.id)) >= wanted or is_over(queue, job))
            time.sleep(source.random() * 0.02)
            forker.kill(queue)
            assert not is_over(queue, job), queue.get(T, job.id).error
        forker.start(store)
        wait_for(lambda: is_over(queue, job))
        forker.kill(queue)
        done, found = queue.get(T, job.id), queue.evaluations(job.id)
    with closing(Hub(SqliteCatalog(store / "catalog.db"), FileBlobs(store / "blobs"), frozenset())) as hub:
        digests = [record.digest for record in hub.catalog.list_versions(T, "math")]
        return Outcome(done, found, [hub.open_blob(digest).read_bytes() for digest in digests])


@pytest.mark.parametrize("bound", BOUNDS if LONG else ["target_size"])
def test_killed_again_and_again_it_ends_in_identical_weights(
    forker: Forker, request_of: Callable[[Path, Mapping[str, object]], Json], tmp_path: Path, bound: str
) -> None:
    folders = tmp_path / "whole", tmp_path / "killed"
    specs = [request_of(folder, BOUNDS[bound]) for folder in folders]
    whole = run(forker, folders[0], specs[0], kills=0, evaluations=0)
    killed = run(forker, folders[1], specs[1], kills=KILLS, evaluations=len(whole.evaluations))
    assert (whole.job.state, whole.job.attempt) == (State.DONE, 1)
    assert (killed.job.state, killed.job.attempt) == (State.DONE, KILLS + 1)
    assert len(whole.evaluations) > 2 * KILLS and killed.evaluations == whole.evaluations
    assert len(whole.deltas) == 1 and killed.deltas == whole.deltas
    assert killed.report == whole.report
    assert not [path for path in (folders[1] / "blobs" / "tmp").rglob("*") if path.is_file() and path.name != ".lock"]
