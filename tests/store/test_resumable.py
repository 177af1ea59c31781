"""Uploads that break and go on, on a store of files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.store.test_catalog_contract import digest
from tests.store.test_hub import new_hub, upload

from patchbay.errors import NotFound, UploadConflict
from patchbay.store import Hub
from patchbay.store import resumable as module
from patchbay.store.resumable import Resumable
from patchbay.store.tenants import Usage

T = "default"
TEXT = b"hello world"
D = digest(TEXT.decode())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with closing(new_hub(tmp_path)) as hub:
        yield hub


@pytest.fixture
def uploads(hub: Hub) -> Resumable:
    return Resumable(hub)


def send(uploads: Resumable, data: bytes, tenant: str = T, wanted: str = D) -> str | None:
    """One part; the digest of the whole, if it is."""
    with uploads.open(tenant, wanted)[1] as partial:
        partial.write(data)
        partial.sync()
        return uploads.finish(tenant, wanted, partial) if partial.is_whole else None


def partials(hub: Hub) -> list[Path]:
    return [path for path in hub.blobs.uploads.rglob("*") if path.is_file()]


def test_parts_become_the_blob_that_they_promised(hub: Hub, uploads: Resumable) -> None:
    assert uploads.begin(T, D, 11).offset == 0
    assert send(uploads, TEXT[:4]) is None
    state = uploads.state(T, D)
    assert (state.offset, state.length) == (4, 11) and uploads.begin(T, D, 11).offset == 4
    assert send(uploads, TEXT[4:]) == D
    assert hub.has_blob(T, D) and hub.open_blob(D).read_bytes() == TEXT
    whole = uploads.state(T, D)
    assert (whole.offset, whole.expires_at) == (11, None) and uploads.begin(T, D, 11) == whole
    assert partials(hub) == [] and hub.catalog.tenants.usage(T) == Usage(11, 0)
    with pytest.raises(NotFound):
        uploads.open(T, D)


def test_other_bytes_leave_nothing(hub: Hub, uploads: Resumable) -> None:
    uploads.begin(T, D, 11)
    assert send(uploads, b"hello_world") == digest("hello_world")
    assert partials(hub) == [] and hub.blobs.digests() == set() and hub.catalog.tenants.usage(T) == Usage(0, 0)
    with pytest.raises(NotFound):
        uploads.state(T, D)


def test_what_the_tenant_has_is_whole_and_what_others_have_is_not(hub: Hub, uploads: Resumable) -> None:
    upload(hub, "math", TEXT)
    assert uploads.begin(T, D, 11).offset == 11
    assert uploads.begin("other", D, 11).offset == 0
    assert send(uploads, TEXT[:5], "other") is None
    assert uploads.state(T, D).offset == 11
    assert send(uploads, TEXT[5:], "other") == D and hub.has_blob("other", D)


def test_dropped_it_is_gone(hub: Hub, uploads: Resumable) -> None:
    uploads.begin(T, D, 11)
    send(uploads, TEXT[:4])
    with uploads.open(T, D)[1], pytest.raises(UploadConflict):
        uploads.drop(T, D)
    assert uploads.state(T, D).offset == 4
    uploads.drop(T, D)
    assert partials(hub) == [] and hub.catalog.tenants.usage(T) == Usage(0, 0)
    for gone in (uploads.state, uploads.open, uploads.drop):
        with pytest.raises(NotFound):
            gone(T, D)
    assert uploads.begin(T, D, 11).offset == 0


@pytest.mark.parametrize("text", ["../../etc/passwd", "sha256:" + "A" * 64, "", "sha256:"])
def test_what_is_no_digest_becomes_no_path(uploads: Resumable, text: str) -> None:
    for ask in (lambda: uploads.begin(T, text, 1), lambda: uploads.state(T, text), lambda: uploads.open(T, text)):
        with pytest.raises(NotFound):
            ask()


def test_what_expired_is_swept_and_nothing_else(hub: Hub, uploads: Resumable, monkeypatch: pytest.MonkeyPatch) -> None:
    for tenant in (T, "other"):
        uploads.begin(tenant, D, 11)
        send(uploads, TEXT[:4], tenant)
    assert list(uploads.sweep()) == []
    with monkeypatch.context() as patch:
        patch.setattr(module, "UNTOUCHED_S", 0.05)
        uploads.begin(T, D, 11)
    time.sleep(0.06)
    expired = [(hub.blobs.uploads / T / D.removeprefix("sha256:"), 4)]
    assert list(uploads.sweep(dry_run=True)) == expired and len(partials(hub)) == 4
    with writing(expired[0][0]):
        assert list(uploads.sweep()) == [], "a part of it comes"
    assert list(uploads.sweep()) == expired and len(partials(hub)) == 2
    assert uploads.state("other", D).offset == 4


def writing(path: Path) -> module.Partial:
    return module.Partial(path, 11)


def test_a_tenant_that_begins_sweeps_its_own(hub: Hub, uploads: Resumable, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "UNTOUCHED_S", 0.05)
        for tenant in (T, "other"):
            uploads.begin(tenant, D, 11)
            send(uploads, TEXT[:4], tenant)
    time.sleep(0.06)
    uploads.begin(T, digest("b"), 5)
    assert {path.parent.name for path in partials(hub)} == {"other"}


def test_what_a_crash_left_of_a_removed_one_is_swept(hub: Hub, uploads: Resumable) -> None:
    uploads.begin(T, D, 11)
    send(uploads, TEXT[:4])
    (hub.blobs.uploads / T / D.removeprefix("sha256:")).unlink()
    assert uploads.state(T, D).offset == 0
    hub.catalog.uploads.end(T, D)
    assert [size for _, size in uploads.sweep()] == [0] and partials(hub) == []
