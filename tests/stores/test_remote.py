"""Files of a remote store: verified, fetched once for all who wait, and readable when the store is away."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchbay.errors import NotFound, StoreUnavailable
from patchbay.store import Hub, SqliteCatalog
from patchbay.store.fsck import check_store
from patchbay.store.staging import Staging
from patchbay_server.stores.cache import BlobCache
from patchbay_server.stores.remote import RemoteBlobs


class Shelf:
    """Objects in memory, which can be damaged, held up and taken away."""

    place = "the shelf"
    staging: Staging | None = None

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads = self.writes = 0
        self.away = False
        self.fails_at: int | None = None
        self.on_read: Callable[[], object] = lambda: None
        self.opened = threading.Event()
        self.opened.set()

    def size(self, digest: str) -> int | None:
        self._answer()
        return len(self.objects[digest]) if digest in self.objects else None

    def read(self, digest: str, size: int) -> Iterator[bytes]:
        self.reads += 1
        self.on_read()
        assert self.opened.wait(60)
        for number, byte in enumerate(self.objects[digest]):
            if number == self.fails_at:
                raise StoreUnavailable("the shelf broke")
            yield bytes([byte])

    def write(self, digest: str, file: Path) -> None:
        self._answer()
        self.writes += 1
        self.objects[digest] = file.read_bytes()

    def remove(self, digest: str) -> None:
        self._answer()
        self.objects.pop(digest, None)

    def digests(self) -> set[str]:
        return set(self.objects)

    def close(self) -> None: ...

    def _answer(self) -> None:
        if self.away:
            raise StoreUnavailable("the shelf is away")


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def blobs(shelf: Shelf, tmp_path: Path) -> Iterator[RemoteBlobs]:
    """With an empty cache."""
    blobs = RemoteBlobs(shelf, BlobCache(tmp_path / "here", 1000))
    yield blobs
    blobs.close()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def put(blobs: RemoteBlobs, content: bytes) -> str:
    temp = blobs.new_temp()
    temp.write_bytes(content)
    blobs.put(temp, digest_of(content))
    return digest_of(content)


def store(shelf: Shelf, content: bytes) -> str:
    shelf.objects[digest_of(content)] = content
    return digest_of(content)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_what_was_read_once_is_read_from_the_disk(blobs: RemoteBlobs, shelf: Shelf) -> None:
    digest = store(shelf, b"hello")
    for _ in range(3):
        assert blobs.path(digest).read_bytes() == b"hello"
    assert shelf.reads == 1
    own = put(blobs, b"world")
    assert blobs.path(own).read_bytes() == b"world" and shelf.reads == 1


def test_what_is_on_the_disk_is_read_while_the_store_is_away(blobs: RemoteBlobs, shelf: Shelf) -> None:
    known, other = put(blobs, b"hello"), store(shelf, b"world")
    shelf.away = True
    assert blobs.path(known).read_bytes() == b"hello"
    for call in (lambda: blobs.path(other), lambda: put(blobs, b"new"), lambda: blobs.exists(known)):
        with pytest.raises(StoreUnavailable, match="the shelf is away"):
            call()
    shelf.away = False
    assert blobs.path(other).read_bytes() == b"world"


@pytest.mark.parametrize("damage", [b"hallo", b"hell", b"hello!", b""])
def test_damaged_bytes_are_never_seen_and_a_put_heals_them(
    blobs: RemoteBlobs, shelf: Shelf, damage: bytes, tmp_path: Path
) -> None:
    digest = digest_of(b"hello")
    shelf.objects[digest] = damage
    with pytest.raises(StoreUnavailable, match="came damaged from the shelf: .*upload the same file again"):
        blobs.path(digest)
    assert files(tmp_path) == []
    put(blobs, b"hello")
    assert shelf.objects[digest] == b"hello" and blobs.path(digest).read_bytes() == b"hello"


def test_sound_bytes_are_not_written_again(blobs: RemoteBlobs, shelf: Shelf) -> None:
    store(shelf, b"hello")
    put(blobs, b"hello")
    put(blobs, b"hello")
    assert shelf.writes == 0


def test_a_download_that_breaks_leaves_nothing(blobs: RemoteBlobs, shelf: Shelf, tmp_path: Path) -> None:
    digest = store(shelf, b"hello")
    shelf.fails_at = 3
    with pytest.raises(StoreUnavailable, match="the shelf broke"):
        blobs.path(digest)
    assert files(tmp_path) == []
    shelf.fails_at = None
    assert blobs.path(digest).read_bytes() == b"hello"


@pytest.mark.parametrize("fails_at", [None, 3])
def test_all_who_wait_hear_of_one_download(blobs: RemoteBlobs, shelf: Shelf, fails_at: int | None) -> None:
    digest, shelf.fails_at = store(shelf, b"hello"), fails_at
    shelf.opened.clear()
    started = threading.Barrier(9)

    def read() -> bytes:
        started.wait(60)
        return blobs.path(digest).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(read) for _ in range(8)]
        started.wait(60)
        while not shelf.reads:
            pass
        shelf.opened.set()
        outcomes = [one.exception(60) or one.result() for one in asked]
    if fails_at is None:
        assert outcomes == [b"hello"] * 8 and shelf.reads == 1
    else:
        # Who comes only when the failure was told tries again.
        assert {str(outcome) for outcome in outcomes} == {"the shelf broke"} and shelf.reads <= 8


def test_the_cache_makes_room_before_a_download(blobs: RemoteBlobs, shelf: Shelf, tmp_path: Path) -> None:
    first, second = store(shelf, b"a" * 600), store(shelf, b"b" * 600)
    kept: list[int] = []
    shelf.on_read = lambda: kept.append(sum(file.stat().st_size for file in files(tmp_path)))
    blobs.path(first)
    blobs.path(second)
    assert kept == [0, 0]
    assert blobs.path(first).read_bytes() == b"a" * 600 and shelf.reads == 3


def test_what_was_deleted_is_not_found(blobs: RemoteBlobs, shelf: Shelf) -> None:
    digest = store(shelf, b"hello")
    blobs.delete(digest)
    with pytest.raises(NotFound, match="there is no blob"):
        blobs.path(digest)


def test_what_is_damaged_there_is_seen_past_the_files_here(blobs: RemoteBlobs, shelf: Shelf, tmp_path: Path) -> None:
    hub = Hub(SqliteCatalog(tmp_path / "catalog.db"), blobs, frozenset())
    with hub.begin_upload(10) as upload:
        upload.write(b"hello")
        upload.finish()
        record, _ = hub.commit(upload, "default", "math", "{}")
    assert list(check_store(hub)) == [] and blobs.examine(record.digest) == (5, record.digest)
    shelf.objects[record.digest] = b"hullo"
    assert blobs.path(record.digest).read_bytes() == b"hello"
    assert [problem.kind for problem in check_store(hub)] == ["damaged"]
    shelf.objects[record.digest] = b"hell"
    assert [problem.kind for problem in check_store(hub)] == ["size"]
    del shelf.objects[record.digest]
    assert [problem.kind for problem in check_store(hub)] == ["missing"]
    hub.catalog.close()
