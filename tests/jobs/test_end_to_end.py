"""The whole of it on real processes: files go up, worker and server are killed, the delta is served."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx2
from tests import pico
from tests.e2e.processes import forking
from tests.service.compressing import blobs_of
from tests.service.serving import ok
from tests.waiting import until

from patchbay_server.jobs.base import State
from patchbay_server.jobs.sqlite import SqliteQueue

IMAGE = {"array": [[[0.1] * pico.IMAGE] * pico.IMAGE] * 3}


def workers_of(server: int) -> list[int]:
    """The ids of the server's child processes; whichever of its threads has started them."""
    lists = Path(f"/proc/{server}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def running(client: httpx2.Client, place: str, attempt: int) -> bool:
    job = ok(client.get(place))
    return bool(job["state"] == "running" and job["attempt"] == attempt)


def test_a_compression_outlives_its_worker_and_its_server(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with forking(model_folder("vit"), tmp_path) as forker:
        client = forker.start()
        files = {}
        for name, (digest, data) in blobs_of(finetune_folder("vit")).items():
            ok(client.put(f"/v1/blobs/{digest}", content=data), 201)
            files[name] = digest
        body = {"name": "math", "files": files, "density": 0.3}
        headers = {"Idempotency-Key": "once"}
        place = client.post("/v1/compressions", json=body, headers=headers).headers["location"]

        # The worker takes the job and then imports for seconds: time enough to die in.
        until(lambda: running(client, place, attempt=1))
        assert forker.server is not None
        [worker] = workers_of(forker.server)
        os.kill(worker, signal.SIGKILL)
        until(lambda: running(client, place, attempt=2))
        [worker] = workers_of(forker.server)
        forker.kill()
        until(lambda: not is_alive(worker))
        with closing(SqliteQueue(tmp_path / "jobs.db")) as queue:
            [job] = queue.list_jobs("default", 2)
            assert (job.state, job.losses) == (State.QUEUED, 1)  # given back: a server that is gone is no fault of its

        client = forker.start()
        until(lambda: ok(client.get(place))["state"] == "done")
        assert client.post("/v1/compressions", json=body, headers=headers).headers["location"] == place
        assert ok(client.get(place))["attempt"] == 3
        assert len(ok(client.get("/v1/deltas/math"))["versions"]) == 1
        answers = [ok(client.post("/v1/classify", json={"model": m, "input": IMAGE})) for m in ("math", "base")]
        assert answers[0]["data"] != answers[1]["data"]
        assert ok(client.post("/v1/base/verify"))["ok"] is True

        server = forker.server
        assert server is not None
        [worker] = workers_of(server)
        os.kill(worker, signal.SIGSTOP)  # the next job waits
        place = client.post("/v1/compressions", json=body).headers["location"]
        with client.stream("GET", f"{place}/events") as response:
            stream = iter(httpx2.EventSource(response))
            assert next(stream).event == "state"
            os.kill(server, signal.SIGTERM)
            assert list(stream) == []  # it ends, and is not cut off
        os.kill(worker, signal.SIGCONT)
        until(lambda: not is_alive(server) and not is_alive(worker))
        forker.server = None
