"""What only object storage can meet: buckets that are not there, strangers, servers that do not answer."""

from __future__ import annotations

import os
import socket
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import obstore
import pytest
from obstore.store import ObjectStore, from_url

from patchbay.errors import StoreUnavailable
from patchbay_server.stores import object_storage
from patchbay_server.stores.object_storage import ObjectStorage

DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(b"hello")
    return file


def straight(bucket: str) -> ObjectStore:
    """Past our own code: what is really there."""
    return from_url(bucket, client_options={"allow_http": True})


def test_objects_lie_under_their_digest(new_bucket: Callable[[], str], file: Path) -> None:
    bucket = new_bucket()
    ObjectStorage(bucket).write(DIGEST, file)
    assert bytes(obstore.get(straight(bucket), f"sha256/aa/{'a' * 64}").bytes()) == b"hello"


def test_strangers_are_no_blobs(new_bucket: Callable[[], str], file: Path) -> None:
    bucket = new_bucket()
    objects = ObjectStorage(bucket)
    objects.write(DIGEST, file)
    for stranger in ("notes.txt", "sha256/notes.txt", "sha256/aa/notes"):
        obstore.put(straight(bucket), stranger, b"x")
    assert objects.digests() == {DIGEST}


def test_prefixes_keep_stores_apart(new_bucket: Callable[[], str], file: Path) -> None:
    bucket = new_bucket()
    one, other = ObjectStorage(f"{bucket}/one"), ObjectStorage(f"{bucket}/other")
    one.write(DIGEST, file)
    assert other.size(DIGEST) is None and other.digests() == set()


def test_a_bucket_that_is_not_there_is_said_at_once(new_bucket: Callable[[], str]) -> None:
    new_bucket()
    with pytest.raises(
        StoreUnavailable, match="the blob store s3://nobody/x does not answer as it should: .*404 Not Found"
    ):
        ObjectStorage("s3://nobody/x")


def test_a_bucket_that_goes_is_unavailable_and_not_empty(new_bucket: Callable[[], str], file: Path) -> None:
    bucket = new_bucket()
    objects = ObjectStorage(bucket)
    name = bucket.removeprefix("s3://").removesuffix("/deltas")
    request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{name}", method="DELETE")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 204
    with pytest.raises(StoreUnavailable, match="not found"):
        objects.write(DIGEST, file)


def test_nobody_listens(new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = new_bucket()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match="does not answer as it should") as refused:
            ObjectStorage(bucket)
    assert "\n" not in refused.value.message and "test" not in refused.value.message


def test_a_server_that_says_nothing_is_given_up(new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_storage, "RETRY_S", 0.2)
    bucket = new_bucket()
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            ObjectStorage(bucket, stall_s=0.1)
        assert time.monotonic() - started < 60, "it hung"
