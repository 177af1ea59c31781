"""The store as its callers use it: uploads, the order of writing, and which names are allowed.

Knows no format: its callers check between `finish` and `commit` that the bytes are a delta that fits the backbone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from patchbay.errors import DeltaTooLarge, InvalidName, NotFound, StoreUnavailable
from patchbay.store.base import (
    DEFAULT_TENANT,
    BlobStore,
    Catalog,
    DeltaRecord,
    Digest,
    MergeRecord,
    check_name,
    disk_errors,
)
from patchbay.store.refusals import owned_by

PUBLISHING_S = 600.0  # what is put is named within this time, or the blob counts as left over
KEPT_S = 86_400.0  # a blob that was sent alone waits so long for a job that reads it


class Upload:
    """Bytes on their way into the store, hashed and counted as they come.

    Use as a context: leaving it removes the temp file, unless `Hub.commit` has moved it into place by then.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.size = 0
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._digest: Digest | None = None
        with disk_errors(path):
            self._file: BinaryIO = path.open("wb")

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Raises DeltaTooLarge before the chunk that passes the cap is written; StoreFull, StoreUnavailable."""
        size = memoryview(chunk).nbytes
        if self.size + size > self._max_bytes:
            raise DeltaTooLarge(
                f"the upload is over {self._max_bytes} bytes: send a smaller delta (lower density, narrower values), "
                "or raise the limit"
            )
        with disk_errors(self.path):
            self._file.write(chunk)
        self._hash.update(chunk)
        self.size += size

    def finish(self) -> Digest:
        """No more bytes: `path` can be read from now on. Raises StoreFull, StoreUnavailable."""
        if self._digest is None:
            with disk_errors(self.path):
                self._file.close()
                written = self.path.stat().st_size
            # A write that failed half-way, and a caller who went on all the same.
            if written != self.size:
                raise StoreUnavailable.plain(
                    f"{written} of {self.size} bytes of the upload were written: send it again"
                )
            self._digest = f"sha256:{self._hash.hexdigest()}"
        return self._digest

    @property
    def digest(self) -> Digest:
        assert self._digest is not None, "finish() first"
        return self._digest

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # On a full disk closing fails once more, and the error that matters is already on its way.
        with suppress(OSError):
            self._file.close()
        with disk_errors(self.path):
            self.path.unlink(missing_ok=True)


class Hub:
    """A catalog and a blob store kept in step: a name never points at bytes that are not there.

    `reserved` are names that expressions use themselves (`base`, the merging methods).
    """

    def __init__(self, catalog: Catalog, blobs: BlobStore, reserved: frozenset[str]) -> None:
        self.catalog = catalog
        self.blobs = blobs
        self.reserved = reserved

    def check_name(self, name: str) -> str:
        """Return `name` if something may be stored under it, else raise InvalidName. Call it before reading bytes."""
        check_name(name)
        if name in self.reserved:
            raise InvalidName(f"the name {name!r} is reserved: it means something in expressions", param="name")
        return name

    def begin_upload(self, max_bytes: int) -> Upload:
        """Raises StoreFull, StoreUnavailable."""
        return Upload(self.blobs.new_temp(), max_bytes)

    def commit(
        self, upload: Upload, tenant: str, name: str, summary: str, activate: bool = True
    ) -> tuple[DeltaRecord, bool]:
        """Store a finished upload as the next version of `name`; (record, created).

        The blob is durable before the catalog row is written, so a crash in between leaves a blob that nothing names,
        never a name without its blob. Raises InvalidName, NameTaken, QuotaExceeded, StoreFull, StoreUnavailable.
        """
        self.check_name(name)
        check_name(tenant, param="tenant")
        # add_version decides; asking here as well keeps a refused upload from leaving its blob behind.
        if _found(lambda: self.catalog.get_merge(tenant, name)):
            raise owned_by("merge", name)
        if not any(record.name == name for record in self.catalog.find_digest(tenant, upload.digest)):
            self.catalog.tenants.check_room(tenant, upload.size, deltas=1)
        self.put(upload.path, upload.digest, PUBLISHING_S)
        return self.catalog.add_version(tenant, name, upload.digest, upload.size, summary, activate)

    def blob_for(self, tenant: str, name: str, digest: Digest) -> Path:
        """The file of bytes that the tenant has (`owns`), kept for long enough to `publish` them as `name`.

        Raises InvalidName, NameTaken, NotFound.
        """
        self.check_name(name)
        if _found(lambda: self.catalog.get_merge(tenant, name)):
            raise owned_by("merge", name)
        self.catalog.hold(digest, PUBLISHING_S)
        if not self.owns(tenant, digest):
            raise not_brought(tenant, digest)
        return self.open_blob(digest)

    def publish(
        self, tenant: str, name: str, digest: Digest, summary: str, activate: bool = True
    ) -> tuple[DeltaRecord, bool]:
        """Bytes that the tenant has (`owns`) become the next version of `name`; (record, created).

        Raises InvalidName, NameTaken, NotFound, QuotaExceeded, StoreFull, StoreUnavailable.
        """
        self.check_name(name)
        self.catalog.hold(digest, PUBLISHING_S)
        if not self.owns(tenant, digest):
            raise not_brought(tenant, digest)
        return self.catalog.add_version(tenant, name, digest, self.blobs.size(digest), summary, activate)

    def put(self, file: Path, digest: Digest, seconds: float) -> None:
        """Moves a file into place, whose digest the caller has verified. Nothing names it yet: held for so long, it is
        not taken for one that is left over.
        """
        self.catalog.hold(digest, seconds)
        self.blobs.put(file, digest)
        self._hold_stored(digest, seconds)

    def _hold_stored(self, digest: Digest, seconds: float) -> None:
        self.catalog.hold(digest, seconds)
        # Where writing took longer than the first hold, it may have been collected before the second one.
        if not self.blobs.exists(digest):
            raise StoreUnavailable.plain("writing the upload took so long that it was removed meanwhile: send it again")

    def save_merge(self, tenant: str, name: str, recipe: str, replace: bool = False) -> MergeRecord:
        """`Catalog.save_merge`, under an allowed name."""
        return self.catalog.save_merge(tenant, self.check_name(name), recipe, replace)

    def keep_blob(self, upload: Upload, tenant: str) -> bool:
        """Store a finished upload as the tenant's own; False where it has these bytes already.

        They are kept for a day, and as long as a job that is not over reads them. Those of another tenant are written
        once more, in the time that it takes: nobody learns of them. Raises InvalidName, QuotaExceeded, StoreFull,
        StoreUnavailable.
        """
        self.catalog.hold(upload.digest, KEPT_S)
        if self.has_blob(tenant, upload.digest):
            return False
        if not self.catalog.has_blob(tenant, upload.digest):
            self.catalog.tenants.check_room(tenant, upload.size)
        return self.keep_file(tenant, upload.digest, upload.path, upload.size)

    def keep_file(self, tenant: str, digest: Digest, file: Path, size: int) -> bool:
        """`keep_blob` of a file on the blobs' file system whose digest the caller has verified, and which is moved."""
        self.put(file, digest, KEPT_S)
        return self.catalog.add_blob(tenant, digest, size)

    def keep_stored(self, tenant: str, digest: Digest, size: int) -> bool:
        """`keep_blob` of bytes that their caller has held and then put under their digest."""
        self._hold_stored(digest, KEPT_S)
        return self.catalog.add_blob(tenant, digest, size)

    def has_blob(self, tenant: str, digest: Digest) -> bool:
        """Whether the tenant has brought these bytes, and they are there."""
        return self.catalog.has_blob(tenant, digest) and self.blobs.exists(digest)

    def owns(self, tenant: str, digest: Digest) -> bool:
        """Whether the tenant has these bytes, as a blob or as a live version of a delta."""
        has = self.catalog.has_blob(tenant, digest) or self.catalog.find_digest(tenant, digest)
        return bool(has) and self.blobs.exists(digest)

    def open_blob(self, digest: Digest) -> Path:
        """The file with these bytes, whoever's they are: not for digests that a request names. Raises NotFound."""
        return self.blobs.path(digest)

    def close(self) -> None:
        self.catalog.close()
        self.blobs.close()


def tenants_of(catalog: Catalog) -> list[str]:
    """All that may have anything in the store, and the default one."""
    of_keys = (record.tenant for record in catalog.keys.list_keys())
    return sorted({DEFAULT_TENANT, *of_keys, *catalog.tenants.list_limits()})


def not_brought(tenant: str, digest: Digest) -> NotFound:
    return NotFound(f"{tenant!r} has no blob {digest}: upload it first", param="blob")


def _found(look: Callable[[], object]) -> bool:
    try:
        look()
    except NotFound:
        return False
    return True
