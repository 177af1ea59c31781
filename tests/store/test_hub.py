from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.errors import DeltaTooLarge, InvalidName, NameTaken, NotFound, StoreFull, StoreUnavailable
from patchbay.store import DeltaRecord, FileBlobs, Hub, SqliteCatalog, check_name

T = "default"
RESERVED = frozenset({"base", "ties"})


def new_hub(root: Path) -> Hub:
    return Hub(SqliteCatalog(root / "catalog.db"), FileBlobs(root / "blobs"), RESERVED)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with closing(new_hub(tmp_path)) as hub:
        yield hub


def upload(
    hub: Hub, name: str, *chunks: bytes | bytearray | memoryview, activate: bool = True
) -> tuple[DeltaRecord, bool]:
    with hub.begin_upload(1 << 20) as incoming:
        for chunk in chunks:
            incoming.write(chunk)
        incoming.finish()
        return hub.commit(incoming, T, name, "{}", activate)


def temp_files(root: Path) -> list[Path]:
    return [path for path in (root / "blobs" / "tmp").rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_an_upload_becomes_a_readable_version(hub: Hub, tmp_path: Path) -> None:
    record, created = upload(hub, "math", b"hello ", bytearray(b"wor"), memoryview(b"ld"))
    assert created and record.size == 11
    assert record.digest == f"sha256:{hashlib.sha256(b'hello world').hexdigest()}"
    assert hub.open_blob(record.digest).read_bytes() == b"hello world"
    assert hub.catalog.get_delta(T, "math") == record
    assert temp_files(tmp_path) == []


def test_the_same_bytes_again_are_the_same_record(hub: Hub, tmp_path: Path) -> None:
    first, _ = upload(hub, "math", b"hello")
    assert upload(hub, "math", b"hel", b"lo") == (first, False)
    assert temp_files(tmp_path) == []


def test_activate_is_passed_on(hub: Hub) -> None:
    upload(hub, "math", b"a")
    assert not upload(hub, "math", b"b", activate=False)[0].current


def test_between_finish_and_commit_the_bytes_can_be_read(hub: Hub) -> None:
    with hub.begin_upload(10) as incoming:
        incoming.write(b"0123456789")
        assert incoming.finish() == incoming.digest == incoming.finish()
        assert incoming.path.read_bytes() == b"0123456789"
        assert hub.blobs.digests() == set()


@pytest.mark.parametrize("finished", [False, True])
def test_what_is_not_committed_leaves_nothing(hub: Hub, tmp_path: Path, finished: bool) -> None:
    with pytest.raises(RuntimeError), hub.begin_upload(10) as incoming:
        incoming.write(b"hello")
        assert temp_files(tmp_path) == [incoming.path]
        if finished:
            incoming.finish()
        raise RuntimeError("the client went away")
    assert temp_files(tmp_path) == []
    assert hub.blobs.digests() == set() and hub.catalog.list_deltas(T) == []


def test_the_cap_is_a_cap(hub: Hub, tmp_path: Path) -> None:
    with hub.begin_upload(10) as incoming:
        incoming.write(b"x" * 10)
        with pytest.raises(DeltaTooLarge, match="over 10 bytes"):
            incoming.write(b"x")
        assert incoming.size == 10
    with hub.begin_upload(10) as incoming:
        with pytest.raises(DeltaTooLarge):
            incoming.write(memoryview(bytes(12)).cast("i"))
        assert incoming.finish() == f"sha256:{hashlib.sha256(b'').hexdigest()}"
    assert temp_files(tmp_path) == []


@settings(max_examples=20, deadline=None)
@given(chunks=st.lists(st.binary(max_size=20), max_size=8))
def test_the_digest_does_not_depend_on_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    with closing(new_hub(tmp_path_factory.mktemp("store"))) as hub:
        record, _ = upload(hub, "math", *chunks)
        whole = b"".join(chunks)
        assert record.digest == f"sha256:{hashlib.sha256(whole).hexdigest()}" and record.size == len(whole)
        assert hub.open_blob(record.digest).read_bytes() == whole


@pytest.mark.parametrize("name", ["a", "0", "math-2", "v1.2_x", "a" * 63])
def test_names(hub: Hub, name: str) -> None:
    assert hub.check_name(name) == check_name(name) == name


@pytest.mark.parametrize("name", ["", "Math", "-a", "_a", "a b", "a/b", "a@1", "a*b", "a" * 64, "a\n", "ä"])
def test_what_is_no_name_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(InvalidName, match="is not a name") as refused:
        hub.check_name(name)
    assert refused.value.param == "name"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names_are_refused_everywhere(hub: Hub, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidName, match=f"the name '{name}' is reserved"):
        hub.check_name(name)
    with pytest.raises(InvalidName, match="reserved"):
        upload(hub, name, b"hello")
    with pytest.raises(InvalidName, match="reserved"):
        hub.save_merge(T, name, "{}")
    assert hub.blobs.digests() == set() and temp_files(tmp_path) == []


def test_a_merges_name_is_refused_and_no_blob_stays(hub: Hub, tmp_path: Path) -> None:
    hub.save_merge(T, "mix", "{}")
    with pytest.raises(NameTaken, match="belongs to a merge"):
        upload(hub, "mix", b"hello")
    assert hub.blobs.digests() == set() and temp_files(tmp_path) == []


def test_a_bad_tenant_is_refused_and_no_blob_stays(hub: Hub) -> None:
    with hub.begin_upload(10) as incoming:
        incoming.finish()
        with pytest.raises(InvalidName):
            hub.commit(incoming, "../x", "math", "{}")
    assert hub.blobs.digests() == set()


def test_an_unknown_blob_is_not_found(hub: Hub) -> None:
    with pytest.raises(NotFound):
        hub.open_blob(f"sha256:{'0' * 64}")


def test_when_the_catalog_fails_no_name_appears(tmp_path: Path) -> None:
    hub = new_hub(tmp_path)
    hub.catalog.close()
    with pytest.raises(StoreUnavailable):
        upload(hub, "math", b"hello")
    hub.close()
    with closing(new_hub(tmp_path)) as again:
        assert again.catalog.list_deltas(T) == [] and temp_files(tmp_path) == []


def test_a_full_disk_refuses_the_upload_and_nothing_stays(small_disk: Path) -> None:
    with closing(new_hub(small_disk)) as hub:
        first, _ = upload(hub, "math", b"a" * 200_000)
        with pytest.raises(StoreFull, match="no space left"), hub.begin_upload(1 << 30) as incoming:
            for _ in range(100):
                incoming.write(b"b" * 100_000)
            incoming.finish()
        assert temp_files(small_disk) == []
        assert hub.blobs.digests() == {first.digest}
        assert upload(hub, "math", b"c" * 200_000)[0].version == 2


def test_a_caller_who_goes_on_after_a_failed_write_is_stopped(small_disk: Path) -> None:
    with closing(new_hub(small_disk)) as hub, hub.begin_upload(1 << 30) as incoming:
        with pytest.raises(StoreFull):
            incoming.write(b"b" * (2 << 20))
        with pytest.raises((StoreFull, StoreUnavailable)):
            incoming.finish()
        with pytest.raises(StoreUnavailable, match="send it again"):
            incoming.finish()
        with pytest.raises(AssertionError):
            hub.commit(incoming, T, "math", "{}")
        assert hub.blobs.digests() == set()


def test_concurrent_uploads(hub: Hub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda i: upload(hub, f"n{i % 3}", b"%d" % (i % 10) * 1000), range(60)))
    for record, _ in records:
        assert hashlib.sha256(hub.open_blob(record.digest).read_bytes()).hexdigest() == record.digest[7:]
    # 60 uploads of 10 contents to 3 names: each content reaches each name.
    assert sum(created for _, created in records) == 30
    assert temp_files(tmp_path) == []
