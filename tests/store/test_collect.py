"""What nothing names goes, and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.store.backends import Store

from patchbay.errors import NotFound, StoreUnavailable
from patchbay.store import FileBlobs, Hub
from patchbay.store.collect import collect
from patchbay.store.fsck import check_store, nameless

T = "default"
HOUR = 3600.0


@pytest.fixture
def hub(store: Store, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(store(), FileBlobs(tmp_path / "blobs"), frozenset())
    yield hub
    hub.blobs.close()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def commit(hub: Hub, name: str, content: bytes) -> str:
    with hub.begin_upload(1 << 20) as upload:
        upload.write(content)
        upload.finish()
        return hub.commit(upload, T, name, "{}")[0].digest


def orphan(hub: Hub, content: bytes) -> str:
    """As a process leaves it that ends between the blob and its name."""
    temp = hub.blobs.new_temp()
    temp.write_bytes(content)
    hub.blobs.put(temp, digest_of(content))
    return digest_of(content)


def removed(hub: Hub, grace_s: float, in_use: set[str] | None = None, *, dry_run: bool = False) -> set[str]:
    return {blob.digest for blob in collect(hub, grace_s, lambda: in_use or set(), dry_run=dry_run)}


def test_what_nothing_names_goes(hub: Hub) -> None:
    named, left = commit(hub, "a", b"named"), orphan(hub, b"left over")
    assert removed(hub, HOUR, dry_run=True) == {left} <= hub.blobs.digests()
    (blob,) = collect(hub, HOUR, set)
    assert (blob.digest, blob.size) == (left, len(b"left over"))
    assert hub.blobs.digests() == {named}
    assert removed(hub, HOUR) == set()


def test_deleted_deltas_go_after_a_grace(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay.store.hub.PUBLISHING_S", 0.0)
    digest = commit(hub, "a", b"1")
    hub.catalog.delete_delta(T, "a")
    time.sleep(0.02)
    assert removed(hub, HOUR) == set()
    assert removed(hub, 0.01) == {digest}


def test_what_is_on_its_way_to_a_name_stays(hub: Hub) -> None:
    commit(hub, "a", b"1")
    hub.catalog.delete_delta(T, "a")
    assert removed(hub, 0) == set()


def test_what_two_names_share_stays_for_the_other(hub: Hub) -> None:
    digest = commit(hub, "a", b"1")
    commit(hub, "b", b"1")
    hub.catalog.delete_delta(T, "a")
    assert removed(hub, 0) == set()
    assert hub.open_blob(digest).read_bytes() == b"1"


def test_what_a_saved_merge_is_made_of_stays(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay.store.hub.PUBLISHING_S", 0.0)
    digest = commit(hub, "a", b"1")
    hub.save_merge(T, "m", f'{{"terms": [["{digest}", 1.0]]}}')
    hub.catalog.delete_delta(T, "a")
    assert removed(hub, 0) == set()
    hub.catalog.delete_merge(T, "m")
    assert removed(hub, 0) == {digest}


def test_what_jobs_read_stays(hub: Hub) -> None:
    left = orphan(hub, b"1")
    assert removed(hub, 0, {left}) == set()
    assert removed(hub, 0) == {left}


def test_what_a_client_has_just_sent_stays(hub: Hub) -> None:
    with hub.begin_upload(100) as upload:
        upload.write(b"1")
        upload.finish()
        assert hub.keep_blob(upload, T)
    assert removed(hub, 0) == set()
    with hub.begin_upload(100) as upload:
        upload.write(b"1")
        upload.finish()
        assert not hub.keep_blob(upload, T)


def test_what_a_client_sent_long_ago_goes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay.store.hub.KEPT_S", 0.0)
    with hub.begin_upload(100) as upload:
        upload.write(b"1")
        upload.finish()
        hub.keep_blob(upload, T)
    assert hub.catalog.has_blob(T, digest_of(b"1"))
    assert removed(hub, 0, dry_run=True) == {digest_of(b"1")} and hub.has_blob(T, digest_of(b"1"))
    assert removed(hub, 0) == {digest_of(b"1")}
    assert not hub.catalog.has_blob(T, digest_of(b"1"))


def test_nothing_is_named_while_it_is_removed(hub: Hub) -> None:
    left = orphan(hub, b"1")
    assert hub.catalog.condemn(left, time.time(), 60)
    with pytest.raises(StoreUnavailable, match="being removed"):
        commit(hub, "a", b"1")
    assert hub.catalog.list_deltas(T) == []
    hub.catalog.pardon(left)
    assert commit(hub, "a", b"1") == left


def test_names_never_point_at_what_is_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads, deletions and collections of the same blobs, all at once."""
    monkeypatch.setattr("patchbay.store.hub.PUBLISHING_S", 0.5)
    contents = [bytes([number]) for number in range(100)]
    stop, failed = threading.Event(), []

    def use(seed: int) -> None:
        source = random.Random(seed)
        while not stop.is_set():
            name = f"name-{seed}"
            with suppress(StoreUnavailable, NotFound):
                digest = commit(hub, name, source.choice(contents))
                if not hub.blobs.exists(digest):
                    failed.append(digest)
                hub.catalog.delete_delta(T, name)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    gone, deadline = 0, time.monotonic() + 2
    while time.monotonic() < deadline:
        gone += len(removed(hub, 0))
    stop.set()
    for thread in threads:
        thread.join()
    assert gone and not failed


def test_a_whole_store_has_no_problem(hub: Hub) -> None:
    for number in range(3):
        commit(hub, f"d{number}", bytes([number]))
    left = orphan(hub, b"left over")
    told: list[tuple[int, int]] = []
    assert list(check_store(hub, lambda done, total: told.append((done, total)))) == []
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert nameless(hub) == {left}


def test_problems_are_found_and_named(hub: Hub) -> None:
    digests = [commit(hub, name, name.encode() * 9) for name in ("gone", "short", "flipped", "whole")]
    hub.blobs.delete(digests[0])
    hub.open_blob(digests[1]).write_bytes(b"short")
    hub.open_blob(digests[2]).write_bytes(b"flippeX" * 9)
    commit(hub, "also-gone", b"x")
    found = {problem.record.name: problem for problem in check_store(hub)}
    assert {name: problem.kind for name, problem in found.items()} == {
        "gone": "missing",
        "short": "size",
        "flipped": "damaged",
    }
    assert "default/gone@1" in found["gone"].message and digests[0] in found["gone"].message


def test_all_versions_are_those_of_all_tenants(hub: Hub) -> None:
    commit(hub, "a", b"1")
    commit(hub, "a", b"2")
    hub.catalog.add_version("other", "b", digest_of(b"1"), 1, "{}")
    hub.catalog.add_version("gone", "c", digest_of(b"1"), 1, "{}")
    hub.catalog.delete_delta("gone", "c")
    found = [(record.tenant, record.name, record.version) for record in hub.catalog.all_versions()]
    assert found == [(T, "a", 1), (T, "a", 2), ("other", "b", 1)]
