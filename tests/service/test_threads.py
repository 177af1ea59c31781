"""Inference under pressure: it neither blocks what is not inference nor goes on for nobody."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import anyio
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message
from tests.service.serving import Serve, Served, assert_error, ok
from tests.waiting import until

from patchbay_server.threads import THREADS, Threads, run_inference


def test_probes_and_listings_answer_while_inference_queues(vit: Served) -> None:
    image = {"array": [[[0.0] * 16] * 16] * 3}
    with ThreadPoolExecutor(60) as pool, ExitStack() as hold:
        hold.enter_context(vit.app.state.engine._lock)
        waiting = [pool.submit(vit.post, "/v1/classify", {"model": "base", "input": image}) for _ in range(50)]
        until(lambda: vit.app.state.inference.limiter.statistics().borrowed_tokens == THREADS)
        for path in ("/healthz", "/readyz", "/v1/models", "/v1/deltas", "/metrics"):
            assert pool.submit(vit.get, path).result(timeout=20).status_code == 200, path
        assert not any(one.done() for one in waiting)
        hold.close()
        assert all(ok(one.result(timeout=60)) for one in waiting)


def test_who_waits_too_long_and_who_finds_the_queue_full(serve: Serve) -> None:
    vit = serve("vit", max_waiting=2)
    image = {"model": "base", "input": {"array": [[[0.0] * 16] * 16] * 3}}
    threads = vit.app.state.inference.limiter
    with ThreadPoolExecutor(60) as pool, ExitStack() as hold:
        hold.enter_context(vit.engine._lock)
        asked = [pool.submit(vit.post, "/v1/classify", image) for _ in range(THREADS)]
        until(lambda: len(vit.engine.encoders._waiting) == THREADS)
        waiting = [pool.submit(vit.post, "/v1/classify", {**image, "timeout": 0.01}) for _ in range(2)]
        until(lambda: threads.statistics().tasks_waiting == 2)
        refused = pool.submit(vit.post, "/v1/classify", image).result(30)
        assert "2 requests are waiting" in assert_error(refused, 429, "queue_full")
        assert refused.headers["retry-after"] == "1"
        hold.close()
        assert all(ok(one.result(60)) for one in asked)
        for late in waiting:
            assert_error(late.result(60), 504, "deadline_exceeded")


def request_of(app: FastAPI, messages: list[Message]) -> Request:
    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await anyio.sleep_forever()
        raise AssertionError

    return Request({"type": "http", "app": app, "method": "GET", "path": "/", "headers": []}, receive)


def app_with_threads() -> FastAPI:
    app = FastAPI()
    app.state.inference = Threads(1, 1)
    return app


def test_a_client_that_left_is_noticed() -> None:
    async def main() -> bool:
        request = request_of(app_with_threads(), [{"type": "http.disconnect"}])
        return await run_inference(request, lambda patience: patience.gone.wait(20))

    assert anyio.run(main) is True


def test_a_client_that_waits_is_answered_and_errors_are_its_own() -> None:
    async def main() -> int:
        request = request_of(app_with_threads(), [])
        with pytest.raises(ZeroDivisionError):
            await run_inference(request, lambda _: 1 // 0)
        return await run_inference(request, lambda patience: int(patience.gone.is_set()))

    assert anyio.run(main) == 0
    assert threading.active_count() < 100
