"""What is kept in memory under a byte budget, least recently used out first, each value made once.

Knows nothing of what it holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Condition
from typing import Generic, Protocol, TypeVar

from patchbay.errors import CacheFull


class Sized(Protocol):
    @property
    def num_bytes(self) -> int: ...


V = TypeVar("V", bound=Sized)


class Pool(Generic[V]):
    """A byte-bounded LRU with single flight: a second caller for a key waits for the first one's value.

    A value larger than the budget is made and handed out, and not kept. What is pinned counts and is never thrown out.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._values: OrderedDict[str, V] = OrderedDict()
        self._pinned: dict[str, V] = {}
        self._pending: set[str] = set()
        self._changed = Condition()

    def get(self, key: str, make: Callable[[], V]) -> V:
        """The value of `key`, made by `make` outside the lock when absent. What `make` raises is its caller's alone."""
        with self._changed:
            while key in self._pending:
                self._changed.wait()
            if key in self._values:
                self.hits += 1
                self._values.move_to_end(key)
                return self._values[key]
            self.misses += 1
            self._pending.add(key)
        try:
            value = make()
            with self._changed:
                self._keep(key, value)
            return value
        finally:
            with self._changed:
                self._pending.discard(key)
                self._changed.notify_all()

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
            value = self._values.pop(key, None)
            if value is not None:
                self.num_bytes -= value.num_bytes

    def __len__(self) -> int:
        return len(self._values)

    def _keep(self, key: str, value: V) -> None:
        if key not in self._pinned and value.num_bytes + self.pinned_bytes > self.max_bytes:
            return
        self._values[key] = value
        self.num_bytes += value.num_bytes
        while self.num_bytes > self.max_bytes:
            oldest = next(other for other in self._values if other not in self._pinned)
            self.num_bytes -= self._values.pop(oldest).num_bytes
