"""Blobs in a store that is no file system: objects by digest, and a bounded folder of those that were read here.

Whatever comes over the network is hashed before anybody sees it. Knows no protocol: `Objects` is what a store can do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol

from patchbay.errors import StoreUnavailable
from patchbay.store.base import Digest, check_digest, disk_errors
from patchbay.store.refusals import no_blob
from patchbay.store.staging import Staging
from patchbay_server.stores.cache import BlobCache

CHUNK_BYTES = 8 << 20
"""What is asked for at a time: every chunk has a deadline of its own, so that a large blob may take long."""


class Objects(Protocol):
    """Bytes by digest. Thread-safe. Every call ends within a deadline and may raise StoreUnavailable."""

    place: str
    """For messages; without passwords."""
    staging: Staging | None
    """Where others may put bytes, if it has such a place."""

    def size(self, digest: Digest) -> int | None:
        """In bytes; None if there is no such object."""

    def read(self, digest: Digest, size: int) -> Iterable[bytes | memoryview]:
        """All bytes of an object of this size, in pieces. The caller verifies them."""

    def write(self, digest: Digest, file: Path) -> None:
        """Durable on return, and seen by others as a whole or not at all. Raises StoreFull."""

    def remove(self, digest: Digest) -> None:
        """Removing what is not there is no error."""

    def digests(self) -> set[Digest]: ...

    def close(self) -> None: ...


class RemoteBlobs:
    """A `BlobStore` of objects, with files of its own in `cache`."""

    def __init__(self, objects: Objects, cache: BlobCache) -> None:
        self._objects = objects
        self._cache = cache
        self._lock = Lock()
        self._fetching: dict[Digest, Future[Path]] = {}

    def new_temp(self) -> Path:
        return self._cache.new_temp()

    def new_folder(self) -> Path:
        return self._cache.new_folder()

    @property
    def uploads(self) -> Path:
        return self._cache.uploads

    @property
    def staging(self) -> Staging | None:
        return self._objects.staging

    def put(self, temp: Path, digest: Digest) -> None:
        """What is there already is read back, and written only if it is damaged."""
        check_digest(digest)
        if not self._is_stored(digest, temp.stat().st_size):
            self._objects.write(digest, temp)
        self._cache.keep(temp, digest)

    def path(self, digest: Digest) -> Path:
        """Threads that want the same blob wait for one download, and hear of its failure together."""
        check_digest(digest)
        held = self._cache.hold(digest)
        if held is not None:
            return held
        with self._lock:
            fetching = self._fetching.get(digest)
            mine = fetching is None
            if fetching is None:
                fetching = self._fetching[digest] = Future()
        if mine:
            self._fetch_for_all(digest, fetching)
        return fetching.result()

    def size(self, digest: Digest) -> int:
        size = self._objects.size(check_digest(digest))
        if size is None:
            raise no_blob(digest)
        return size

    def examine(self, digest: Digest) -> tuple[int, Digest]:
        """Past the cache: whose files are right where the object may be damaged."""
        size = self.size(digest)
        return size, self._copy(digest, size, None)

    def exists(self, digest: Digest) -> bool:
        return self._objects.size(check_digest(digest)) is not None

    def delete(self, digest: Digest) -> None:
        """Other hosts, and whoever uses its file here, keep theirs until they need the room."""
        self._objects.remove(check_digest(digest))
        self._cache.drop(digest)

    def digests(self) -> set[Digest]:
        return self._objects.digests()

    def close(self) -> None:
        self._cache.close()
        self._objects.close()

    def _fetch_for_all(self, digest: Digest, fetching: Future[Path]) -> None:
        try:
            fetching.set_result(self._fetch(digest))
        except BaseException as error:
            fetching.set_exception(error)
        finally:
            with self._lock:
                del self._fetching[digest]

    def _fetch(self, digest: Digest) -> Path:
        size = self.size(digest)
        self._cache.make_room(size)
        temp = self._cache.new_temp()
        try:
            with disk_errors(temp), temp.open("wb") as file:
                found = self._copy(digest, size, file)
            if found != digest:
                raise StoreUnavailable(
                    f"{digest} came damaged from {self._objects.place}: ask again, and if that does not help, upload "
                    "the same file again",
                    outside=f"{digest} came damaged from the blob store: ask again, or upload the same file again",
                )
            return self._cache.keep(temp, digest)
        finally:
            temp.unlink(missing_ok=True)

    def _is_stored(self, digest: Digest, size: int) -> bool:
        """Whether the very bytes are there. What is there instead is removed."""
        stored = self._objects.size(digest)
        if stored is None:
            return False
        if stored == size and self._copy(digest, size, None) == digest:
            return True
        self._objects.remove(digest)
        return False

    def _copy(self, digest: Digest, size: int, file: BinaryIO | None) -> Digest:
        """Read an object, into `file` if there is one; the digest of what came."""
        found = hashlib.sha256()
        for piece in self._objects.read(digest, size):
            found.update(piece)
            if file is not None:
                file.write(piece)
        return f"sha256:{found.hexdigest()}"
