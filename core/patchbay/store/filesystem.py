"""Blobs as files: `root/sha256/ab/ab...`, written in `root/tmp` and renamed into place. Knows no names or versions.

Every process works in a folder of its own below `root/tmp` and holds a lock (flock) on a file in it while it lives.
The kernel drops the lock when the process dies, however it dies: a folder whose lock can be taken is left over, and is
removed when the next process starts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from patchbay.store.base import Digest, check_digest, disk_errors, is_digest
from patchbay.store.locks import locked, take_lock
from patchbay.store.refusals import no_blob
from patchbay.store.staging import Staging


class FileBlobs:
    """A `BlobStore` in the folder `root`, which may be shared by several processes of one host."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "sha256"
        with disk_errors(root):
            self._blobs.mkdir(parents=True, exist_ok=True)
            (root / "tmp").mkdir(exist_ok=True)
            _sync_folder(root)
            _sync_folder(root.parent)
            # Without this lock, a folder that is made but not yet locked, or half removed, would look left over.
            with locked(root / "tmp" / ".lock"):
                _remove_leftovers(root / "tmp")
                self._temp = root / "tmp" / uuid.uuid4().hex
                self._temp.mkdir()
                self._alive: int | None = take_lock(self._temp / ".lock", wait=True)

    def new_temp(self) -> Path:
        temp = self._temp / uuid.uuid4().hex
        with disk_errors(self._root):
            temp.touch(exist_ok=False)
        return temp

    def new_folder(self) -> Path:
        folder = self._temp / uuid.uuid4().hex
        with disk_errors(self._root):
            folder.mkdir()
        return folder

    @property
    def uploads(self) -> Path:
        return self._root / "uploads"

    @property
    def staging(self) -> Staging | None:
        return None

    def put(self, temp: Path, digest: Digest) -> None:
        """Sync the file, rename it, sync the folders. A blob that is there already is replaced by the equal bytes."""
        target = self._location(digest)
        with disk_errors(self._root):
            _sync_file(temp)
            target.parent.mkdir(exist_ok=True)
            temp.replace(target)
            _sync_folder(target.parent)
            # Always, not only by whoever made the folder: that thread may not have come to its sync yet.
            _sync_folder(self._blobs)

    def path(self, digest: Digest) -> Path:
        target = self._location(digest)
        if not self.exists(digest):
            raise no_blob(digest)
        return target

    def size(self, digest: Digest) -> int:
        target = self.path(digest)
        with disk_errors(self._root):
            return target.stat().st_size

    def examine(self, digest: Digest) -> tuple[int, Digest]:
        target = self.path(digest)
        with disk_errors(self._root), target.open("rb") as source:
            found = hashlib.file_digest(source, "sha256")
            return source.tell(), f"sha256:{found.hexdigest()}"

    def exists(self, digest: Digest) -> bool:
        target = self._location(digest)
        with disk_errors(self._root):
            return target.is_file()

    def delete(self, digest: Digest) -> None:
        target = self._location(digest)
        with disk_errors(self._root):
            target.unlink(missing_ok=True)
            if target.parent.exists():
                _sync_folder(target.parent)

    def digests(self) -> set[Digest]:
        with disk_errors(self._root):
            names = {f"sha256:{file.name}" for file in self._blobs.glob("*/*")}
        return {name for name in names if is_digest(name)}

    def close(self) -> None:
        """Remove this process's temp folder. Nothing may be written after it."""
        if self._alive is None:
            return
        # What cannot be removed now is left over, and the next process removes it.
        with suppress(OSError), locked(self._root / "tmp" / ".lock"):
            shutil.rmtree(self._temp)
        os.close(self._alive)
        self._alive = None

    def _location(self, digest: Digest) -> Path:
        # Digests reach here from requests: only the checked form may become a path.
        name = check_digest(digest).removeprefix("sha256:")
        return self._blobs / name[:2] / name


def _remove_leftovers(temp_root: Path) -> None:
    for folder in temp_root.iterdir():
        if not folder.is_dir():
            continue
        lock = take_lock(folder / ".lock", wait=False)
        if lock is not None:
            shutil.rmtree(folder)
            os.close(lock)


def _sync_file(path: Path) -> None:
    _sync(path, os.O_RDWR)


def _sync_folder(path: Path) -> None:
    """Make names in the folder durable: a rename survives a power cut only after this."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
