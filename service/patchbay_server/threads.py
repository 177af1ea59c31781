"""Inference in threads of its own, given up when nobody waits for it any more.

Requests queue for the engine: in the common pool they would keep probes, uploads and listings waiting too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from threading import Event
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi import Request

from patchbay.engine.patience import Patience
from patchbay.errors import QueueFull

THREADS = 32  # requests to an encoder that can share a batch
LOOK_S = 0.25
T = TypeVar("T")


class Threads:
    """So many requests run at a time, and `max_waiting` more may wait for them."""

    def __init__(self, max_waiting: int, count: int = THREADS) -> None:
        self.limiter = anyio.CapacityLimiter(count)
        self._max_waiting = max_waiting

    async def run(self, function: Callable[[], T]) -> T:
        """Raises QueueFull."""
        waiting = self.limiter.statistics().tasks_waiting
        if waiting >= self._max_waiting:
            raise QueueFull(f"{waiting} requests are waiting already: ask again later")
        return await anyio.to_thread.run_sync(function, limiter=self.limiter)


async def run_inference(request: Request, function: Callable[[Patience], T], timeout: float | None = None) -> T:
    """`function(patience)` in a thread. Its time, in seconds, runs from now on; once the client has gone nobody waits.
    Raises QueueFull.
    """
    threads: Threads = request.app.state.inference
    gone = Event()
    until = None if timeout is None else time.monotonic() + timeout
    async with leaving(request, gone.set):
        return await threads.run(partial(function, Patience(until, gone)))


@asynccontextmanager
async def leaving(request: Request, tell: Callable[[], None]) -> AsyncIterator[None]:
    """While inside, `tell()` is called when the client has gone."""
    watch = asyncio.create_task(_watch(request, tell))
    try:
        yield
    finally:
        watch.cancel()


async def _watch(request: Request, tell: Callable[[], None]) -> None:
    while not await request.is_disconnected():
        await anyio.sleep(LOOK_S)
    tell()
