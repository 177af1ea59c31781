"""Uploads that may break and go on: begun, filled part by part, made a blob when they are whole.

What was promised is in the catalog, what has come is in the folder `uploads` of the blobs' file system, which outlives
the process. An upload that goes on at a host with another folder begins there at 0. Knows no HTTP and no formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from patchbay.errors import NotFound, UploadConflict
from patchbay.store.base import Digest, check_digest, disk_errors, is_digest, is_name
from patchbay.store.hub import Hub
from patchbay.store.partial import Partial, read_offset
from patchbay.store.uploads import Begun, is_begun

UNTOUCHED_S = 86_400.0
"""So long after its last part an upload expires."""


@dataclass(frozen=True, slots=True)
class State:
    """Of an upload, in bytes; `expires_at` in unix seconds, None where it is whole."""

    digest: Digest
    length: int
    offset: int
    expires_at: float | None


class Resumable:
    """The uploads of a store. Every call may raise StoreUnavailable, and StoreFull where it writes."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def begin(self, tenant: str, digest: Digest, length: int) -> State:
        """Keeps room for the whole of it. What the tenant has already is whole from the start.

        Raises NotFound for what is no digest; QuotaExceeded, UploadConflict.
        """
        check_digest(digest)
        for _ in self.sweep(tenant):
            pass
        if self._hub.owns(tenant, digest):
            return self._whole(digest)
        begun = self._hub.catalog.uploads.begin(tenant, digest, length, UNTOUCHED_S)
        return State(digest, length, read_offset(self._place(tenant, digest), length), begun.expires_at)

    def state(self, tenant: str, digest: Digest) -> State:
        """Raises NotFound."""
        try:
            begun = self._hub.catalog.uploads.get(tenant, digest)
        except NotFound:
            if self._hub.owns(tenant, digest):
                return self._whole(digest)
            raise
        offset = read_offset(self._place(tenant, digest), begun.length)
        return State(digest, begun.length, offset, begun.expires_at)

    def open(self, tenant: str, digest: Digest) -> tuple[Begun, Partial]:
        """To write the next part of it; the file is a context to leave. Raises NotFound, UploadConflict."""
        length = self._hub.catalog.uploads.get(tenant, digest).length
        begun = self._hub.catalog.uploads.begin(tenant, digest, length, UNTOUCHED_S)
        return begun, Partial(self._place(tenant, digest), length)

    def finish(self, tenant: str, digest: Digest, partial: Partial) -> Digest:
        """Makes a blob of a whole file; the digest that it has. Where that is another one, nothing of it is kept."""
        partial.sync()
        found = partial.digest()
        if found == digest:
            self._hub.keep_file(tenant, digest, partial.path, partial.length)
        else:
            self._hub.catalog.uploads.end(tenant, digest)
        partial.remove()
        return found

    def drop(self, tenant: str, digest: Digest) -> None:
        """Raises NotFound, and UploadConflict while a part of it comes."""
        begun = self._hub.catalog.uploads.get(tenant, digest)
        with Partial(self._place(tenant, digest), begun.length) as partial:
            self._hub.catalog.uploads.end(tenant, digest)
            partial.remove()

    def sweep(self, tenant: str | None = None, *, dry_run: bool = False) -> Iterator[tuple[Path, int]]:
        """Removes files of uploads, of one tenant or of all, that have expired or ended; each, and its size."""
        root = self._hub.blobs.uploads
        with disk_errors(root):
            # With or without its offset beside it: whoever removes them may die in between.
            files = sorted({path.with_suffix("") for path in root.glob(f"{tenant or '*'}/*")})
        for path in files:
            owner, digest = path.parent.name, f"sha256:{path.name}"
            if not (is_name(owner) and is_digest(digest)) or is_begun(self._hub.catalog.uploads, owner, digest):
                continue
            try:
                with disk_errors(path):
                    size = path.stat().st_size if path.exists() else 0
                if not dry_run:
                    with Partial(path, 0) as partial:
                        partial.remove()
            except UploadConflict:
                continue  # a part of it comes at this moment
            yield path, size

    def _whole(self, digest: Digest) -> State:
        size = self._hub.blobs.size(digest)
        return State(digest, size, size, None)

    def _place(self, tenant: str, digest: Digest) -> Path:
        # Both come from requests: the tenant of a key is a name, and only the checked digest may become a path.
        return self._hub.blobs.uploads / tenant / check_digest(digest).removeprefix("sha256:")
