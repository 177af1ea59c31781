"""Inference in threads of its own, given up when nobody waits for it any more.

Requests queue for the engine: in the common pool they would keep probes, uploads and listings waiting too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from threading import Event
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi import Request

THREADS = 32  # requests to an encoder that can share a batch
LOOK_S = 0.25
T = TypeVar("T")


async def run_inference(request: Request, function: Callable[[Event], T]) -> T:
    """`function(cancelled)` in a thread; `cancelled` is set when the client has gone."""
    limiter: anyio.CapacityLimiter = request.app.state.inference
    cancelled = Event()
    async with leaving(request, cancelled.set):
        return await anyio.to_thread.run_sync(function, cancelled, limiter=limiter)


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
