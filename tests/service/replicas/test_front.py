"""Two replicas behind one address answer as one server does."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.service.held import before_pass
from tests.service.logged import logged
from tests.service.replicas.fleet import Fronted, fronted
from tests.service.replicas.test_relay import EVENTS, HEAD, chunk, says
from tests.service.serving import assert_error, ok
from tests.waiting import until

from patchbay_server.replicas.relay import KEPT_BACK

NAMES = ("math", "code", "law", "art")
KEY = "k" * 20
HALF = HEAD + b"content-length: %d\r\n\r\n" % (3 * KEPT_BACK) + b"x" * 2 * KEPT_BACK
PLAIN = {"prompt": "the cat", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def files(delta_file: Callable[..., Path]) -> dict[str, bytes]:
    return {name: delta_file("llama", seed).read_bytes() for seed, name in enumerate(NAMES, 1)}


@pytest.fixture
def two(model_folder: Callable[..., Path], tmp_path: Path, files: dict[str, bytes]) -> Iterator[Fronted]:
    """With four deltas, asked for with a key."""
    with fronted(model_folder("llama"), tmp_path / "store", "one", "two", api_key=KEY) as running:
        running.client.headers["authorization"] = f"Bearer {KEY}"
        for name, data in files.items():
            ok(running.client.post("/v1/deltas", params={"name": name}, content=data), 201)
        running.fleet.sent.clear()
        yield running


def complete(two: Fronted, model: str, **more: Any) -> httpx2.Response:
    return two.client.post("/v1/completions", json={"model": model, **PLAIN, **more})


@contextmanager
def slowed(two: Fronted) -> Iterator[None]:
    """A forward pass takes a while: pico models are done before anybody can hang up."""
    with ExitStack() as stack:
        for replica in two.fleet.replicas.values():
            stack.enter_context(before_pass(replica._engine, lambda: time.sleep(0.02)))
        yield


def routed(two: Fronted) -> dict[str, float]:
    text = two.client.get("/metrics").text
    return {why: float(n) for why, n in re.findall(r'patchbay_routed_total\{outcome="(\w+)".*\} (\S+)', text)}


def test_a_delta_is_loaded_by_one_replica_and_all_requests_for_it_go_there(two: Fronted) -> None:
    for _ in range(5):
        for name in NAMES:
            ok(complete(two, name))
    sent = [tuple(two.fleet.sent[start : start + 4]) for start in range(0, 20, 4)]
    assert len(set(sent)) == 1 and sorted(sent[0]) == ["one", "one", "two", "two"]
    assert routed(two) == {"any": 4, "cold": 4, "hit": 16, "spilled": 0}
    metrics = two.client.get("/metrics").text
    misses = re.findall(r'patchbay_delta_cache_misses_total\{replica="(\w+)"\} (\S+)', metrics)
    assert sorted(misses) == [("one", "2.0"), ("two", "2.0")]


def test_a_merge_goes_where_all_of_its_deltas_are(two: Fronted) -> None:
    ok(complete(two, "math + code"))
    ok(complete(two, "law"))
    [both, other] = two.fleet.sent
    assert both != other
    for model in ("0.3*code - math", "math", "code@1"):
        ok(complete(two, model))
    assert two.fleet.sent[2:] == [both] * 3


def test_what_is_changed_through_one_is_seen_through_the_other(two: Fronted, files: dict[str, bytes]) -> None:
    one, two_ = [httpx2.Client(base_url=url, headers=two.client.headers) for url in _urls(two)]
    with one, two_:
        for changing, seeing in ((one, two_), (two_, one)):
            version = ok(changing.post("/v1/deltas", params={"name": "math"}, content=files["law"]), 201)["version"]
            answer = ok(seeing.post("/v1/completions", json={"model": "math", **PLAIN}))
            assert answer["patchbay"]["deltas"][0]["version"] == version
            ok(changing.put("/v1/deltas/math/current", json={"version": 1}))
            assert ok(seeing.get("/v1/deltas/math"))["version"] == 1
            ok(changing.post("/v1/merges", json={"name": "both", "recipe": "math + code"}), 201)
            ok(seeing.post("/v1/completions", json={"model": "both", **PLAIN}))
            ok(changing.delete("/v1/merges/both"))
            assert_error(seeing.post("/v1/completions", json={"model": "both", **PLAIN}), 404, "not_found", "model")
            ok(changing.delete(f"/v1/deltas/math@{version}"))


def _urls(two: Fronted) -> list[str]:
    return [replica._url for replica in two.fleet.replicas.values()]


def test_answers_are_those_of_one_server_in_one_piece_or_streamed(two: Fronted) -> None:
    whole = ok(complete(two, "base", max_tokens=16, ignore_eos=True))
    with two.client.stream(
        "POST", "/v1/completions", json={"model": "base", **PLAIN, "max_tokens": 16, "ignore_eos": True, "stream": True}
    ) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == whole["choices"][0]["text"]
    assert len(lines) > 8, "in pieces"
    answer = two.client.get("/v1/models", headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert len(two.client.get("/v1/models").headers["x-request-id"]) == 32


def test_files_go_through_both_ways(two: Fronted, files: dict[str, bytes]) -> None:
    def chunks() -> Iterator[bytes]:
        for start in range(0, len(files["law"]), 1000):
            yield files["law"][start : start + 1000]

    ok(two.client.post("/v1/deltas", params={"name": "slow"}, content=chunks()), 201)
    answer = two.client.get("/v1/deltas/slow/file")
    assert answer.content == files["law"] and answer.headers["content-length"] == str(len(files["law"]))


def test_keys_are_asked_for_and_bodies_bounded_in_front(two: Fronted) -> None:
    bare = {"authorization": "Bearer wrong"}
    assert_error(two.client.get("/v1/models", headers=bare), 401, "unauthorized", "authorization")
    assert_error(two.client.get("/metrics", headers=bare), 401, "unauthorized", "authorization")
    assert (
        two.client.get("/readyz", headers=bare).status_code
        == two.client.get("/healthz", headers=bare).status_code
        == 200
    )
    assert_error(two.client.post("/v1/completions", content=b" " * (33 << 20)), 413, "body_too_large")
    assert_error(two.client.post("/v1/completions", content=b"{"), 422, "invalid_request", "body")
    assert_error(two.client.get("/nowhere"), 404, "unknown_route")
    assert two.fleet.sent == ["one", "one", "one"] or len(two.fleet.sent) == 3, "what was refused went nowhere"


def test_a_replica_that_is_gone_is_not_noticed(two: Fronted) -> None:
    for name in NAMES:
        ok(complete(two, name))
    gone = two.fleet.replicas["one"]
    gone.close()

    async def forgotten() -> str:  # as long as nobody knows better it is chosen: nothing listens where it was
        two.fleet.replicas.pop("one", None)
        return gone._url

    gone.url = forgotten  # type: ignore[method-assign]
    for name in NAMES:
        ok(complete(two, name))
    assert re.search(r"patchbay_replicas_lost_total\{.*\} 1.0", two.client.get("/metrics").text)


@contextmanager
def breaking(two: Fronted, answer: bytes) -> Iterator[None]:
    """Whichever replica is asked begins so, and hangs up."""
    at = {replica: replica.url for replica in two.fleet.replicas.values()}
    with says(answer) as url:

        async def elsewhere() -> str:
            return url

        for replica in at:
            replica.url = elsewhere  # type: ignore[method-assign]
        yield
    for replica, before in at.items():
        replica.url = before  # type: ignore[method-assign]


@pytest.mark.parametrize(("answer", "status"), [(EVENTS + chunk(b"data: 1\n\n"), 200), (HALF, 200), (b"", 503)])
def test_an_answer_that_breaks_off_counts_as_lost_and_is_told_of(two: Fronted, answer: bytes, status: int) -> None:
    with logged() as log:
        with breaking(two, answer), suppress(httpx2.RemoteProtocolError):
            two.client.post("/v1/merges", json={"name": "both", "recipe": "math"}, headers={"x-request-id": "lost"})
        until(lambda: bool(log.requests))
    [line] = log.requests
    told = ("lost", "/v1/merges", "POST", status, "engine_failed")
    assert tuple(line[field] for field in ("request_id", "route", "method", "status", "code")) == told
    text = two.client.get("/metrics").text
    assert re.search(r"patchbay_replicas_lost_total\{.*\} 1.0", text)
    series = rf'method="POST",replica="front-\w+",route="/v1/merges",status="{status}"'
    assert re.search(rf"patchbay_http_requests_total\{{{series}\}} 1.0", text)


def test_every_request_is_one_line_whoever_answers_it(two: Fronted) -> None:
    bare = {"authorization": "Bearer wrong"}
    with logged() as log:
        ok(complete(two, "math"))
        assert two.client.get("/v1/models", headers=bare).status_code == 401
        assert two.client.post("/v1/completions", content=b" " * (33 << 20)).status_code == 413
        assert two.client.get("/nowhere").status_code == 404
        for path in ("/healthz", "/readyz", "/metrics"):
            assert two.client.get(path, headers={"x-request-id": path[1:]}).status_code == 200
        with (
            slowed(two),
            two.client.stream(
                "POST", "/v1/completions", json={"model": "base", **PLAIN, "max_tokens": 200, "stream": True}
            ) as stream,
        ):
            next(stream.iter_lines())
        until(lambda: len(log.requests) == 8)
    told = [(line["route"], line["status"], line["level"]) for line in log.requests]
    assert told == [
        ("/v1/completions", 200, "info"),
        ("unknown", 401, "info"),
        ("unknown", 413, "info"),
        ("unknown", 404, "info"),
        ("/healthz", 200, "debug"),
        ("/readyz", 200, "debug"),
        ("/metrics", 200, "debug"),
        ("/v1/completions", 200, "info"),
    ]
    assert [line["request_id"] for line in log.requests[4:7]] == ["healthz", "readyz", "metrics"]
    assert log.requests[0]["model"] == "math", "its replica knows more than the front"


def test_pins_are_everywhere_and_gone_with_what_they_pin(two: Fronted) -> None:
    ok(two.client.post("/v1/deltas/math/pin"))
    assert two.client.post("/v1/deltas/lost/pin").status_code == 404
    pools = [replica._engine.recipes.deltas for replica in two.fleet.replicas.values()]
    assert [pool.pinned_bytes > 0 for pool in pools] == [True, True]
    ok(two.client.post("/v1/deltas/math/unpin"))
    assert [pool.pinned_bytes for pool in pools] == [0, 0]
    ok(two.client.post("/v1/deltas/math/pin"))
    ok(two.client.delete("/v1/deltas/math"))
    until(lambda: [pool.pinned_bytes for pool in pools] == [0, 0])


def test_who_hangs_up_is_not_written_for(two: Fronted) -> None:
    many = {"model": "base", **PLAIN, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with slowed(two), two.client.stream("POST", "/v1/completions", json=many) as stream:
        next(stream.iter_lines())
    until(lambda: all(replica._counted.under_way == 0 for replica in two.fleet.replicas.values()))
    engines = [replica._engine for replica in two.fleet.replicas.values()]
    assert sum(engine.language.generator.counts.generated_tokens for engine in engines) < 200


def test_told_to_end_it_finishes_what_it_has_begun(two: Fronted) -> None:
    many = {"model": "base", **PLAIN, "max_tokens": 100, "ignore_eos": True, "stream": True}
    with slowed(two), two.client.stream("POST", "/v1/completions", json=many) as stream:
        lines = stream.iter_lines()
        next(lines)
        two.server.handle_exit(15, None)
        until(lambda: two.front._draining)
        with httpx2.Client(base_url=two.client.base_url, headers=two.client.headers) as other:
            assert_error(other.get("/readyz"), 503, "shutting_down")
            assert_error(other.post("/v1/completions", json=many), 503, "shutting_down")
        assert [line for line in lines if line][-1] == "data: [DONE]"
