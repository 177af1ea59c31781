"""Keys of the catalog: what each may do. The list of routes is the app's own, so that a new one cannot be forgotten."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi.routing import APIRoute
from starlette.types import Message
from tests.service.serving import Serve, Served, assert_error, ok, serving
from tests.service.tenants import make_key
from tests.service.test_api_doc import section, table
from tests.waiting import until

from patchbay.backbone import Backbone
from patchbay.store import SqliteCatalog
from patchbay.store.keys import Scope, new_key
from patchbay_server.access import ScopedRoute, needs
from patchbay_server.auth import OPEN
from patchbay_server.callers import REMEMBER_S, Keyring
from patchbay_server.routes import ROUTERS

Route = tuple[str, str]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def declared() -> dict[Route, Scope | None]:
    routes = [route for router in ROUTERS for route in router.routes]
    assert all(isinstance(route, ScopedRoute) for route in routes)
    return {(method, route.path_format): route.scope for route in routes for method in route.methods}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def served(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(Backbone.load(model_folder("vit")), tmp_path_factory.mktemp("store")) as served:
        yield served


def test_every_route_of_the_app_says_what_it_needs(served: Served) -> None:
    paths = served.app.openapi()["paths"]
    assert declared().keys() == {(method.upper(), path) for path in paths for method in paths[path]}
    assert {path for (_, path), scope in declared().items() if scope is None} == OPEN - {"/openapi.json"}


def test_a_route_that_says_nothing_cannot_be_made() -> None:
    async def endpoint() -> None: ...

    with pytest.raises(AssertionError, match="endpoint says nothing of the scope"):
        ScopedRoute("/x", endpoint)
    assert isinstance(ScopedRoute("/x", needs(Scope.READ)(endpoint)), APIRoute)


def test_the_documented_scopes_are_the_declared_ones() -> None:
    documented = table(section("## Authentication"), "scope")
    said = {
        (method, path): Scope(scope)
        for scope, (routes,) in documented.items()
        for method, path in re.findall(r"`([A-Z]+) (\S+)`", routes)
    }
    assert said == {route: scope for route, scope in declared().items() if scope is not None}


@pytest.mark.parametrize("scope", Scope)
def test_a_key_does_what_its_scope_allows_and_nothing_else(served: Served, scope: Scope) -> None:
    key = make_key(served, scope)
    for (method, path), wanted in declared().items():
        response = served.client.request(method, re.sub(r"\{.*?\}", "x", path), headers=bearer(key))
        if wanted in (None, scope) or scope is Scope.ADMIN:
            assert response.status_code in (200, 404, 422), (method, path, response.text)
        elif method == "HEAD":
            assert response.status_code == 403
        else:
            assert repr(str(wanted)) in assert_error(response, 403, "forbidden", "authorization"), (method, path)


def test_no_byte_of_a_body_is_asked_for_where_the_scope_is_missing(served: Served) -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    sent: list[Message] = []
    headers = [(b"authorization", f"Bearer {make_key(served, Scope.READ)}".encode())]
    for path in ("/v1/classify", "/v1/merges", "/v1/eeg/classify", "/v1/deltas"):
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        anyio.run(served.app, scope, receive, send)
        assert sent[-2]["status"] == 403


def test_a_key_is_refused_once_it_is_revoked_or_expired_or_with_another_secret(serve: Serve) -> None:
    served = serve("vit")
    key, other = make_key(served, Scope.READ), make_key(served, Scope.READ)
    ok(served.get("/v1/models", headers=bearer(key)))
    mixed = key[:20] + other[20:]
    for wrong in (mixed, key[:-1], f"{key}x", key.upper(), ""):
        assert_error(served.get("/v1/models", headers=bearer(wrong)), 401, "unauthorized", "authorization")
    served.hub.catalog.keys.revoke(key[3:19])
    until(lambda: served.get("/v1/models", headers=bearer(key)).status_code == 401)
    ok(served.get("/v1/models", headers=bearer(other)))
    soon = make_key(served, Scope.READ, expires_at=time.time() + 0.2)
    until(lambda: served.get("/v1/models", headers=bearer(soon)).status_code == 401)


def test_the_first_key_closes_the_server_and_its_revocation_opens_nothing(serve: Serve) -> None:
    served = serve("vit")
    ok(served.get("/v1/models"))
    key = make_key(served, Scope.READ)
    until(lambda: served.get("/v1/models").status_code == 401)
    served.hub.catalog.keys.revoke(key[3:19])
    for headers in ({}, bearer(key)):
        until(lambda headers=headers: served.get("/v1/models", headers=headers).status_code == 401)  # type: ignore[misc]


def test_the_operators_key_works_beside_the_others(serve: Serve) -> None:
    served = serve("vit", api_key="0123456789abcdef")
    ok(served.get("/v1/models", headers=bearer(make_key(served, Scope.READ))))
    ok(served.post("/v1/base/verify", headers=bearer("0123456789abcdef")))


def test_use_is_noted_in_the_catalog(serve: Serve) -> None:
    served = serve("vit")
    key, before = make_key(served, Scope.READ), time.time()
    ok(served.get("/v1/models", headers=bearer(key)))
    used = served.hub.catalog.keys.get(key[3:19]).last_used_at
    assert used is not None and before <= used <= time.time()


def test_a_catalog_that_is_gone_is_no_wrong_key(serve: Serve) -> None:
    served = serve("vit", api_key="0123456789abcdef")
    key = make_key(served, Scope.READ)
    served.hub.catalog.close()
    assert_error(served.get("/v1/base", headers=bearer(key)), 503, "store_unavailable")
    ok(served.get("/v1/base", headers=bearer("0123456789abcdef")))


class Clock:
    now = 1795312857.0

    def __call__(self) -> float:
        return self.now


def test_how_long_a_revoked_key_and_an_open_server_are_remembered(tmp_path: Path) -> None:
    catalog, clock = SqliteCatalog(tmp_path / "catalog.db"), Clock()
    ring = Keyring(catalog, None, clock)

    def find(text: str) -> Any:
        return anyio.run(ring.find, text)

    assert find("").key == find("anything").key == "none"
    text, record = new_key("acme", [Scope.READ])
    catalog.keys.add(record)
    assert find("").tenant == "default"
    clock.now += REMEMBER_S
    assert find("") is None and find(text).tenant == "acme" and find(text).key == record.id
    catalog.keys.revoke(record.id)
    clock.now += REMEMBER_S * 0.99
    assert find(text) is not None
    clock.now += REMEMBER_S * 0.01
    assert find(text) is None
    assert REMEMBER_S < 1
    catalog.close()


def test_the_key_is_touched_once_a_minute(tmp_path: Path) -> None:
    catalog, clock = SqliteCatalog(tmp_path / "catalog.db"), Clock()
    ring = Keyring(catalog, None, clock)
    text, record = new_key("acme", [Scope.READ])
    catalog.keys.add(record)
    seen = []
    for _ in range(5):
        anyio.run(ring.find, text)
        seen.append(catalog.keys.get(record.id).last_used_at)
        clock.now += 25
    assert seen == [Clock.now, Clock.now, Clock.now, Clock.now + 75, Clock.now + 75]
    catalog.close()
