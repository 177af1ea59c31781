"""Uploads in parts, as a tus client makes them, and deltas made of what they brought."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from httpx2 import Response
from tests.service.commands.test_remote import running
from tests.service.serving import Serve, Served, assert_error, ok
from tests.service.tenants import OPERATOR, tenant
from tests.service.test_audit import told
from tests.waiting import until

from patchbay.backbone import Backbone
from patchbay.store.partial import Partial
from patchbay.store.tenants import Limits
from patchbay_server import connections
from patchbay_server.settings import Settings

CAP = 3 << 20
PART = "application/offset+octet-stream"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def field(data: bytes) -> str:
    """Its Content-Digest."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def begin(client: Any, digest: str, length: int, **headers: str) -> Response:
    metadata = f"filename bWF0aA==,digest {base64.b64encode(digest.encode()).decode()}"
    sent = {"Tus-Resumable": "1.0.0", "Upload-Length": str(length), "Upload-Metadata": metadata, **headers}
    response: Response = client.request("POST", "/v1/uploads", headers=sent)
    return response


def append(client: Any, digest: str, offset: int, data: Any, **headers: str) -> Response:
    sent = {"Tus-Resumable": "1.0.0", "Upload-Offset": str(offset), "Content-Type": PART, **headers}
    response: Response = client.request("PATCH", f"/v1/uploads/{digest}", content=data, headers=sent)
    return response


def offset(client: Any, digest: str) -> int:
    response = client.request("HEAD", f"/v1/uploads/{digest}")
    assert response.status_code == 200 and response.headers["cache-control"] == "no-store"
    return int(response.headers["upload-offset"])


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve("vit", max_blob_bytes=CAP, max_body_bytes=1000)


