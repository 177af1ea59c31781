"""A partial file: what was acknowledged is there, whatever happened after it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.test_catalog_contract import digest

from patchbay.errors import StoreFull, UploadConflict
from patchbay.store import partial as module
from patchbay.store.partial import Partial, read_offset


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "uploads" / "acme" / ("a" * 64)


def test_a_file_that_comes_in_parts(path: Path) -> None:
    for part in (b"hello", b" ", b"world"):
        with Partial(path, 11) as partial:
            assert partial.size == partial.offset == read_offset(path, 11)
            partial.write(part)
            partial.sync()
    assert path.read_bytes() == b"hello world"
    assert partial.is_whole and partial.offset == 10, "the last byte is never said to be there"
    with Partial(path, 11) as partial:
        partial.write(b"d")
        assert partial.is_whole and partial.digest() == digest("hello world")
        partial.remove()
    assert not path.parent.exists()


def test_what_was_not_synced_is_not_there(path: Path) -> None:
    with Partial(path, 100) as partial:
        partial.write(b"sure")
        partial.sync()
        partial.write(b"unsure")
    assert path.stat().st_size == 10 and read_offset(path, 100) == 4
    with Partial(path, 100) as partial:
        assert partial.offset == 4 and path.stat().st_size == 4


def test_it_is_synced_by_itself_where_much_came(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYNC_BYTES", 10)
    with Partial(path, 100) as partial:
        for _ in range(5):
            partial.write(b"1234")
            partial.sync_often()
        assert partial.offset == read_offset(path, 100) == 12


def test_more_than_was_promised_is_refused(path: Path) -> None:
    with Partial(path, 4) as partial:
        partial.write(b"123")
        with pytest.raises(UploadConflict, match="more than the 4 bytes"):
            partial.write(b"45")
        assert partial.size == 3


def test_one_writes_at_a_time(path: Path) -> None:
    with Partial(path, 4), pytest.raises(UploadConflict, match="another request"):
        Partial(path, 4)
    with Partial(path, 4) as partial:
        partial.write(b"1")


@pytest.mark.parametrize("said", ["", "7", "x" * 20, f"{5:020}", f"{4:020}", f"{-1:020}"])
def test_an_offset_that_cannot_be_is_none(path: Path, said: str) -> None:
    with Partial(path, 4) as partial:
        partial.write(b"123")
        partial.sync()
    path.with_name(f"{path.name}.offset").write_text(said)
    assert read_offset(path, 4) == 0
    with Partial(path, 4) as partial:
        assert partial.offset == 0


def test_a_full_disk_loses_nothing_that_was_sure(small_disk: Path) -> None:
    path = small_disk / "tenant" / "file"
    with Partial(path, 3 << 20) as partial:
        partial.write(bytes(1000))
        partial.sync()
        with pytest.raises(StoreFull):
            partial.write(bytes(2 << 20))
    with Partial(path, 3 << 20) as partial:
        assert partial.offset == 1000
        partial.write(b"x" * 1000)
        partial.sync()
    assert path.read_bytes() == bytes(1000) + b"x" * 1000


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=60), cuts=st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=12))
def test_any_parts_and_any_breaks_make_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[tuple[int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("partial") / "tenant" / "file"
    for size, synced in [*cuts, (len(data), True)]:
        acknowledged = read_offset(path, len(data))
        with Partial(path, len(data)) as partial:
            assert partial.offset == acknowledged
            partial.write(data[partial.offset : partial.offset + size])
            if synced:
                partial.sync()
                assert partial.offset == max(0, min(acknowledged + size, len(data) - 1))
    assert path.read_bytes() == data and partial.is_whole


def _write_for_ever(path: Path, pipe: object) -> None:
    with Partial(path, 1 << 30) as partial:
        while True:
            partial.write(bytes([partial.size // 1000 % 256]) * 1000)
            partial.sync()
            os.write(pipe, partial.offset.to_bytes(8, "little"))  # type: ignore[arg-type]


def test_a_writer_that_is_killed_loses_nothing_that_it_acknowledged(path: Path) -> None:
    reader, writer = os.pipe()
    acknowledged = 0
    for _ in range(10):
        child = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path, writer))
        child.start()
        for _ in range(3):
            acknowledged = int.from_bytes(os.read(reader, 8), "little")
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        with Partial(path, 1 << 30) as partial:  # its lock went with it
            assert partial.offset >= acknowledged
            os.set_blocking(reader, False)
            while True:
                try:
                    acknowledged = int.from_bytes(os.read(reader, 8), "little")
                except BlockingIOError:
                    break
            os.set_blocking(reader, True)
            assert partial.offset >= acknowledged
        assert path.read_bytes() == b"".join(bytes([n % 256]) * 1000 for n in range(partial.offset // 1000))
    os.close(reader), os.close(writer)
