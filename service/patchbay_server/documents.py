"""mergekit documents as bodies: each becomes the JSON body that asks for the same. Knows nothing of merging."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import anyio.to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute

from patchbay.errors import InvalidRecipe
from patchbay.merge import mergekit

YAML = "application/yaml"
MERGEKIT: dict[str, Any] = {
    "parameters": [
        {"name": "name", "in": "query", "schema": {"type": "string"}, "description": f"With a body of {YAML}."},
        {"name": "follow", "in": "query", "schema": {"type": "boolean"}, "description": f"With a body of {YAML}."},
    ],
    "requestBody": {"content": {YAML: {"schema": {"type": "string", "description": "A mergekit document."}}}},
}
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class MergekitRoute(APIRoute):
    """A route whose JSON body has a recipe: what it has beside the recipe comes from the query of a document."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def translated(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            return await handle(await _as_json(request) if kind == YAML else request)

        return translated


async def _as_json(request: Request) -> Request:
    """Raises InvalidRecipe and UnknownMethod."""
    recipe = await anyio.to_thread.run_sync(_recipe, await request.body())
    body = json.dumps({**request.query_params, "recipe": recipe}).encode()
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    headers.append((b"content-type", b"application/json"))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({**request.scope, "headers": headers}, receive)


def _recipe(body: bytes) -> dict[str, Any]:
    try:
        return mergekit.read(body.decode()).recipe.model_dump(mode="json")
    except UnicodeDecodeError as error:
        raise InvalidRecipe("a mergekit document is UTF-8") from error
