"""How much of what a key is refused is written down: what changed nothing must not fill a store. Knows no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from patchbay.store.audit import Entry

WINDOW_S = 60.0
MORE = "refused"
"""The action of an entry that stands for several."""


@dataclass(slots=True)
class _Row:
    """Refusals of one key with one result since `began`; `last` is the last of the `more` that were not written."""

    began: float
    last: Entry
    more: int = 0


class Refusals:
    """Of every key and result the first refusal in a minute is an entry, and then one says how many more there were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: dict[tuple[str, str, str], _Row] = {}  # by when they began

    def add(self, entry: Entry) -> list[Entry]:
        """What is to be written now that this one came: of rows that are over, and itself if it begins one."""
        now, kind = self._clock(), (entry.tenant, entry.actor, entry.result)
        found = self._ended(now)
        row = self._rows.get(kind)
        if row is None:
            self._rows[kind] = _Row(now, entry)
            return [*found, entry]
        row.last, row.more = entry, row.more + 1
        return found

    def rest(self) -> list[Entry]:
        """What is still to be said when no more will come."""
        return self._ended(float("inf"))

    def _ended(self, now: float) -> list[Entry]:
        over = [kind for kind, row in self._rows.items() if row.began <= now - WINDOW_S]
        rows = [self._rows.pop(kind) for kind in over]
        return [replace(row.last, action=MORE, subject=f"{row.more} more") for row in rows if row.more]
