"""Removes blobs that nothing names any more. Knows no jobs: what they read is given by its digest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from patchbay.store.base import Digest
from patchbay.store.hub import Hub

CONDEMNED_S = 600.0  # longer than a blob store takes to remove one


@dataclass(frozen=True, slots=True)
class Blob:
    """`size` in bytes."""

    digest: Digest
    size: int


def collect(hub: Hub, grace_s: float, in_use: Callable[[], set[Digest]], *, dry_run: bool = False) -> Iterator[Blob]:
    """The blobs that are removed, one by one; with `dry_run` those that would be.

    Kept are those of live versions and of saved merges, of versions deleted less than `grace_s` ago, which requests
    that found the name before may still be about to read, those that an upload or a client holds, and those `in_use`.
    A blob that is being removed can be neither held nor named, so no name ever points at one that is gone.

    Raises StoreUnavailable.
    """
    since = time.time() - grace_s
    # A merge that is saved from now on names live versions, and those are kept for a while when they are deleted.
    named = hub.catalog.live_digests() | hub.catalog.pinned_digests()
    for digest in sorted(hub.blobs.digests() - named):
        if not hub.catalog.condemn(digest, since, CONDEMNED_S):
            continue
        try:
            # Asked for each: jobs come while this goes on.
            if digest in in_use():
                continue
            blob = Blob(digest, hub.blobs.size(digest))
            if not dry_run:
                hub.blobs.delete(digest)
                hub.catalog.forget_blob(digest)
        finally:
            hub.catalog.pardon(digest)
        yield blob
