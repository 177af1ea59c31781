"""Tenants of one server, each with a key of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from httpx2 import Response
from tests.service.serving import Served, ok

from patchbay.store.keys import Scope, new_key

ALL = (Scope.READ, Scope.INFER, Scope.WRITE)
OPERATOR = "the-operators-own-key"


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant asks of a server."""

    served: Served
    name: str
    key: str

    def ask(self, method: str, path: str, **options: Any) -> Response:
        headers = {"authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return self.served.client.request(method, path, headers=headers, **options)

    def get(self, path: str) -> Response:
        return self.ask("GET", path)

    def post(self, path: str, body: object = None, **options: Any) -> Response:
        return self.ask("POST", path, json=body, **options)

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        return ok(self.ask("POST", "/v1/deltas", params={"name": name}, content=data), 201)


def tenant(served: Served, name: str) -> Tenant:
    return Tenant(served, name, make_key(served, *(ALL if name != "default" else (Scope.ADMIN,)), tenant=name))


def make_key(served: Served, *scopes: Scope, tenant: str = "default", expires_at: float | None = None) -> str:
    text, record = new_key(tenant, scopes, expires_at)
    served.hub.catalog.keys.add(record)
    return text
