"""Jobs over HTTP: looked at, followed event by event, cancelled."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.jobs.searching import search
from tests.service.compressing import compressed, put_folder
from tests.service.serving import Serve, Served, assert_error, ok

from patchbay_server.jobs.base import JobQueue, State, lease_of
from patchbay_server.jobs.worker import Worker

SPEC = {"request": {"name": "quadratic"}, "seed": 3, "budget": 30, "work": 0}
T = "default"


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve("vit")


@pytest.fixture
def queue(served: Served) -> JobQueue:
    queue: JobQueue = served.app.state.queue
    return queue


def run_search(queue: JobQueue) -> str:
    job, _ = queue.submit(T, "search", SPEC)
    assert Worker(queue, "ann", lambda: {"search": search}).run_one()
    return job.id


def events(served: Served, job: str, after: int | None = None) -> list[tuple[int, str, Any]]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    response = served.client.get(f"/v1/jobs/{job}/events", headers=headers)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_listed_and_shown(served: Served, queue: JobQueue) -> None:
    assert ok(served.get("/v1/jobs")) == {"data": []}
    done, waiting = run_search(queue), queue.submit(T, "search", SPEC)[0].id
    listed = ok(served.get("/v1/jobs"))["data"]
    assert [job["id"] for job in listed] == [waiting, done]
    assert ok(served.get("/v1/jobs?limit=1"))["data"] == listed[:1]
    assert ok(served.get(f"/v1/jobs/{done}")) == listed[1]
    assert (listed[1]["state"], listed[1]["request"], listed[1]["attempt"]) == ("done", SPEC["request"], 1)
    assert listed[1]["progress"]["evaluation"] == 30
    assert "fingerprint" not in listed[0] and "owner" not in listed[0]


@pytest.mark.parametrize("path", ["/v1/jobs/nope", "/v1/jobs/nope/events", "/v1/jobs/%ed%a0%80"])
def test_no_such_job(served: Served, path: str) -> None:
    assert_error(served.get(path), 404, "not_found", "job")
    if not path.endswith("events"):
        assert_error(served.delete(path), 404, "not_found", "job")


@pytest.mark.parametrize("limit", [0, 1001, "x"])
def test_limits(served: Served, limit: object) -> None:
    assert_error(served.get(f"/v1/jobs?limit={limit}"), 422, "invalid_request", "limit")


def test_cancelling(served: Served, queue: JobQueue) -> None:
    waiting, _ = queue.submit(T, "search", SPEC)
    assert ok(served.delete(f"/v1/jobs/{waiting.id}"))["state"] == "cancelled"
    queue.submit(T, "search", SPEC)
    running = queue.claim("ann", 30.0)
    assert running is not None
    body = ok(served.delete(f"/v1/jobs/{running.id}"))
    assert (body["state"], body["cancelling"]) == ("running", True)
    queue.finish(lease_of(running), State.CANCELLED)
    done = run_search(queue)
    assert ok(served.delete(f"/v1/jobs/{done}"))["state"] == "done"
    assert [kind for _, kind, _ in events(served, waiting.id)] == ["state", "state"]


def test_events_from_any_place_on(served: Served, queue: JobQueue) -> None:
    job = run_search(queue)
    whole = events(served, job)
    assert [number for number, _, _ in whole] == list(range(1, len(whole) + 1))
    assert [data["state"] for _, kind, data in whole if kind == "state"] == ["queued", "running", "done"]
    assert whole[-1][2]["result"] == ok(served.get(f"/v1/jobs/{job}"))["result"]
    fields = {"evaluation", "evaluations", "best_score", "stage", "done", "total", "eta_seconds"}
    assert {kind: set(data) for _, kind, data in whole}["progress"] == fields
    for after in range(len(whole) + 2):
        assert events(served, job, after) == whole[after:]


@pytest.mark.parametrize("bad", ["x", "-1", "1e3", str(1 << 60)])
def test_an_event_id_that_is_none(served: Served, queue: JobQueue, bad: str) -> None:
    job, _ = queue.submit(T, "search", SPEC)
    response = served.client.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": bad})
    assert_error(response, 422, "invalid_request", "last-event-id")


def test_a_stream_waits_for_the_end(served: Served, queue: JobQueue) -> None:
    """The answer is complete only when the job is: it starts before the worker does."""
    job, _ = queue.submit(T, "search", SPEC)
    found: list[Any] = []
    follower = threading.Thread(target=lambda: found.extend(events(served, job.id)))
    follower.start()
    assert Worker(queue, "ann", lambda: {"search": search}).run_one()
    follower.join()
    assert [(n, kind, data) for n, kind, data in found] == [
        (event.number, event.kind, event.data) for event in queue.events(job.id, 0)
    ]


def test_a_stream_ends_when_the_server_does(served: Served, queue: JobQueue) -> None:
    job, _ = queue.submit(T, "search", SPEC)
    found: list[Any] = []
    follower = threading.Thread(target=lambda: found.extend(events(served, job.id)))
    follower.start()
    served.app.state.stopping.set()
    follower.join(timeout=30)
    assert not follower.is_alive() and len(found) <= 1


def gauges(served: Served) -> dict[str, float]:
    families = text_string_to_metric_families(served.get("/metrics").text)
    return {s.labels["state"]: s.value for f in families for s in f.samples if s.name == "patchbay_jobs"}


def test_jobs_are_counted_by_state(served: Served, queue: JobQueue) -> None:
    assert gauges(served) == dict.fromkeys(State, 0)
    run_search(queue)
    queue.submit(T, "search", SPEC)
    assert gauges(served) == {**dict.fromkeys(State, 0), "done": 1, "queued": 1}


def test_the_other_metrics_outlive_the_queue(served: Served, queue: JobQueue) -> None:
    queue.close()
    assert set(map(str, gauges(served).values())) == {"nan"}
    assert_error(served.get("/v1/jobs"), 503, "store_unavailable")
    ok(served.get("/v1/deltas"))


def test_a_compression_reports_its_stages(served: Served, finetune_folder: Callable[..., Path]) -> None:
    job = compressed(served, {"name": "math", "files": put_folder(served, finetune_folder("vit"))})
    assert job["progress"]["total"] > 0 and job["progress"]["stage"]
    assert [data["state"] for _, kind, data in events(served, job["id"]) if kind == "state"][-1] == "done"
