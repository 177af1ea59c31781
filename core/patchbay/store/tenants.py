"""Tenants: what each may have and use, and what it has stored. Knows no database, no HTTP and no clock.

What is stored is counted where it is stored, in the step that stores more: two uploads at once cannot both take the
last place. The other limits are of what happens, and belong to whoever makes it happen.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Protocol

from patchbay.errors import QuotaExceeded


@dataclass(frozen=True, slots=True)
class Limits:
    """None is no limit. `max_bytes` and `max_deltas` (every version is one) are of what is stored, `max_jobs` of jobs
    that are queued or running, `max_requests` of requests under way at a time, `tokens_per_minute` of prompts and
    answers in any sixty seconds.
    """

    max_bytes: int | None = None
    max_deltas: int | None = None
    max_jobs: int | None = None
    max_requests: int | None = None
    tokens_per_minute: int | None = None

    def to_json(self) -> str:
        """The limits that there are."""
        return json.dumps({name: most for name, most in asdict(self).items() if most is not None})

    @classmethod
    def from_json(cls, text: str | None) -> Limits:
        """None at all of no text."""
        return cls(**json.loads(text)) if text else cls()


@dataclass(frozen=True, slots=True)
class Usage:
    """`num_bytes` of live versions of deltas, of blobs, and of uploads under way, all that they promise; `num_deltas`
    live versions.
    """

    num_bytes: int
    num_deltas: int


class Tenants(Protocol):
    """The tenants of a catalog. Thread-safe, every call atomic. Any may raise StoreUnavailable, a change StoreFull."""

    def get_limits(self, tenant: str) -> Limits:
        """None at all where none were set."""

    def set_limits(self, tenant: str, limits: Limits) -> None:
        """In place of those before. Raises InvalidName."""

    def list_limits(self) -> dict[str, Limits]:
        """Of every tenant for which any were set, by name."""

    def usage(self, tenant: str) -> Usage: ...

    def check_room(self, tenant: str, size: int, deltas: int = 0) -> None:
        """Raises QuotaExceeded where so much more would be over a limit now. `add_version` and `add_blob` decide."""


def check_room(tenant: str, limits: Limits, usage: Usage, size: int, deltas: int) -> None:
    """Raises QuotaExceeded."""
    if limits.max_bytes is not None and usage.num_bytes + size > limits.max_bytes:
        raise over_bytes(tenant, usage.num_bytes, size, limits.max_bytes)
    if limits.max_deltas is not None and usage.num_deltas + deltas > limits.max_deltas:
        raise over_deltas(tenant, usage.num_deltas, limits.max_deltas)


# The catalogs say the same things in the same words.


def over_bytes(tenant: str, used: int, size: int, most: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"{tenant!r} may store {most:,} bytes and has {used:,}; {size:,} more do not fit: delete deltas, or ask the "
        "server's operator for more",
        param="max_bytes",
    )


def over_deltas(tenant: str, used: int, most: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"{tenant!r} may store {most:,} versions of deltas and has {used:,}: delete some, or ask the server's operator "
        "for more",
        param="max_deltas",
    )
