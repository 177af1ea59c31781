"""The audit log: who changed what, when, and what came of it. Entries are added, never changed, and forgotten only from
the oldest on, by an operator.

They name things and never hold what is in them: no secret, no text that was asked, no recording. Knows no database, no
HTTP and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """`at` is in unix seconds; `actor` a key's id, `bootstrap`, `none`, a job or a user of the command line; `action`
    a route or a command; `subject` what it was about; `result` an HTTP status, or `done`.
    """

    at: float
    tenant: str
    actor: str
    action: str
    subject: str
    result: str


class Audit(Protocol):
    """The log of a catalog. Thread-safe. Any call may raise StoreUnavailable, adding also StoreFull."""

    def append(self, entry: Entry) -> None:
        """Durable on return, as far as the catalog is."""

    def list_entries(self, tenant: str | None = None, limit: int = 100) -> list[Entry]:
        """The newest, of one tenant or of all, oldest first."""

    def forget(self, before: float, *, dry_run: bool = False) -> int:
        """Removes entries from the oldest one on, up to the first that is not from before a time, in unix seconds. How
        many they are; with `dry_run` they stay.
        """


def printable(text: str) -> str:
    """As it may stand in the log, whatever somebody sent: short, and ASCII."""
    return text[:MAX_TEXT].encode("ascii", "backslashreplace").decode()[:MAX_TEXT]
