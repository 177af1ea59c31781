"""A server that is told to end, over a real port: what is under way may finish, and nothing new begins."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

import httpx2
import pytest
from tests.service.held import Gate, before_pass, held
from tests.service.serving import Served, assert_error, ok
from tests.waiting import until

from patchbay_server.listen import Server, bind

BODY = {"model": "math", "prompt": "the cat", "max_tokens": 4, "temperature": 0}


@dataclass(frozen=True, slots=True)
class Running:
    server: Server
    thread: Thread
    client: httpx2.Client

    def tell(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    def complete(self) -> httpx2.Response:
        return self.client.post("/v1/completions", json=BODY)

    def has_ended(self) -> bool:
        self.thread.join(60)
        return not self.thread.is_alive()


@contextmanager
def running(served: Served) -> Iterator[Running]:
    """The server itself in a thread, where only signals have to be told to it."""
    listener = bind("127.0.0.1", 0)
    host, port = listener.getsockname()
    server = Server(served.app, (served.engine.drain, served.app.state.stopping.set), served.engine.stop)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    until(lambda: server.started)
    try:
        with httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
            yield Running(server, thread, client)
    finally:
        server.should_exit = True
        thread.join(60)


def refuses(client: httpx2.Client) -> bool:
    return client.get("/readyz").status_code == 503


def test_what_is_under_way_finishes_and_nothing_new_begins(llama: Served) -> None:
    with running(llama) as server, ThreadPoolExecutor(1) as pool:
        alone = ok(server.complete())["choices"]
        with held(llama) as gate:
            asked = pool.submit(server.complete)
            assert gate.entered.wait(60)
            assert ok(server.client.get("/readyz"))["status"] == "ready"
            server.tell()
            until(lambda: refuses(server.client))
            assert_error(server.client.get("/readyz"), 503, "shutting_down")
            assert_error(server.complete(), 503, "shutting_down")
            assert ok(server.client.get("/healthz")) == {"status": "ok"}
            assert not asked.done()
            gate.opened.set()
            assert ok(asked.result(60))["choices"] == alone
        assert server.has_ended()


def test_what_takes_too_long_is_told_why_it_ends(llama: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay_server.listen.DRAIN_S", 0.2)
    with running(llama) as server, ThreadPoolExecutor(1) as pool, held(llama) as gate:
        asked = pool.submit(server.complete)
        assert gate.entered.wait(60)
        server.tell()
        until(lambda: server.server.should_exit)
        gate.opened.set()
        assert "shutting down" in assert_error(asked.result(60), 503, "shutting_down")
        assert server.has_ended()


def test_told_twice_it_does_not_wait(llama: Served) -> None:
    with running(llama) as server, ThreadPoolExecutor(1) as pool, held(llama) as gate:
        asked = pool.submit(server.complete)
        assert gate.entered.wait(60)
        server.tell()
        until(lambda: refuses(server.client))
        server.tell()
        until(lambda: llama.engine.language.generator._stopped is not None)
        gate.opened.set()
        assert_error(asked.result(60), 503, "shutting_down")
        assert server.has_ended()


def test_an_idle_server_ends_at_once(vit: Served) -> None:
    with running(vit) as server:
        ok(server.client.get("/readyz"))
        server.tell()
        assert server.has_ended()


def test_a_closed_engine_answers_nobody(llama: Served) -> None:
    ok(llama.post("/v1/completions", BODY))
    with ThreadPoolExecutor(2) as pool, held(llama) as gate:
        asked = pool.submit(llama.post, "/v1/completions", BODY)
        assert gate.entered.wait(60)
        closed = pool.submit(llama.engine.close)
        until(lambda: llama.engine.language.loop._stopping)
        gate.opened.set()
        closed.result(60)
        assert_error(asked.result(60), 503, "shutting_down")
    assert_error(llama.post("/v1/completions", BODY), 503, "shutting_down")


def test_a_stream_that_takes_too_long_ends_with_the_error(llama: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay_server.listen.DRAIN_S", 0.2)
    gate, passes = Gate(), itertools.count()
    body = {**BODY, "max_tokens": 40, "stream": True, "ignore_eos": True}
    with running(llama) as server, before_pass(llama, lambda: gate.wait() if next(passes) else None):
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            assert stream.status_code == 200 and gate.entered.wait(60)
            server.tell()
            until(lambda: server.server.should_exit)
            gate.opened.set()
            events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        assert json.loads(events[-1])["error"]["code"] == "shutting_down"
        assert server.has_ended()
