"""The audit log of a server: every change and refusal of one, and nothing that was said."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import anyio
import pytest
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection
from tests.service.compressing import put_folder, work
from tests.service.serving import Serve, Served, assert_error, ok, serving
from tests.service.tenants import OPERATOR, Tenant, make_key, tenant

from patchbay.backbone import Backbone
from patchbay.store import SqliteCatalog
from patchbay.store.keys import Scope
from patchbay_server.audit import Audited
from patchbay_server.callers import Caller
from patchbay_server.routes import base

IMAGE = {"array": [[[0.1] * 16] * 16] * 3}
WORDS = b"the secret words of a calibration"


def told(served: Served, *fields: str) -> list[tuple[str, ...]]:
    return [tuple(getattr(entry, field) for field in fields) for entry in served.hub.catalog.audit.list_entries()]


def test_every_change_is_there_with_who_what_and_result(serve: Serve, delta_file: Callable[..., Path]) -> None:
    served = serve("vit", api_key=OPERATOR)
    acme, operator = tenant(served, "acme"), Tenant(served, "default", OPERATOR)
    digest = f"sha256:{sha256(WORDS).hexdigest()}"
    acme.upload("math", delta_file("vit", 1).read_bytes())
    acme.upload("math", delta_file("vit", 2).read_bytes())
    ok(acme.ask("PUT", "/v1/deltas/math/current", json={"version": 1}))
    ok(acme.post("/v1/merges", {"name": "mix", "recipe": "0.5*math"}), 201)
    ok(acme.ask("PUT", f"/v1/blobs/{digest}", content=WORDS), 201)
    sweep = {"model": "math", "scales": [1.0], "calibration": digest}
    job = ok(acme.post("/v1/transfers", sweep), 202)["id"]
    ok(acme.ask("DELETE", f"/v1/jobs/{job}"))
    assert_error(acme.ask("DELETE", "/v1/deltas/math"), 409, "delta_in_use", "delta")
    ok(acme.ask("DELETE", "/v1/merges/mix"))
    ok(operator.post("/v1/base/verify"))
    assert_error(acme.post("/v1/base/verify"), 403, "forbidden", "authorization")
    key = acme.key[3:19]
    assert told(served, "tenant", "actor", "action", "subject", "result") == [
        ("acme", key, "POST /v1/deltas", "math", "201"),
        ("acme", key, "POST /v1/deltas", "math", "201"),
        ("acme", key, "PUT /v1/deltas/{name}/current", "math", "200"),
        ("acme", key, "POST /v1/merges", "mix", "201"),
        ("acme", key, "PUT /v1/blobs/{digest}", digest, "201"),
        ("acme", key, "POST /v1/transfers", job, "202"),
        ("acme", key, "DELETE /v1/jobs/{job}", job, "200"),
        ("acme", key, "DELETE /v1/deltas/{delta}", "math", "409"),
        ("acme", key, "DELETE /v1/merges/{name}", "mix", "200"),
        ("default", "bootstrap", "POST /v1/base/verify", "", "200"),
        ("acme", key, "POST /v1/base/verify", "", "403"),
    ]


def test_refusals_fill_nothing_and_are_counted(backbone: Callable[[str], Backbone], tmp_path: Path) -> None:
    fields = "tenant", "action", "subject", "result"
    with serving(backbone("vit"), tmp_path, api_key=OPERATOR) as served:
        reader, writer = Tenant(served, "acme", make_key(served, Scope.READ, tenant="acme")), tenant(served, "bolt")
        for number in range(20):
            assert_error(reader.ask("DELETE", f"/v1/deltas/d{number}"), 403, "forbidden", "authorization")
        for _ in range(3):
            assert writer.ask("DELETE", "/v1/deltas/math").status_code == 404
            assert writer.post("/v1/merges", {"name": "mix", "recipe": "0.5*math"}).status_code == 404
        first = [
            ("acme", "DELETE /v1/deltas/{delta}", "d0", "403"),
            ("bolt", "DELETE /v1/deltas/{delta}", "math", "404"),
        ]
        assert told(served, *fields) == first
    with closing(SqliteCatalog(tmp_path / "catalog.db")) as catalog:
        entries = [tuple(getattr(entry, field) for field in fields) for entry in catalog.audit.list_entries()]
    assert entries == [*first, ("acme", "refused", "19 more", "403"), ("bolt", "refused", "5 more", "404")]


def test_reading_and_asking_leave_nothing(serve: Serve) -> None:
    served = serve("vit")
    for path in ("/v1/models", "/v1/deltas", "/v1/jobs", "/metrics", "/healthz"):
        served.get(path)
    served.post("/v1/classify", {"model": "base", "input": IMAGE})
    served.post("/v1/nowhere", {})
    assert told(served, "action") == []


def test_neither_keys_nor_what_was_sent_is_in_it(serve: Serve) -> None:
    served = serve("vit", api_key=OPERATOR)
    acme = tenant(served, "acme")
    acme.ask("PUT", f"/v1/blobs/sha256:{sha256(WORDS).hexdigest()}", content=WORDS)
    acme.ask("POST", "/v1/deltas", params={"name": "math"}, content=WORDS)
    tenant(served, "bolt").ask("POST", "/v1/deltas", params={"name": "\x1b[31m" + "n" * 5000}, content=WORDS)
    acme.ask("DELETE", "/v1/deltas/%ff%00%0a")
    text = repr(served.hub.catalog.audit.list_entries())
    assert "secret" not in text and acme.key[20:] not in text and OPERATOR not in text
    assert len(text) < 2000 and text.isascii() and "\\x1b[" in text
    assert told(served, "result") == [("201",), ("422",), ("422",), ("404",)]


def test_a_job_says_what_it_published(serve: Serve, finetune_folder: Callable[..., Path]) -> None:
    served = serve("vit")
    wanted = {"name": "math", "files": put_folder(served, finetune_folder("vit")), "density": 0.05}
    job = ok(served.post("/v1/compressions", wanted), 202)["id"]
    assert work(served) == 1
    entries = told(served, "actor", "action", "subject", "result")
    assert entries[-2:] == [
        ("none", "POST /v1/compressions", job, "202"),
        (f"job {job}", "publish", "math@1", "done"),
    ]


def change(served: Served, app: ASGIApp, send: Send) -> None:
    """A change by `acme` that `app` answers, with the log around it."""
    [route] = [route for route in base.router.routes if getattr(route, "path", "").endswith("/verify")]
    caller = Caller("acme", "key", frozenset({Scope.ADMIN}))
    scope = {"type": "http", "method": "POST", "query_string": b"", "route": route, "state": {"caller": caller}}

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    anyio.run(Audited(app, served.hub.catalog.audit), scope, receive, send)


def test_an_entry_is_there_before_its_answer(serve: Serve) -> None:
    served, seen = serve("vit"), []

    async def app(scope: Connection, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Message) -> None:
        seen.append((message["type"], told(served, "tenant", "actor", "action", "result")))

    change(served, app, send)
    assert seen == [("http.response.start", [("acme", "key", "POST /v1/base/verify", "200")])]


def test_a_change_that_a_bug_ended_is_there(serve: Serve) -> None:
    served = serve("vit")

    async def app(scope: Connection, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    async def send(message: Message) -> None: ...

    with pytest.raises(RuntimeError, match="a bug"):
        change(served, app, send)
    assert told(served, "actor", "result") == [("key", "500")]


def test_a_log_that_cannot_be_written_stops_nobody_and_is_said(
    serve: Serve, delta_file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve("vit")
    with closing(sqlite3.connect(served.store / "catalog.db")) as db, db:
        db.execute("CREATE TRIGGER broken BEFORE INSERT ON audit BEGIN SELECT raise(ABORT, 'the disk is on fire'); END")
    served.upload("math", delta_file("vit", 1))
    assert "not in the audit log" in caplog.text and "on fire" in caplog.text and "POST /v1/deltas" in caplog.text