@pytest.fixture
def data() -> bytes:
    return bytes(range(256)) * ((2 << 20) // 256) + b"the end"


def test_a_blob_that_comes_in_parts(served: Served, data: bytes) -> None:
    digest, client = digest_of(data), served.client
    begun = begin(client, digest, len(data))
    assert (begun.status_code, begun.headers["location"]) == (201, f"/v1/uploads/{digest}")
    assert (begun.headers["upload-offset"], begun.headers["tus-resumable"]) == ("0", "1.0.0")
    assert parsedate_to_datetime(begun.headers["upload-expires"]).tzinfo is not None
    half = len(data) // 2
    first = append(client, digest, 0, data[:half])
    assert (first.status_code, first.headers["upload-offset"]) == (204, str(half)) and not first.content
    assert offset(client, digest) == half
    assert client.head(f"/v1/blobs/{digest}").status_code == 404
    last = append(client, digest, half, data[half:])
    assert (last.status_code, last.headers["upload-offset"]) == (204, str(len(data)))
    assert "upload-expires" not in last.headers and offset(client, digest) == len(data)
    assert client.head(f"/v1/blobs/{digest}").headers["content-length"] == str(len(data))
    assert served.hub.open_blob(digest).read_bytes() == data
    name = digest.removeprefix("sha256:")
    assert served.files() == {f"blobs/sha256/{name[:2]}/{name}"}
    again = begin(client, digest, len(data))
    assert (again.status_code, again.headers["upload-offset"]) == (201, str(len(data)))
    [counted] = re.findall(r"^patchbay_blob_bytes_total (\S+)$", served.get("/metrics").text, re.MULTILINE)
    assert float(counted) == len(data)


def test_a_part_of_which_the_length_is_not_said(served: Served, data: bytes) -> None:
    def chunked() -> Iterator[bytes]:
        yield from (data[at : at + 100_000] for at in range(0, len(data), 100_000))

    begin(served.client, digest_of(data), len(data))
    assert append(served.client, digest_of(data), 0, chunked()).headers["upload-offset"] == str(len(data))


def test_nothing_at_all_is_whole_at_once(served: Served) -> None:
    begun = begin(served.client, digest_of(b""), 0)
    assert begun.status_code == 201 and offset(served.client, digest_of(b"")) == 0
    assert served.client.head(f"/v1/blobs/{digest_of(b'')}").status_code == 200
    assert_error(begin(served.client, digest_of(b"x"), 0), 422, "digest_mismatch", "digest")


def test_a_part_that_does_not_continue_is_refused_with_the_true_offset(served: Served, data: bytes) -> None:
    digest, client = digest_of(data), served.client
    begin(client, digest, len(data))
    append(client, digest, 0, data[:1000])
    for wrong in (0, 999, 1001, len(data)):
        refused = append(client, digest, wrong, data[wrong : wrong + 10])
        assert_error(refused, 409, "upload_conflict", "Upload-Offset")
        assert refused.headers["upload-offset"] == "1000" and refused.headers["tus-resumable"] == "1.0.0"
    assert offset(client, digest) == 1000
    with Partial(served.hub.blobs.uploads / "default" / digest.removeprefix("sha256:"), len(data)):
        refused = append(client, digest, 1000, b"x")
        assert_error(refused, 409, "upload_conflict")
        assert "upload-offset" not in refused.headers, "whoever writes moves it"
    assert append(client, digest, 1000, data[1000:]).status_code == 204


def test_more_than_was_promised(served: Served) -> None:
    digest, client = digest_of(b"1234"), served.client
    begin(client, digest, 4)
    assert_error(append(client, digest, 0, b"12345"), 413, "body_too_large")
    assert_error(append(client, digest, 0, iter([b"123", b"45"])), 409, "upload_conflict", "Upload-Length")
    assert append(client, digest, offset(client, digest), b"1234"[offset(client, digest) :]).status_code == 204


def test_other_bytes_than_promised_are_not_kept(served: Served) -> None:
    digest = digest_of(b"the true bytes")
    begin(served.client, digest, 6)
    message = assert_error(append(served.client, digest, 0, b"others"), 422, "digest_mismatch", "digest")
    assert digest in message and digest_of(b"others") in message
    assert served.files() == set() and served.client.head(f"/v1/uploads/{digest}").status_code == 404


def test_a_part_with_its_digest_is_kept_as_a_whole_or_not_at_all(served: Served, data: bytes) -> None:
    digest, client = digest_of(data), served.client
    begin(client, digest, len(data))
    append(client, digest, 0, data[:10], **{"Content-Digest": field(data[:10])})
    refused = append(client, digest, 10, data[10:-1], **{"Content-Digest": field(data[10:])})
    message = assert_error(refused, 422, "digest_mismatch", "content-digest")
    assert digest_of(data[10:]) in message and digest_of(data[10:-1]) in message
    assert offset(client, digest) == 10
    assert append(client, digest, 10, data[10:], **{"Content-Digest": field(data[10:])}).status_code == 204


def test_deleted(served: Served, data: bytes) -> None:
    digest, client = digest_of(data), served.client
    begin(client, digest, len(data))
    append(client, digest, 0, data[:1000])
    assert client.delete(f"/v1/uploads/{digest}").status_code == 204
    assert served.files() == set()
    assert_error(client.delete(f"/v1/uploads/{digest}"), 404, "not_found", "digest")
    assert_error(append(client, digest, 0, data), 404, "not_found", "digest")


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"Upload-Length": "-1"}, "Upload-Length"),
        ({"Upload-Length": "1" * 19}, "Upload-Length"),
        ({"Upload-Length": "ten"}, "Upload-Length"),
        ({"Upload-Metadata": "digest"}, "Upload-Metadata"),
        ({"Upload-Metadata": "digest eHl6"}, "Upload-Metadata"),
        ({"Upload-Metadata": "digest !"}, "Upload-Metadata"),
        ({"Upload-Metadata": "name c2hhMjU2"}, "Upload-Metadata"),
    ],
)
def test_what_cannot_be_begun(served: Served, headers: dict[str, str], param: str) -> None:
    assert_error(begin(served.client, digest_of(b""), 1, **headers), 422, "invalid_input", param)


