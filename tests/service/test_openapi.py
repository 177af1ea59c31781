"""What OpenAPI says beside the bodies of routes: keys, refusals in one shape, and links that lead somewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.service.serving import Serve, Served, ok

from patchbay_server.auth import OPEN
from patchbay_server.errors import error_body

Operation = tuple[str, str, dict[str, Any]]
REFUSAL = {"$ref": "#/components/schemas/Refusal"}
OF_ALL = {"401", "403", "429", "503"}


@pytest.fixture
def spec(serve: Serve) -> dict[str, Any]:
    return ok(serve("vit").get("/openapi.json"))


def operations(spec: dict[str, Any]) -> Iterator[Operation]:
    for path, found in spec["paths"].items():
        for method, operation in found.items():
            yield method, path, operation


def test_every_route_but_the_open_ones_asks_for_a_key(spec: dict[str, Any]) -> None:
    assert spec["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for _, path, operation in operations(spec):
        is_open = path in OPEN
        assert operation.get("security", []) == ([] if is_open else [{"key": []}]), path
        assert is_open or set(operation["responses"]) >= OF_ALL, path


def test_every_refusal_has_the_one_shape(spec: dict[str, Any]) -> None:
    for method, path, operation in operations(spec):
        for status, response in operation["responses"].items():
            if status >= "4":
                assert response["content"] == {"application/json": {"schema": REFUSAL}}, (method, path, status)
    assert "HTTPValidationError" not in spec["components"]["schemas"]
    shape = spec["components"]["schemas"]
    assert shape["Refusal"]["required"] == list(error_body("m", 422, "c"))
    assert shape["Failure"]["required"] == list(error_body("m", 422, "c")["error"])  # type: ignore[call-overload]


def test_what_has_a_body_may_find_it_too_large(spec: dict[str, Any]) -> None:
    for method, path, operation in operations(spec):
        assert "413" in operation["responses"] or "requestBody" not in operation, (method, path)


def test_every_link_leads_to_a_route_and_fills_its_path(spec: dict[str, Any]) -> None:
    num_links = 0
    for _, _, operation in operations(spec):
        for response in operation["responses"].values():
            for link in response.get("links", {}).values():
                path, _, method = link["operationRef"].removeprefix("#/paths/").rpartition("/")
                target = spec["paths"][path.replace("~1", "/").replace("~0", "~")][method]
                inside = {each["name"] for each in target.get("parameters", ()) if each["in"] == "path"}
                assert inside == link["parameters"].keys()
                num_links += 1
    assert num_links > 20


def test_it_is_made_once(vit: Served) -> None:
    assert vit.app.openapi() is vit.app.openapi()
