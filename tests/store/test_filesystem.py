from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchbay.errors import NotFound, StoreFull, StoreUnavailable
from patchbay.store import BlobStore, FileBlobs


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[FileBlobs]:
    blobs = FileBlobs(tmp_path / "blobs")
    yield blobs
    blobs.close()


def put(blobs: BlobStore, content: bytes) -> str:
    temp = blobs.new_temp()
    temp.write_bytes(content)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blobs.put(temp, digest)
    return digest


def files(root: Path) -> list[Path]:
    """Everything that is not a lock."""
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_a_blob_lies_under_its_digest(blobs: FileBlobs, tmp_path: Path) -> None:
    digest = put(blobs, b"hello")
    name = digest.removeprefix("sha256:")
    assert blobs.path(digest) == tmp_path / "blobs" / "sha256" / name[:2] / name
    assert blobs.path(digest).read_bytes() == b"hello"
    assert blobs.exists(digest) and blobs.digests() == {digest}
    assert files(tmp_path) == [blobs.path(digest)]


def test_putting_again_is_no_error_and_leaves_no_second_file(blobs: FileBlobs, tmp_path: Path) -> None:
    assert put(blobs, b"hello") == put(blobs, b"hello")
    assert len(files(tmp_path)) == 1


def test_a_blob_survives_in_a_new_process(blobs: FileBlobs, tmp_path: Path) -> None:
    digest = put(blobs, b"hello")
    again = FileBlobs(tmp_path / "blobs")
    assert again.path(digest).read_bytes() == b"hello"
    again.close()


def test_deleting(blobs: FileBlobs) -> None:
    digest, other = put(blobs, b"hello"), put(blobs, b"world")
    blobs.delete(digest)
    blobs.delete(digest)
    assert not blobs.exists(digest) and blobs.digests() == {other}
    with pytest.raises(NotFound, match=f"no blob {digest}"):
        blobs.path(digest)


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "../../etc/passwd", f"sha256:{'A' * 64}", f"sha256:{'a' * 63}", f"sha256:{'a' * 64}\n"]
    + [f"sha256:{'/' * 64}", f"sha256:../../{'a' * 58}", f"md5:{'a' * 64}", "\ud800", "x" * 100_000],
    ids=range(11),
)
def test_only_digests_become_paths(blobs: FileBlobs, digest: str, tmp_path: Path) -> None:
    temp = blobs.new_temp()
    for call in (blobs.path, blobs.exists, blobs.delete, lambda digest: blobs.put(temp, digest)):
        with pytest.raises(NotFound, match="is not a digest") as refused:
            call(digest)
        assert len(str(refused.value)) < 600
    assert files(tmp_path) == [temp]


def test_strangers_among_the_blobs_are_no_blobs(blobs: FileBlobs, tmp_path: Path) -> None:
    digest = put(blobs, b"hello")
    (blobs.path(digest).parent / "notes.txt").touch()
    assert blobs.digests() == {digest}


def test_temp_files_are_new_empty_and_on_the_same_file_system(blobs: FileBlobs, tmp_path: Path) -> None:
    temps = {blobs.new_temp() for _ in range(10)}
    assert len(temps) == 10
    assert {temp.stat().st_size for temp in temps} == {0}
    assert {temp.stat().st_dev for temp in temps} == {(tmp_path / "blobs" / "sha256").stat().st_dev}
    assert blobs.digests() == set()


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    living = FileBlobs(tmp_path)
    kept = living.new_temp()
    dead = tmp_path / "tmp" / "dead"
    dead.mkdir()
    (dead / ".lock").touch()
    (dead / "half").write_bytes(b"half an upload")
    unlocked = tmp_path / "tmp" / "unlocked"
    unlocked.mkdir()
    FileBlobs(tmp_path).close()
    assert not dead.exists() and not unlocked.exists()
    assert kept.exists()
    living.close()
    assert not kept.exists()


def test_many_may_start_and_stop_at_once(tmp_path: Path) -> None:
    def start_and_stop(number: int) -> set[str]:
        digests = set()
        for i in range(20):
            blobs = FileBlobs(tmp_path)
            digests.add(put(blobs, b"%d %d" % (number, i)))
            blobs.close()
        return digests

    with ThreadPoolExecutor(8) as pool:
        digests = set[str]().union(*pool.map(start_and_stop, range(8)))
    last = FileBlobs(tmp_path)
    assert last.digests() == digests
    last.close()


def test_threads_may_put_the_same_blob_at_once(blobs: FileBlobs, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: put(blobs, b"x" * 100_000), range(40)))
    [digest] = digests
    assert blobs.path(digest).read_bytes() == b"x" * 100_000
    assert len(files(tmp_path)) == 1


def test_the_order_of_writing_is_file_rename_folders(
    blobs: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test can cut the power; what can be seen is that everything is synced, in the order that makes it safe."""
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(f"sync {kind} {Path(f'/proc/self/fd/{descriptor}').readlink().parent.name}")
        real_sync(descriptor)

    def replace(source: str, target: str) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    temp = blobs.new_temp()
    blobs.put(temp, f"sha256:{'a' * 64}")
    assert events == [f"sync file {temp.parent.name}", "rename", "sync folder sha256", "sync folder blobs"]


def test_a_full_disk_is_store_full_and_nothing_half_stays(small_disk: Path) -> None:
    if not small_disk.is_mount():
        pytest.skip("needs root and mount: a limit on file sizes does not limit the number of files")
    blobs = FileBlobs(small_disk / "blobs")
    first = put(blobs, b"first")
    temps: list[Path] = []
    with pytest.raises(StoreFull, match="no space left at"):
        while True:
            temps.append(blobs.new_temp())
    # No folder can be made for the blob either.
    with pytest.raises(StoreFull, match="no space left at"):
        blobs.put(temps[0], f"sha256:{'f' * 64}")
    assert blobs.digests() == {first}
    temps[1].unlink()
    blobs.put(temps[0], f"sha256:{'f' * 64}")
    assert blobs.exists(f"sha256:{'f' * 64}")
    blobs.close()


def test_a_lost_folder_is_store_unavailable(blobs: FileBlobs, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "blobs")
    with pytest.raises(StoreUnavailable, match="cannot be used: No such file"):
        blobs.new_temp()


def test_a_file_in_the_place_of_the_root_is_store_unavailable(tmp_path: Path) -> None:
    (tmp_path / "blobs").touch()
    with pytest.raises(StoreUnavailable):
        FileBlobs(tmp_path / "blobs")
