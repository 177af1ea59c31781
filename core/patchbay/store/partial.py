"""A file that comes in parts: its bytes, and how many of them are sure to be there after a power cut.

Whoever writes it holds a lock (flock) on it, which the kernel drops with the process. The last byte is never said to be
there: only whoever makes a blob of the whole file can say so, and until then it is sent again. Knows no names, no
catalog and no blob store.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from patchbay.errors import UploadConflict
from patchbay.store.base import Digest, disk_errors

SYNC_BYTES = 16 << 20
"""So much may have to be sent again after a crash."""
_READ_BYTES = 1 << 20


class Partial:
    """The file `path`, which is made if it is not there, locked until the context is left. `length` in bytes.

    Raises UploadConflict where somebody else writes it; StoreFull, StoreUnavailable.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path, self.length = path, length
        with disk_errors(path):
            _make_folder(path.parent)
            self._file = _open_locked(path)
            try:
                self.offset = read_offset(path, length)
                """How many bytes are sure to be there."""
                self.size = self.offset
                """How many are there; more than `offset` in the middle of a part."""
                os.ftruncate(self._file, self.offset)
            except BaseException:
                os.close(self._file)
                raise

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """At the end. Raises UploadConflict where it would pass the length; StoreFull, StoreUnavailable."""
        rest = memoryview(chunk).cast("B")
        if self.size + len(rest) > self.length:
            raise UploadConflict(f"more than the {self.length} bytes that were promised came", param="Upload-Length")
        with disk_errors(self.path):
            while rest:
                written = os.pwrite(self._file, rest, self.size)
                self.size += written
                rest = rest[written:]

    def sync(self) -> None:
        """What was written is sure to be there, but for the last byte of all. Raises StoreFull, StoreUnavailable."""
        sure = min(self.size, self.length - 1)
        if sure <= self.offset:
            return
        with disk_errors(self.path):
            os.fsync(self._file)
            _write_offset(self.path, sure)
        self.offset = sure

    def sync_often(self) -> None:
        """`sync` where much was written since the last one."""
        if self.size - self.offset >= SYNC_BYTES:
            self.sync()

    @property
    def is_whole(self) -> bool:
        return self.size == self.length

    def digest(self) -> Digest:
        """Of what is there, read from the beginning. Raises StoreUnavailable."""
        found, at = hashlib.sha256(), 0
        with disk_errors(self.path):
            while piece := os.pread(self._file, _READ_BYTES, at):
                found.update(piece)
                at += len(piece)
        return f"sha256:{found.hexdigest()}"

    def remove(self) -> None:
        """Nothing stays of it. Raises StoreUnavailable."""
        with disk_errors(self.path):
            _offset_file(self.path).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # another one is in it
                self.path.parent.rmdir()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)


def read_offset(path: Path, length: int) -> int:
    """How many bytes of a partial file are sure to be there; 0 where there is none. Needs no lock."""
    try:
        text = _offset_file(path).read_text("ascii")
        size = path.stat().st_size
    except (FileNotFoundError, UnicodeDecodeError):
        return 0
    offset = int(text) if len(text) == _DIGITS and text.isdecimal() else 0
    return offset if offset <= size and offset < length else 0


_DIGITS = 20  # always as many: one write that stays within a sector


def _offset_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.offset")


def _write_offset(path: Path, offset: int) -> None:
    file = os.open(_offset_file(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        is_new = os.fstat(file).st_size == 0
        os.pwrite(file, f"{offset:0{_DIGITS}}".encode(), 0)
        os.fsync(file)
    finally:
        os.close(file)
    if is_new:
        _sync_folder(path.parent)


def _open_locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:
                return file
        except BlockingIOError as error:
            os.close(file)
            raise UploadConflict(
                "another request writes this upload at the moment: ask for its offset again in a few seconds"
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was removed between opening and locking


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _sync_folder(folder.parent)
    _sync_folder(folder.parent.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
