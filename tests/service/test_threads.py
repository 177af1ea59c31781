"""Inference under pressure: it neither blocks what is not inference nor goes on for nobody."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import anyio
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message
from tests.service.serving import Served, ok

from patchbay_server.threads import THREADS, run_inference


def test_probes_and_listings_answer_while_inference_queues(vit: Served) -> None:
    image = {"array": [[[0.0] * 16] * 16] * 3}
    with ThreadPoolExecutor(60) as pool, ExitStack() as hold:
        hold.enter_context(vit.app.state.engine._lock)
        waiting = [pool.submit(vit.post, "/v1/classify", {"model": "base", "input": image}) for _ in range(50)]
        deadline = time.monotonic() + 30
        while vit.app.state.inference.statistics().borrowed_tokens < THREADS and time.monotonic() < deadline:
            time.sleep(0.01)
        for path in ("/healthz", "/readyz", "/v1/models", "/v1/deltas", "/metrics"):
            assert pool.submit(vit.get, path).result(timeout=20).status_code == 200, path
        assert not any(one.done() for one in waiting)
        hold.close()
        assert all(ok(one.result(timeout=60)) for one in waiting)


def request_of(app: FastAPI, messages: list[Message]) -> Request:
    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await anyio.sleep_forever()
        raise AssertionError

    return Request({"type": "http", "app": app, "method": "GET", "path": "/", "headers": []}, receive)


def app_with_threads() -> FastAPI:
    app = FastAPI()
    app.state.inference = anyio.CapacityLimiter(1)
    return app


def test_a_client_that_left_is_noticed() -> None:
    async def main() -> bool:
        request = request_of(app_with_threads(), [{"type": "http.disconnect"}])
        return await run_inference(request, lambda cancelled: cancelled.wait(20))

    assert anyio.run(main) is True


def test_a_client_that_waits_is_answered_and_errors_are_its_own() -> None:
    async def main() -> int:
        request = request_of(app_with_threads(), [])
        with pytest.raises(ZeroDivisionError):
            await run_inference(request, lambda cancelled: 1 // 0)
        return await run_inference(request, lambda cancelled: int(cancelled.is_set()))

    assert anyio.run(main) == 0
    assert threading.active_count() < 100
