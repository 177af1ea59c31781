"""What is kept in memory under a byte budget, least recently used out first, each value made once.

Knows nothing of what it holds.
"""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Condition
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from patchbay.engine.patience import FOREVER, LOOK_S, Patience
from patchbay.errors import CacheFull, QueueFull

POLL_S = 0.02
COLLECT_S = 5.0  # between two searches for cycles, each of which stops everybody for a tenth of a second


class Sized(Protocol):
    @property
    def num_bytes(self) -> int: ...


V = TypeVar("V", bound=Sized)


class Pool(Generic[V]):
    """A byte-bounded LRU with single flight: a second caller for a key waits for the first one's value.

    What was thrown out and is still used by somebody counts until nobody does, and is found again by its key. Where
    all memory is so in use, whoever needs another value waits `max_wait` seconds for some of it. A value larger than
    the budget is made and handed out, and not kept. What is pinned counts and is never thrown out.
    """

    def __init__(self, max_bytes: int, *, max_wait: float = 0) -> None:
        self.max_bytes, self.max_wait = max_bytes, max_wait
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._values: OrderedDict[str, V] = OrderedDict()
        self._alive: WeakValueDictionary[str, V] = WeakValueDictionary()  # `_values`, and what left and is still used
        self._pinned: dict[str, V] = {}
        self._pending: set[str] = set()
        self.relieve: Callable[[], None] = lambda: None  # lets go of what is used for nothing but speed
        self._line: dict[object, int] = {}  # who waits for room, the first first, and the bytes that each holds
        self._collected = -COLLECT_S
        self._changed = Condition()

    def get(self, key: str, make: Callable[[], V], *, held: int = 0, patience: Patience = FOREVER) -> V:
        """The value of `key`, made by `make` outside the lock when absent. What `make` raises is its caller's alone.

        `held`: bytes of other values that the caller needs beside it. Raises QueueFull where no memory came free, and
        what the caller's own patience does.
        """
        deadline = time.monotonic() + self.max_wait  # one for all waiting, also behind others who make it
        with self._changed:
            found = self._find(key, patience)
            if found is not None:
                return found
            self.misses += 1
            self._pending.add(key)
        try:
            with self._changed:
                self._wait_for_room(held, deadline, patience)
            value = make()
            with self._changed:
                self._keep(key, value)
            return value
        finally:
            with self._changed:
                self._pending.discard(key)
                self._changed.notify_all()

    def _find(self, key: str, patience: Patience) -> V | None:
        while key in self._pending:
            patience.check()
            self._changed.wait(LOOK_S)
        value = self._alive.get(key)
        if value is None:
            return None
        self.hits += 1
        if key in self._values:
            self._values.move_to_end(key)
        else:
            self._keep(key, value)
        return value

    def _wait_for_room(self, held: int, deadline: float, patience: Patience) -> None:
        """In line: what those hold who wait themselves is nothing to wait for."""
        if not self.max_wait:
            return
        ticket = object()
        self._line[ticket] = held
        try:
            while not (next(iter(self._line)) is ticket and self._has_room()):
                patience.check()
                if time.monotonic() >= deadline:
                    raise QueueFull(
                        f"requests under way use all {self.max_bytes:,} bytes of this cache: ask again later, or start "
                        "with more --delta-cache-bytes"
                    )
                self._changed.wait(POLL_S)  # nobody tells when the last user of a value is done
        finally:
            del self._line[ticket]

    def _has_room(self) -> bool:
        self._throw_out_idle(self.max_bytes - 1)
        for let_go in (self.relieve, self._collect):
            if self.alive_bytes >= self.max_bytes:
                let_go()
                self._throw_out_idle(self.max_bytes - 1)
        used = self.alive_bytes - sum(self._line.values())
        return used < self.max_bytes or used <= self.pinned_bytes

    def _collect(self) -> None:
        """What is in a cycle nobody uses and nobody lets go of: Python looks for those when it makes new objects, which
        an idle server does not.
        """
        if time.monotonic() - self._collected > COLLECT_S:
            gc.collect()
            self._collected = time.monotonic()

    def pin(self, key: str, make: Callable[[], V]) -> V:
        """The value, which stays until it is unpinned. Raises CacheFull where pinned values would exceed the budget,
        and what `make` raises.
        """
        value = self.get(key, make)
        with self._changed:
            if key in self._pinned:
                return self._pinned[key]
            value = self._values.get(key, value)  # it may be gone again, or made anew
            pinned = self.pinned_bytes
            if pinned + value.num_bytes > self.max_bytes:
                raise CacheFull(
                    f"{value.num_bytes:,} bytes cannot be pinned beside {pinned:,} that are: the budget of this cache "
                    f"is {self.max_bytes:,}; unpin something, or start with more --delta-cache-bytes"
                )
            self._pinned[key] = value
            if key not in self._values:
                self._keep(key, value)
            return value

    def unpin(self, key: str) -> None:
        """From now on it is thrown out like any other. Nothing where it is not pinned."""
        with self._changed:
            self._pinned.pop(key, None)

    def is_pinned(self, key: str) -> bool:
        return key in self._pinned

    @property
    def pinned_bytes(self) -> int:
        return sum(value.num_bytes for value in list(self._pinned.values()))

    def peek(self, key: str) -> V | None:
        """The value, where it is kept: nothing is counted or made, and it grows no younger."""
        with self._changed:
            return self._values.get(key)

    @property
    def keys(self) -> list[str]:
        """Of what is kept now."""
        with self._changed:
            return list(self._values)

    def discard(self, key: str) -> None:
        """What is kept under `key` is thrown out, pinned or not. Nothing where there is nothing."""
        with self._changed:
            self._pinned.pop(key, None)
            self._alive.pop(key, None)
            value = self._values.pop(key, None)
            if value is not None:
                self.num_bytes -= value.num_bytes

    def __len__(self) -> int:
        return len(self._values)

    def _keep(self, key: str, value: V) -> None:
        self._alive[key] = value
        if key not in self._pinned and value.num_bytes + self.pinned_bytes > self.max_bytes:
            return
        self._values[key] = value
        self.num_bytes += value.num_bytes
        self._throw_out_idle(self.max_bytes, but=key)
        while self.num_bytes > self.max_bytes:  # what is used is found again for as long as it is
            oldest = next(other for other in self._values if other not in self._pinned and other != key)
            self.num_bytes -= self._values.pop(oldest).num_bytes
            self.evictions += 1

    def _throw_out_idle(self, max_bytes: int, *, but: str | None = None) -> None:
        """The least recently used of what nobody uses, until so many bytes are alive."""
        alive = self.alive_bytes
        for key in [key for key in self._values if key not in self._pinned and key != but]:
            if alive <= max_bytes:
                return
            # Only when it is out can be seen whether somebody has it.
            num_bytes = self._values[key].num_bytes
            self._values[key] = None  # type: ignore[assignment]  # its place among the others stays
            used = self._alive.get(key)
            if used is None:
                del self._values[key]
                self.num_bytes -= num_bytes
                self.evictions += 1
                alive -= num_bytes
            else:
                self._values[key] = used

    @property
    def num_waiting(self) -> int:
        """For room."""
        return len(self._line)

    @property
    def alive_bytes(self) -> int:
        """Of what is kept, and of what is not and still in use."""
        return sum(value.num_bytes for value in list(self._alive.values()))
