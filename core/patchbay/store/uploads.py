"""Uploads that were begun and are not whole yet: what was promised, and until when room is kept for it.

A tenant has at most one of the same bytes, so the digest is its name: whoever begins it again goes on with it. Knows no
database, no HTTP, and not where the bytes lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from patchbay.errors import NotFound, QuotaExceeded, UploadConflict
from patchbay.store.base import Digest

MAX_BEGUN = 100
"""Of one tenant at a time."""


@dataclass(frozen=True, slots=True)
class Begun:
    """`length` in bytes, `expires_at` in unix seconds."""

    tenant: str
    digest: Digest
    length: int
    expires_at: float


class Uploads(Protocol):
    """The begun uploads of a catalog. Thread-safe, every call atomic. Any may raise StoreUnavailable.

    They count towards what their tenant has stored, with their whole length, until they end or expire. `add_blob` of
    the same digest ends one and takes over its room.
    """

    def begin(self, tenant: str, digest: Digest, length: int, seconds: float) -> Begun:
        """It expires so long from now, whenever it was begun.

        Raises InvalidName, QuotaExceeded, and UploadConflict where another length was promised.
        """

    def get(self, tenant: str, digest: Digest) -> Begun:
        """Raises NotFound, also for one that has expired."""

    def end(self, tenant: str, digest: Digest) -> None:
        """Its room is free again. Ending what was not begun is no error."""


def is_begun(uploads: Uploads, tenant: str, digest: Digest) -> bool:
    """Whether it is under way, and has not expired. Raises StoreUnavailable."""
    try:
        uploads.get(tenant, digest)
    except NotFound:
        return False
    return True


# The catalogs say the same things in the same words.


def no_upload(digest: str) -> NotFound:
    return NotFound(f"no upload of {digest[:80]} is under way: begin it with POST /v1/uploads", param="digest")


def other_length(digest: Digest, length: int, begun: int) -> UploadConflict:
    return UploadConflict(
        f"an upload of {digest} is under way and has {begun} bytes, not {length}: the same bytes have one length; "
        "delete that upload first if it was wrong",
        param="length",
    )


def too_many(tenant: str) -> QuotaExceeded:
    return QuotaExceeded(
        f"{tenant!r} has {MAX_BEGUN} uploads under way, as many as may be: end or delete one first", param="uploads"
    )
