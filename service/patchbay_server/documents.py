"""mergekit documents as bodies: each becomes the JSON body that asks for the same. Knows nothing of merging."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import anyio.to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from patchbay.errors import InvalidRecipe
from patchbay.merge import mergekit
from patchbay_server.bodies import JSON, Handler, JsonRoute, content_type, is_json, with_json
from patchbay_server.schemas import DocumentQuery

YAML = "application/yaml"
_YAML = frozenset({YAML, "application/x-yaml", "text/yaml", "text/x-yaml"})  # the older names, which clients still send
MERGEKIT: dict[str, Any] = {
    "parameters": [
        {"name": "name", "in": "query", "schema": {"type": "string"}, "description": f"With a body of {YAML}."},
        {"name": "follow", "in": "query", "schema": {"type": "boolean"}, "description": f"With a body of {YAML}."},
    ],
    "requestBody": {"content": {YAML: {"schema": {"type": "string", "description": "A mergekit document."}}}},
}


class MergekitRoute(JsonRoute):
    """A route whose JSON body has a recipe: what it has beside the recipe comes from the query of a document."""

    accepts: ClassVar[tuple[str, ...]] = (JSON, YAML)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def translated(request: Request) -> Response:
            kind = content_type(request)
            if is_json(kind):
                _check_query(request)
            return await handle(await _as_json(request) if kind in _YAML else request)

        return translated


def _check_query(request: Request) -> None:
    """Raises RequestValidationError for what only a document has there: beside JSON nobody would look at it."""
    name = next((name for name in DocumentQuery.model_fields if name in request.query_params), None)
    if name is not None:
        message = (
            f"the query parameter {name!r} goes with a mergekit document ({YAML}); in JSON it is the field {name!r} of "
            "the body, beside 'recipe'"
        )
        raise RequestValidationError([{"type": "extra_forbidden", "loc": ("query", name), "msg": message}])


async def _as_json(request: Request) -> Request:
    """Raises RequestValidationError, InvalidRecipe and UnknownMethod."""
    query = _query(request)
    recipe = await anyio.to_thread.run_sync(_recipe, await request.body())
    body = json.dumps({**query.model_dump(), "recipe": recipe}).encode()
    return with_json(request, body)


def _query(request: Request) -> DocumentQuery:
    try:
        return DocumentQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in found]) from error


def _recipe(body: bytes) -> dict[str, Any]:
    try:
        return mergekit.read(body.decode()).recipe.model_dump(mode="json")
    except UnicodeDecodeError as error:
        raise InvalidRecipe("a mergekit document is UTF-8") from error
