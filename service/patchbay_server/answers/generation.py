"""One request's answers, from the engine's thread to the event loop that waits for them.

Knows nothing of HTTP and of how answers are written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from patchbay.engine.language import Language, Ticket
from patchbay.engine.request import Request, Update
from patchbay.errors import Cancelled
from patchbay_server.limits import Settle


@dataclass(slots=True)
class Clock:
    """When what happened, in seconds since the request came."""

    arrived: float = field(default_factory=time.perf_counter)
    taken: float | None = None  # by a thread that prepares it
    submitted: float | None = None
    first: float | None = None
    last: float | None = None

    def now(self) -> float:
        return time.perf_counter() - self.arrived

    def show(self) -> dict[str, float | None]:
        """The `timings` of an answer, in milliseconds. What is not over yet is None."""
        prepared = None if self.submitted is None or self.taken is None else self.submitted - self.taken
        times = {"queue": self.taken, "prepare": prepared, "first_token": self.first, "total": self.last}
        return {f"{name}_ms": None if seconds is None else round(1000 * seconds, 3) for name, seconds in times.items()}


class Generation:
    """The updates of all answers of one request, in the order in which they come; made in an event loop. Whoever makes
    it closes it: what is still under way then is cancelled.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[Update] = asyncio.Queue()
        self._language: Language | None = None
        self._ticket: Ticket | None = None
        self._left = 0
        self._settle: Settle = lambda used: None
        self._used = 0  # tokens: those of the prompts once they are submitted, and of the answers as they come

    def sink(self, update: Update) -> None:
        """Called in the engine's thread, whose business it is not that the loop may have ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._updates.put_nowait, update)

    def submit(self, language: Language, requests: Sequence[Request], prompt_tokens: int, settle: Settle) -> None:
        """Requests that have this generation's `sink`; in any thread. `settle` is told at the end how many tokens it
        were, of prompts and answers. Raises QueueFull, ShuttingDown.
        """
        self._language, self._left, self._settle = language, len(requests), settle
        self.clock.submitted = self.clock.now()
        self._ticket = language.submit(requests)
        self._used += prompt_tokens

    def give_up(self) -> None:
        """Ends the waiting with Cancelled."""
        self._updates.put_nowait(Update(0, error=Cancelled("the client has gone")))

    def close(self) -> None:
        """Memory of answers that are not over is free at the next token."""
        ticket, self._ticket = self._ticket, None  # it holds the requests, and their sink this
        if self._left and self._language is not None and ticket is not None:
            self._language.cancel(ticket)
        self._left = 0
        self._settle(self._used)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Update:
        """Raises what the first answer that failed has failed of."""
        if not self._left:
            raise StopAsyncIteration
        update = await self._updates.get()
        if update.error is not None:
            try:
                raise update.error
            finally:
                del update  # the error's traceback holds this frame: they would hold each other, and a delta in memory
        self._left -= update.is_last
        self._used += len(update.tokens)
        now = self.clock.now()
        self.clock.first = self.clock.first or now
        if not self._left:
            self.clock.last = now
            self.close()
        return update
