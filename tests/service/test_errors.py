"""One error shape for everything that can go wrong, also where no route of ours was reached."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service.serving import Serve, Served, assert_error, ok

from patchbay import errors
from patchbay_server.errors import STATUS, Unauthorized, UnsupportedParameter, status_of

JSON = {"content-type": "application/json"}
IMAGE = {"array": [[[0.1] * 16] * 16] * 3}


@pytest.mark.parametrize(
    "path", ["/", "/nope", "/v1", "/v1/delta", "/v1/deltas/a/b/c", "/v1/deltas/a/current", "/docs"]
)
def test_unknown_routes(vit: Served, path: str) -> None:
    response = vit.get(path)
    if path.endswith("/current"):
        assert_error(response, 405, "method_not_allowed")
    else:
        assert_error(response, 404, "unknown_route")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/v1/classify", "POST"),
        ("GET", "/v1/classify", "POST"),
        ("PATCH", "/v1/deltas", "GET, POST"),
        ("POST", "/v1/deltas/math", "DELETE, GET, PUT"),
        ("POST", "/v1/blobs/nothing", "HEAD, PUT"),
        ("DELETE", "/v1/deltas/math/current", "PUT"),
        ("POST", "/healthz", "GET"),
        ("BREW", "/v1/models", "GET"),
    ],
)
def test_methods_that_a_route_does_not_have(vit: Served, method: str, path: str, allowed: str) -> None:
    response = vit.client.request(method, path)
    message = assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed
    assert message == f"{method} is not for this path: send {allowed}"


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b'{"model": ', 422, None),
        (b"\xff\xfe{}", 422, None),
        (b'{"model": "base", "input": "\xff"}', 400, None),
        (b"[]", 422, "body"),
        (b'"text"', 422, "body"),
        (b"", 422, "body"),
        (b'{"model": "base"}', 422, "input"),
        (b'{"model": "\\ud800", "input": "x"}', 422, "model"),
        (b'{"model": ' + b"[" * 100_000, 400, None),
        (b'{"model": ' + b"9" * 5000 + b"}", 400, None),
    ],
    ids=range(10),
)
def test_bodies_that_cannot_be_read(vit: Served, content: bytes, status: int, param: str | None) -> None:
    response = vit.client.post("/v1/classify", content=content, headers=JSON)
    assert_error(response, response.status_code, "invalid_request", response.json()["error"]["param"])
    assert response.status_code == status and response.json()["error"]["param"] == param


def test_a_body_of_another_type(vit: Served) -> None:
    response = vit.client.post("/v1/classify", content=b"a=1", headers={"content-type": "text/plain"})
    assert_error(response, 422, "invalid_request", "body")


def in_chunks(data: bytes) -> Iterator[bytes]:
    yield from (data[i : i + 100] for i in range(0, len(data), 100))


def test_bodies_over_the_cap(serve: Serve) -> None:
    served = serve("vit", max_body_bytes=1000)
    body = b'{"model": "base", "input": "' + b"x" * 970 + b'"}'
    assert len(body) == 1000
    for path in ("/v1/classify", "/v1/embeddings", "/v1/completions", "/v1/merges", "/nope"):
        declared = served.client.post(path, content=body + b" ", headers=JSON)
        assert "1000 bytes" in assert_error(declared, 413, "body_too_large")
    streamed = served.client.post("/v1/classify", content=in_chunks(body + b" "), headers=JSON)
    assert "content-length" not in streamed.request.headers
    assert_error(streamed, 413, "body_too_large")
    put = served.client.put("/v1/deltas/math/current", content=in_chunks(body + b" "), headers=JSON)
    assert_error(put, 413, "body_too_large")
    fits = served.client.post("/v1/classify", content=in_chunks(body), headers=JSON)
    assert_error(fits, 422, "invalid_input", "input")


def test_a_failure_of_the_server_tells_the_log_and_not_the_caller(
    vit: Served, caplog: pytest.LogCaptureFixture
) -> None:
    vit.hub.catalog.save_merge("default", "broken", "written by hand, and no JSON")
    assert "JSON" not in assert_error(vit.get("/v1/merges/broken"), 500, "internal_error")
    assert "a request failed" in caplog.text and "JSONDecodeError" in caplog.text
    assert_error(vit.post("/v1/classify", {"model": "broken", "input": IMAGE}), 500, "internal_error")


def only_blob(served: Served, name: str) -> Path:
    digest = ok(served.get(f"/v1/deltas/{name}"))["digest"].removeprefix("sha256:")
    return served.store / "blobs" / "sha256" / digest[:2] / digest


@pytest.mark.parametrize("damage", ["deleted", "cut", "changed", "foreign"])
def test_bytes_that_were_lost_in_the_store(
    serve: Serve, vit: Served, delta_file: object, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """It is the store's failure, not the caller's: a 503 that says what to do, and doing it helps."""
    blob = only_blob(vit, "math")
    data = blob.read_bytes()
    changed = {"cut": data[:-5], "changed": data[:-5] + b"12345", "foreign": b"PK\x03\x04"}
    if damage == "deleted":
        blob.unlink()
    else:
        blob.write_bytes(changed[damage])
    body = {"model": "math", "input": IMAGE}
    message = assert_error(vit.post("/v1/classify", body), 503, "store_unavailable")
    assert "upload the same file again" in message
    assert "Traceback" not in caplog.text and "store" in caplog.text
    if damage == "deleted":
        assert_error(vit.get("/v1/deltas/math/file"), 404, "not_found", "digest")
    ok(vit.post("/v1/classify", {"model": "code", "input": IMAGE}))
    ok(vit.send("math", data))
    ok(vit.post("/v1/classify", body))


def test_a_catalog_that_is_gone(vit: Served, caplog: pytest.LogCaptureFixture) -> None:
    vit.hub.catalog.close()
    for response in (
        vit.get("/readyz"),
        vit.get("/v1/deltas"),
        vit.post("/v1/classify", {"model": "math", "input": IMAGE}),
        vit.post("/v1/merges", {"name": "m", "recipe": "math"}),
    ):
        assert_error(response, 503, "store_unavailable")
    assert vit.get("/healthz").status_code == 200
    assert ok(vit.post("/v1/classify", {"model": "base", "input": IMAGE}))["data"]
    assert {record.levelno for record in caplog.records if record.name == "patchbay_server"} == {logging.ERROR}


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def test_every_error_has_a_status_and_a_code_of_its_own() -> None:
    ours = [cls for cls in subclasses(errors.PatchbayError) if cls.__module__ == "patchbay.errors"]
    codes = [cls.code for cls in (*ours, Unauthorized, UnsupportedParameter)]
    assert len(set(codes)) == len(codes)
    for cls in STATUS:
        assert 400 <= STATUS[cls] < 600 and issubclass(cls, errors.PatchbayError)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.WrongBase("x"), 422),
        (errors.UnsupportedFile("x"), 415),
        (errors.DeltaTooLarge("x"), 413),
        (errors.AmbiguousHead("x"), 422),
        (errors.StoreFull("x"), 507),
        (errors.StoreUnavailable("x"), 503),
        (errors.PatchInProgress("x"), 500),
        (errors.UnsupportedBackbone("x"), 500),
    ],
)
def test_the_nearest_class_decides(error: errors.PatchbayError, status: int) -> None:
    assert status_of(error) == status
