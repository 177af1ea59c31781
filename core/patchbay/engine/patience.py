"""How long whoever asked waits for an answer. Knows nothing of what is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Event

from patchbay.errors import Cancelled, DeadlineExceeded

LOOK_S = 0.25  # how often those who wait look whether they still want to


@dataclass(frozen=True, slots=True)
class Patience:
    """`until`: on the clock of `time.monotonic`, None for ever. `gone` is set once nobody waits any more."""

    until: float | None = None
    gone: Event | None = None

    def check(self) -> None:
        """Raises Cancelled, DeadlineExceeded."""
        if self.gone is not None and self.gone.is_set():
            raise Cancelled("the request was cancelled")
        if self.until is not None and time.monotonic() > self.until:
            raise DeadlineExceeded("the request's time is over: it was given up")


FOREVER = Patience()
