"""Which model a request names, read from the request itself, and which deltas that model is made of.

What is found says where to send a request and nothing else: a wrong guess costs the time of loading a delta and is
never a wrong answer. So nothing is refused here, and what cannot be read names nothing. Knows no replica.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from patchbay.errors import PatchbayError
from patchbay.merge import Recipe
from patchbay.store.hub import Hub
from patchbay_server.resolve import BASE, resolve

DELTAS = "/v1/deltas/"
_FORM = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Asked:
    """`model` as a request has it, and the `patch` beside it, neither of them checked."""

    model: str
    patch: Any = None


def asked(path: str, content_type: str, body: bytes) -> Asked | None:
    """Of a path below `/v1/deltas/` the delta; of a JSON body, or the JSON part of a form, `model` or `recipe`."""
    if path.startswith(DELTAS):
        return Asked(path.removeprefix(DELTAS).partition("/")[0])
    try:
        given = json.loads(_json_part(content_type, body))
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    model, recipe = given.get("model"), given.get("recipe")
    if isinstance(model, str):
        return Asked(model, given.get("patch"))
    if isinstance(recipe, str):
        return Asked(recipe)
    return Asked(BASE, recipe) if isinstance(recipe, dict) else None


def deltas_of(hub: Hub, tenant: str, base: str, asked: Asked) -> frozenset[str]:
    """The engine's names of the deltas that it means now; none where it means nothing, or cannot be looked up."""
    try:
        patch = None if asked.patch is None else Recipe.model_validate(asked.patch)
        return frozenset(resolve(hub, tenant, base, asked.model, patch).names)
    except (PatchbayError, ValidationError):
        return frozenset()


def _json_part(content_type: str, body: bytes) -> bytes:
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != _FORM:
        return body
    boundary = parameters.partition("boundary=")[2].partition(";")[0].strip().strip('"')
    for part in body.split(b"--" + boundary.encode("latin-1")) if boundary else ():
        header, _, content = part.partition(b"\r\n\r\n")
        if b'name="request"' in header:
            return content
    return b""