def test_what_is_no_tus_of_this_kind(served: Served) -> None:
    digest, client = digest_of(b"x"), served.client
    other = begin(client, digest, 1, **{"Tus-Resumable": "0.2.2"})
    assert_error(other, 412, "http_error")
    assert other.headers["tus-version"] == "1.0.0"
    begin(client, digest, 1)
    assert_error(append(client, digest, 0, b"x", **{"Content-Type": "application/octet-stream"}), 415, "http_error")
    assert_error(append(client, digest, 0, b"x", **{"Upload-Offset": "x"}), 422, "invalid_input", "Upload-Offset")
    large = begin(client, digest, CAP + 1)
    assert_error(large, 413, "body_too_large")
    assert large.headers["tus-max-size"] == str(CAP)
    assert_error(begin(client, digest, 2), 409, "upload_conflict", "length")


def test_an_upload_is_its_tenants_own_and_counts(serve: Serve, data: bytes) -> None:
    served = serve("vit", api_key=OPERATOR)
    acme, bolt, digest = tenant(served, "acme"), tenant(served, "bolt"), digest_of(data)
    served.hub.catalog.tenants.set_limits("acme", Limits(max_bytes=len(data) + 10))
    ok_begun = begin_as(acme, digest, len(data))
    assert ok_begun.status_code == 201
    assert_error(begin_as(acme, digest_of(b"x" * 11), 11), 403, "quota_exceeded", "max_bytes")
    assert_error(
        acme.ask("PUT", f"/v1/blobs/{digest_of(b'x' * 11)}", content=b"x" * 11), 403, "quota_exceeded", "max_bytes"
    )
    append(client_of(acme), digest, 0, data[:500])
    assert bolt.ask("HEAD", f"/v1/uploads/{digest}").status_code == 404
    assert begin_as(bolt, digest, len(data)).headers["upload-offset"] == "0"
    assert append(client_of(acme), digest, 500, data[500:]).status_code == 204
    assert served.hub.catalog.tenants.usage("acme").num_bytes == len(data)
    assert bolt.ask("HEAD", f"/v1/blobs/{digest}").status_code == 404
    changes = told(served, "tenant", "action", "subject", "result")
    assert {("acme", "POST /v1/uploads", digest, "201"), ("acme", "PATCH /v1/uploads/{digest}", digest, "204")} <= {
        *changes
    }


def test_a_delta_of_a_blob(served: Served, delta_file: Callable[..., Path]) -> None:
    data = delta_file("vit", 1).read_bytes()
    digest, client = digest_of(data), served.client
    put = {"blob": digest}
    assert_error(served.put("/v1/deltas/math", put), 404, "not_found", "blob")
    begin(client, digest, len(data))
    append(client, digest, 0, data)
    record = ok(served.put("/v1/deltas/math", put), 201)
    assert (record["name"], record["version"], record["digest"], record["current"]) == ("math", 1, digest, True)
    assert record["summary"] == ok(served.send("other", data), 201)["summary"]
    usage = served.hub.catalog.tenants.usage("default")
    assert usage.num_bytes == 2 * len(data), "each version once, and the blob no more"
    assert ok(served.put("/v1/deltas/math", put)) == record
    staged = ok(served.put("/v1/deltas/third", {"blob": digest, "activate": False}), 201)
    assert not staged["current"]
    assert served.client.get("/v1/deltas/math/file").content == data


