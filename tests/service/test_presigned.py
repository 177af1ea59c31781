"""Uploads past the server, on a real S3 server: the URL, what is put there, and what becomes of it."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.store import ObjectStore, from_url
from tests.service.commands.conftest import Cli, cli
from tests.service.commands.test_compress import report_of
from tests.service.serving import Serve, Served, assert_error, ok
from tests.service.test_resumable import digest_of
from tests.stores.moto_server import new_bucket, s3_endpoint

from patchbay.store import presigned as module
from patchbay.store.presigned import Presigned
from patchbay.store.tenants import Limits
from patchbay_server.stores import object_staging

__all__ = ["cli", "new_bucket", "s3_endpoint"]

DATA = bytes(range(256)) * 40
D = digest_of(DATA)


@pytest.fixture
def bucket(new_bucket: Callable[[], str]) -> str:
    return new_bucket()


@pytest.fixture
def straight(bucket: str) -> ObjectStore:
    """Past the server: what is really there."""
    return from_url(bucket, client_options={"allow_http": True})


@pytest.fixture
def served(serve: Serve, bucket: str) -> Iterator[Served]:
    return serve("vit", blob_url=bucket)


def presign(served: Served, digest: str = D, length: int = len(DATA), status: int = 201) -> str:
    body = ok(served.post("/v1/uploads:presign", {"blob": digest, "length": length}), status)
    assert body["blob"] == digest and body["headers"] == {}
    return str(body["url"])


def put(url: str, data: bytes) -> None:
    """As curl would, with no key of ours."""
    kind = {"Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(url, data, kind, method="PUT"), timeout=60) as answer:
        assert answer.status == 200


def objects(straight: ObjectStore) -> set[str]:
    return {found["path"] for page in obstore.list(straight) for found in page}


def stored(digest: str) -> str:
    name = digest.removeprefix("sha256:")
    return f"sha256/{name[:2]}/{name}"


def test_a_blob_that_was_put_past_the_server(served: Served, straight: ObjectStore) -> None:
    url = presign(served)
    assert "Signature" in url and served.hub.catalog.tenants.usage("default").num_bytes == len(DATA)
    assert_error(served.post(f"/v1/uploads/{D}/finish"), 409, "upload_conflict")
    put(url, DATA)
    assert served.client.head(f"/v1/blobs/{D}").status_code == 404
    assert ok(served.post(f"/v1/uploads/{D}/finish"), 201) == {"digest": D, "size": len(DATA)}
    assert objects(straight) == {stored(D)}
    assert served.hub.open_blob(D).read_bytes() == DATA
    assert ok(served.post(f"/v1/uploads/{D}/finish")) == {"digest": D, "size": len(DATA)}
    assert served.hub.catalog.tenants.usage("default").num_bytes == len(DATA)
    assert ok(served.post("/v1/uploads:presign", {"blob": D, "length": len(DATA)}))["url"] is None


def test_a_delta_comes_past_the_server(served: Served, straight: ObjectStore, delta_file: Callable[..., Path]) -> None:
    data = delta_file("vit", 1).read_bytes()
    put(presign(served, digest_of(data), len(data)), data)
    ok(served.post(f"/v1/uploads/{digest_of(data)}/finish"), 201)
    assert ok(served.put("/v1/deltas/math", {"blob": digest_of(data)}), 201)["size"] == len(data)
    assert served.get("/v1/deltas/math/file").content == data


@pytest.mark.parametrize("other", [DATA[:-1] + b"x", DATA + b"x", DATA[:-1], b""])
def test_other_bytes_than_promised_become_no_blob(served: Served, straight: ObjectStore, other: bytes) -> None:
    put(presign(served), other)
    response = served.post(f"/v1/uploads/{D}/finish")
    if len(other) == len(DATA):
        message = assert_error(response, 422, "digest_mismatch", "digest")
        assert D in message and digest_of(other) in message
        assert objects(straight) == set()
        assert_error(served.post(f"/v1/uploads/{D}/finish"), 404, "not_found", "digest")
        assert served.hub.catalog.tenants.usage("default").num_bytes == 0
    else:
        message = assert_error(response, 409, "upload_conflict")
        assert f"{len(other)} bytes came" in message
        put(presign(served), DATA)
        ok(served.post(f"/v1/uploads/{D}/finish"), 201)
    assert served.hub.blobs.digests() <= {D}


def test_what_is_written_while_it_is_looked_at_reaches_no_blob(
    served: Served, straight: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the URL puts other bytes after the right ones were seen."""
    url, read = presign(served), object_staging.read_pieces
    put(url, DATA)

    def read_then_put(store: ObjectStore, key: str, size: int) -> Iterator[memoryview]:
        yield from read(store, key, size)
        put(url, b"x" * len(DATA))

    monkeypatch.setattr(object_staging, "read_pieces", read_then_put)
    ok(served.post(f"/v1/uploads/{D}/finish"), 201)
    assert bytes(obstore.get(straight, stored(D)).bytes()) == DATA


def test_what_cannot_be_put(serve: Serve, bucket: str) -> None:
    served = serve("vit", blob_url=bucket, max_blob_bytes=6 << 30)
    for length, status, code in ((module.MAX_STAGED + 1, 422, "invalid_input"), ((6 << 30) + 1, 413, "body_too_large")):
        response = served.post("/v1/uploads:presign", {"blob": D, "length": length})
        assert_error(response, status, code, "length" if status == 422 else None)
    served.hub.catalog.tenants.set_limits("default", Limits(max_bytes=10))
    refused = served.post("/v1/uploads:presign", {"blob": D, "length": 11})
    assert_error(refused, 403, "quota_exceeded", "max_bytes")
    files = serve("vit")
    for response in (
        files.post("/v1/uploads:presign", {"blob": D, "length": 1}),
        files.post(f"/v1/uploads/{D}/finish"),
    ):
        message = assert_error(response, 422, "invalid_input")  # no other digest would do: no field offends
        assert "POST /v1/uploads" in message


def test_what_nobody_finishes_is_swept(served: Served, straight: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    other = digest_of(b"other")
    put(presign(served), DATA)
    put(presign(served, other, 5), b"other")
    obstore.put(straight, "taken/half", b"half")
    obstore.put(straight, "staging/notes.txt", b"a stranger's")
    uploads = Presigned(served.hub)
    assert list(uploads.sweep()) == []
    served.hub.catalog.uploads.end("default", other)
    assert [(found.tenant, found.digest, found.size) for found in uploads.sweep(dry_run=True)] == [
        ("default", other, 5)
    ]
    assert [found.digest for found in uploads.sweep()] == [other]
    monkeypatch.setattr(object_staging, "LEFT_OVER", timedelta(0))
    assert [found.size for found in uploads.sweep()] == [4]
    assert objects(straight) == {f"staging/default/{D.removeprefix('sha256:')}", "staging/notes.txt"}
    ok(served.post(f"/v1/uploads/{D}/finish"), 201)


def test_gc_sweeps_it(served: Served, bucket: str, straight: ObjectStore, cli: Cli) -> None:
    put(presign(served), DATA)
    served.hub.catalog.uploads.end("default", D)
    swept = report_of(cli, "store", "gc", "--store", served.store, "--blob-url", bucket)
    assert swept["uploads"] == {"count": 1, "bytes": len(DATA)} and objects(straight) == set()
