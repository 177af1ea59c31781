"""Whether every name of a store leads to its own bytes, where they are kept. Changes nothing. Knows no formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from patchbay.errors import NotFound
from patchbay.store.base import DeltaRecord, Digest
from patchbay.store.hub import Hub

OnProgress = Callable[[int, int], None]  # (blobs done, blobs in all)


@dataclass(frozen=True, slots=True)
class Problem:
    """A version whose blob is `missing`, has another `size`, or other bytes than its digest (`damaged`)."""

    kind: str
    record: DeltaRecord
    message: str


def check_store(hub: Hub, on_progress: OnProgress = lambda done, total: None) -> Iterator[Problem]:
    """One problem for each live version that has one. Every blob is read once. Raises StoreUnavailable."""
    by_digest: dict[Digest, list[DeltaRecord]] = {}
    for record in hub.catalog.all_versions():
        by_digest.setdefault(record.digest, []).append(record)
    for done, (digest, records) in enumerate(sorted(by_digest.items())):
        on_progress(done, len(by_digest))
        yield from _problems(hub, digest, records)
    on_progress(len(by_digest), len(by_digest))


def nameless(hub: Hub) -> set[Digest]:
    """Blobs of no live version: of deleted ones, of jobs, on their way to a name, or left over."""
    return hub.blobs.digests() - hub.catalog.live_digests()


def _problems(hub: Hub, digest: Digest, records: list[DeltaRecord]) -> Iterator[Problem]:
    try:
        size, found = hub.blobs.examine(digest)
    except NotFound:
        # Deleted and collected since it was listed: then nothing names it now.
        if digest in hub.catalog.live_digests():
            for record in records:
                yield Problem("missing", record, f"{_name(record)}: the blob {digest} is not there: upload it again")
        return
    for record in records:
        if size != record.size:
            text = f"{_name(record)}: the blob {digest} has {size} bytes, not {record.size}: upload it again"
            yield Problem("size", record, text)
        elif found != digest:
            text = f"{_name(record)}: the blob {digest} has the bytes of {found}: restore it, or upload it again"
            yield Problem("damaged", record, text)


def _name(record: DeltaRecord) -> str:
    return f"{record.tenant}/{record.name}@{record.version}"
