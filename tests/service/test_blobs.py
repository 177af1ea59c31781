"""Blobs: bytes under the name of their hash, or nothing at all."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from tests.service.commands.test_remote import running
from tests.service.compressing import digest_of
from tests.service.serving import Serve, Served, assert_error, ok
from tests.waiting import until

from patchbay.backbone import Backbone
from patchbay_server.settings import Settings

CAP = 3 << 20


def put(served: Served, data: bytes, digest: str | None = None) -> object:
    return served.client.put(f"/v1/blobs/{digest or digest_of(data)}", content=data)


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve("vit", max_blob_bytes=CAP, max_body_bytes=1000)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, CAP])
def test_bytes_come_to_lie_under_their_hash(served: Served, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    digest = digest_of(data)
    assert served.client.head(f"/v1/blobs/{digest}").status_code == 404
    assert ok(put(served, data), 201) == {"digest": digest, "size": size}
    assert served.hub.open_blob(digest).read_bytes() == data
    head = served.client.head(f"/v1/blobs/{digest}")
    assert (head.status_code, head.headers["content-length"], head.headers["etag"]) == (200, str(size), f'"{digest}"')
    files = served.files()
    assert ok(put(served, data)) == {"digest": digest, "size": size}
    assert served.files() == files


def test_a_body_in_pieces_without_a_length(served: Served) -> None:
    pieces = [bytes([n]) * 300_000 for n in range(5)]

    def chunked() -> Iterator[bytes]:
        yield from pieces

    digest = digest_of(b"".join(pieces))
    assert ok(served.client.put(f"/v1/blobs/{digest}", content=chunked()), 201)["size"] == 1_500_000


@pytest.mark.parametrize("before", [False, True])
def test_other_bytes_than_promised_are_not_kept(served: Served, before: bool) -> None:
    data = b"the true bytes"
    if before:
        ok(put(served, data), 201)
    files = served.files()
    message = assert_error(put(served, b"others", digest_of(data)), 422, "digest_mismatch", "digest")
    assert digest_of(b"others") in message
    assert served.files() == files


@pytest.mark.parametrize("declared", [True, False])
def test_too_large(served: Served, declared: bool) -> None:
    data = bytes(CAP + 1)
    content = data if declared else (data[i : i + 100_000] for i in range(0, len(data), 100_000))
    response = served.client.put(f"/v1/blobs/{digest_of(data)}", content=content)
    assert "PATCHBAY_MAX_BLOB_BYTES" in assert_error(response, 413, "body_too_large")
    assert served.files() == set()


@pytest.mark.parametrize("digest", ["abc", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha512:" + "a" * 64, "%2e%2e"])
def test_what_is_no_digest(served: Served, digest: str) -> None:
    response = served.client.put(f"/v1/blobs/{digest}", content=b"x")
    if response.status_code != 404:  # a path that is resolved away is another route's
        assert_error(response, 422, "invalid_request", "digest")
    assert served.client.head(f"/v1/blobs/{digest}").status_code in (404, 405, 422)
    assert served.files() == set()


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk is to whoever writes: the write fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, (1 << 20) + 1, CAP - 1])
def test_a_full_disk_keeps_nothing(served: Served, room: int) -> None:
    data = bytes(CAP)
    with no_file_larger_than(room):
        assert_error(put(served, data), 507, "store_full")
    assert served.files() == set()
    ok(put(served, data), 201)


def test_a_place_that_cannot_be_written_keeps_nothing(served: Served) -> None:
    """The last step fails: the whole of it has come and is what was promised."""
    digest = digest_of(b"data")
    place = served.store / "blobs" / "sha256" / digest.removeprefix("sha256:")[:2]
    place.write_bytes(b"")
    files = served.files()
    assert_error(put(served, b"data"), 503, "store_unavailable")
    assert served.files() == files
    place.unlink()
    ok(put(served, b"data"), 201)


@pytest.mark.parametrize("reset", [False, True])
def test_a_sender_that_goes_away_in_the_middle(
    backbone: Callable[[str], Backbone], tmp_path: Path, *, reset: bool
) -> None:
    """On a real socket; once as a process that ended, once as a connection that broke."""
    data = bytes(range(256)) * (CAP // 256)
    base = backbone("vit")
    settings = Settings(base=str(base.folder), store=tmp_path)

    def written() -> list[int]:
        found: list[int] = []
        for path in (tmp_path / "blobs").rglob("*"):
            with suppress(FileNotFoundError):  # it goes while we look
                if path.is_file() and path.name != ".lock":
                    found.append(path.stat().st_size)
        return found

    with running(settings, base) as url:
        place = httpx2.URL(url)
        with socket.create_connection((place.host, place.port)) as sender:
            head = (
                f"PUT /v1/blobs/{digest_of(data)} HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            sender.sendall(head.encode() + data[: CAP // 2])
            until(lambda: sum(written()) >= 1 << 20)
            if reset:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: not written())
        with httpx2.Client(base_url=url) as client:
            assert client.head(f"/v1/blobs/{digest_of(data)}").status_code == 404
            ok(client.put(f"/v1/blobs/{digest_of(data)}", content=data), 201)
        assert written() == [len(data)]
