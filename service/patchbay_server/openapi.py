"""What OpenAPI says beside what FastAPI finds out: the key, refusals in their one shape, and where answers lead.

Knows no route, and no error but its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel

OCTETS = "application/octet-stream"
KEY: list[dict[str, list[str]]] = [{"key": []}]
"""`security` of a route that asks for a key."""
_SCHEMES = {"key": {"type": "http", "scheme": "bearer", "description": "A key, where the server has any."}}
Spec = dict[str, Any]


class Failure(BaseModel):
    """`code` is for programs, `message` for people; `param` is the field that it is about."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "conflict_error",
        "server_error",
    ]
    param: str | None
    code: str


class Refusal(BaseModel):
    """The body of every answer that is no success."""

    error: Failure


class Documented(FastAPI):
    """An app whose OpenAPI has the components that routes refer to."""

    def openapi(self) -> Spec:
        if self.openapi_schema is not None:
            return self.openapi_schema
        spec = super().openapi()
        for response in _responses(spec):
            for content in response.get("content", {}).values():
                if "$ref" in content.get("schema", {}):  # beside what FastAPI found out of `dict[str, Any]`
                    content["schema"] = {"$ref": content["schema"]["$ref"]}
        components = spec.setdefault("components", {})
        components.setdefault("securitySchemes", {}).update(_SCHEMES)
        found = Refusal.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = components.setdefault("schemas", {})
        schemas.update(found.pop("$defs"), Refusal=found)
        return spec


def _responses(spec: Spec) -> Iterator[Spec]:
    for path in spec["paths"].values():
        for operation in path.values():
            yield from operation["responses"].values()


def refusals(statuses: Iterable[int]) -> dict[int | str, Spec]:
    """`responses` of a route that may refuse with these."""
    shape = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": shape} for status in sorted(statuses)}


def streamed(answer: type[BaseModel]) -> dict[int | str, Spec]:
    """`responses` of a route that answers as a stream of events where it is asked to."""
    return {200: {"model": answer, "content": {"text/event-stream": {"schema": {"type": "string"}}}}}


def octets(what: str, kind: str = OCTETS) -> Spec:
    """`openapi_extra` of a route whose body is bytes that it reads itself."""
    schema = {"type": "string", "format": "binary", "description": what}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


def header(name: str, schema: Spec, *, required: bool = True) -> Spec:
    """One of the `parameters` of a route that reads the header itself."""
    return {"name": name, "in": "header", "required": required, "schema": schema}


def link(method: str, path: str, body: Spec | None = None, **parameters: str) -> Spec:
    """To a request that goes with an answer: values are constants, or expressions like `$response.body#/name`."""
    escaped = path.replace("~", "~0").replace("/", "~1")
    more = {} if body is None else {"requestBody": body}
    return {"operationRef": f"#/paths/{escaped}/{method}", "parameters": parameters, **more}
