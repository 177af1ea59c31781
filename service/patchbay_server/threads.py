"""Inference in threads of its own, given up when nobody waits for it any more.

Requests queue for the engine: in the common pool they would keep probes, uploads and listings waiting too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Event
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi import Request

THREADS = 4
LOOK_S = 0.25
T = TypeVar("T")


async def run_inference(request: Request, function: Callable[[Event], T]) -> T:
    """`function(cancelled)` in a thread; `cancelled` is set when the client has gone."""
    limiter: anyio.CapacityLimiter = request.app.state.inference
    cancelled = Event()
    watch = asyncio.create_task(_watch(request, cancelled))
    try:
        return await anyio.to_thread.run_sync(function, cancelled, limiter=limiter)
    finally:
        watch.cancel()


async def _watch(request: Request, cancelled: Event) -> None:
    while not await request.is_disconnected():
        await anyio.sleep(LOOK_S)
    cancelled.set()
