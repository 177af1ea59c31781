"""Files of a remote blob store on this host's disk, in a bounded folder. Knows nothing of where they come from.

Every file in use has a shared lock (flock) for as long as somebody holds the path that was handed out, in this process
or another one; only what no one has locked is removed, least recently used first. Whatever dies, its locks go with it.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path, PosixPath

from patchbay.store.base import Digest, disk_errors
from patchbay.store.filesystem import FileBlobs
from patchbay.store.locks import locked


class HeldPath(PosixPath):
    """A file of the cache, which stays while this object lives. Paths that are made from it hold nothing."""


class BlobCache:
    """At most `max_bytes` in the folder `root`, which may be shared by several processes of one host.

    More only where more is in use at a time. What was used last is known by the files' modification times.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._files = FileBlobs(root)
        # One holder at a time looks for a file, places or removes one: nothing goes between finding and locking it.
        self._lock = root / ".lock"

    def new_temp(self) -> Path:
        """As `BlobStore.new_temp`; not counted."""
        return self._files.new_temp()

    def new_folder(self) -> Path:
        """As `BlobStore.new_folder`; not counted."""
        return self._files.new_folder()

    @property
    def uploads(self) -> Path:
        """As `BlobStore.uploads`; not counted."""
        return self._files.uploads

    def hold(self, digest: Digest) -> Path | None:
        """The file, or None if it is not here. Raises NotFound for what is no digest."""
        with disk_errors(self._root), locked(self._lock):
            return self._hold(digest)

    def keep(self, temp: Path, digest: Digest) -> Path:
        """Move a complete file, whose digest was verified, into place. One in use stays: its bytes are the same."""
        with disk_errors(self._root):
            _sync(temp)  # here and not behind the lock, where others would wait for the disk
            with locked(self._lock):
                self._remove(digest)
                if self._hold(digest) is None:
                    self._files.put(temp, digest)
                held = self._hold(digest)
            temp.unlink(missing_ok=True)
        self.make_room(0)
        assert held is not None
        return held

    def drop(self, digest: Digest) -> None:
        """Remove the file, if it is here and nobody uses it."""
        with disk_errors(self._root), locked(self._lock):
            self._remove(digest)

    def make_room(self, size: int) -> None:
        """Remove what was not used for longest, until `size` more bytes fit or all that is left is in use."""
        with disk_errors(self._root), locked(self._lock):
            found = {digest: self._files.path(digest).stat() for digest in self._files.digests()}
            total = size + sum(file.st_size for file in found.values())
            for digest in sorted(found, key=lambda digest: found[digest].st_mtime_ns):
                if total <= self._max_bytes:
                    return
                if self._remove(digest):
                    total -= found[digest].st_size

    def close(self) -> None:
        self._files.close()

    def _hold(self, digest: Digest) -> Path | None:
        if not self._files.exists(digest):
            return None
        path = self._files.path(digest)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.utime(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        held = HeldPath(path)
        weakref.finalize(held, os.close, descriptor)
        return held

    def _remove(self, digest: Digest) -> bool:
        """Whether it was here and in nobody's use."""
        if not self._files.exists(digest):
            return False
        path = self._files.path(digest)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
