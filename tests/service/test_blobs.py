"""Blobs: bytes under the name of their hash, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.service.compressing import digest_of
from tests.service.serving import Serve, Served, assert_error, ok

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