def test_a_blob_that_is_no_delta_or_no_delta_of_this_name(served: Served, delta_file: Callable[..., Path]) -> None:
    good = delta_file("vit", 1).read_bytes()
    pickle = b"PK\x03\x04" + bytes(100)
    for data in (good, good[:-1], pickle):
        ok(served.client.put(f"/v1/blobs/{digest_of(data)}", content=data), 201)
    for data, code in ((good[:-1], "malformed_delta"), (pickle, "unsupported_file")):
        assert served.put("/v1/deltas/math", {"blob": digest_of(data)}).json()["error"]["code"] == code
    assert_error(served.put("/v1/deltas/base", {"blob": digest_of(good)}), 422, "invalid_name", "name")
    assert_error(served.put("/v1/deltas/math", {"blob": "sha256:x"}), 422, "invalid_request", "blob")
    ok(served.put("/v1/deltas/math", {"blob": digest_of(good)}), 201)
    ok(served.post("/v1/merges", {"name": "mix", "recipe": "0.5*math"}), 201)
    assert_error(served.put("/v1/deltas/mix", {"blob": digest_of(good)}), 409, "name_taken", "name")
    assert [record["name"] for record in ok(served.get("/v1/deltas"))["data"]] == ["math"]


def test_a_delta_of_a_blob_that_is_too_large(serve: Serve, delta_file: Callable[..., Path]) -> None:
    data = delta_file("vit", 1).read_bytes()
    served = serve("vit", max_upload_bytes=len(data) - 1)
    ok(served.client.put(f"/v1/blobs/{digest_of(data)}", content=data), 201)
    assert_error(served.put("/v1/deltas/math", {"blob": digest_of(data)}), 413, "delta_too_large", "file")


@pytest.mark.parametrize("route", ["delta", "blob"])
def test_content_digest_of_a_whole_body(served: Served, delta_file: Callable[..., Path], route: str) -> None:
    data = delta_file("vit", 1).read_bytes()
    other = field(b"other bytes")

    def send(said: str) -> Response:
        headers = {"Content-Digest": said}
        if route == "blob":
            return served.client.put(f"/v1/blobs/{digest_of(data)}", content=data, headers=headers)
        return served.client.post("/v1/deltas", params={"name": "math"}, content=data, headers=headers)

    message = assert_error(send(other), 422, "digest_mismatch", "content-digest")
    assert digest_of(data) in message and digest_of(b"other bytes") in message
    for unreadable in ("sha-256=abc", "sha-256=:!!:", "sha-256=:YWJj:", "sha-256"):
        assert_error(send(unreadable), 422, "invalid_input", "content-digest")
    assert served.files() == set()
    ok(send(f"sha-512=:YWJj:, {field(data)}"), 201)


def test_a_sender_that_falls_silent_or_goes_away_keeps_what_it_sent(
    backbone: Callable[[str], Backbone], tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BODY_S", 0.3)
    base, digest = backbone("vit"), digest_of(data)
    with running(Settings(base=str(base.folder), store=tmp_path), base) as url:
        place = httpx2.URL(url)
        with httpx2.Client(base_url=url) as client:
            begin(client, digest, len(data))
            for goes in (False, True):
                at = offset(client, digest)
                head = f"PATCH /v1/uploads/{digest} HTTP/1.1\r\nHost: {place.host}\r\nContent-Type: {PART}\r\n"
                head += f"Upload-Offset: {at}\r\nContent-Length: {len(data) - at}\r\n\r\n"
                with socket.create_connection((place.host, place.port)) as sender:
                    sender.sendall(head.encode() + data[at : at + 500_000])
                    if not goes:
                        assert sender.recv(100).startswith(b"HTTP/1.1 408")
                until(lambda at=at: offset(client, digest) == at + 500_000)
            at = offset(client, digest)
            assert at == 1_000_000 and append(client, digest, at, data[at:]).status_code == 204
            assert client.head(f"/v1/blobs/{digest}").status_code == 200


def begin_as(one: Any, digest: str, length: int) -> Response:
    return begin(client_of(one), digest, length)


def client_of(one: Any) -> Any:
    """A tenant, as `begin` and `append` want a client."""

    class As:
        def request(self, method: str, path: str, **options: Any) -> Response:
            response: Response = one.ask(method, path, **options)
            return response

    return As()
