"""Which scope a route needs and what it may refuse with, said beside the route: `@needs(Scope.READ, 404)` below
`@router.get(...)`. Knows no keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from patchbay.errors import PatchbayError
from patchbay.store.keys import Scope
from patchbay_server.callers import Caller
from patchbay_server.openapi import KEY, refusals

_NEEDS = "patchbay_needs"
_OF_ALL = (401, 403, 429, 503)  # no key, not this scope, a limit, no catalog
METHODS: dict[str, set[str]] = {}
"""Of every path, as a template: each is a route of its own, which knows nothing of the others."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Forbidden(PatchbayError):
    """A key that is good, but not for this."""

    code = "forbidden"


def needs(scope: Scope | None, *refused: int) -> Callable[[Endpoint], Endpoint]:
    """The endpoint is for callers with this scope; None for everybody, with or without a key. `refused` are the
    statuses of its refusals, beside those of every route that needs a scope.
    """

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _NEEDS, (scope, refused))
        return endpoint

    return mark


class ScopedRoute(APIRoute):
    """A route that asks for its scope before a byte of the body is read. Without `needs` it cannot be made."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        assert hasattr(endpoint, _NEEDS), f"{endpoint.__name__} says nothing of the scope it needs: see `needs`"
        self.scope: Scope | None
        self.scope, refused = getattr(endpoint, _NEEDS)
        if self.scope is not None:
            refused = {*refused, *_OF_ALL}
            options["openapi_extra"] = {"security": KEY, **(options.get("openapi_extra") or {})}
        options["responses"] = {**refusals(refused), **(options.get("responses") or {})}
        super().__init__(path, endpoint, **options)
        METHODS.setdefault(self.path_format, set()).update(self.methods or ())

    async def handle(self, scope: Connection, receive: Receive, send: Send) -> None:
        if self.scope is not None:
            caller: Caller = scope["state"]["caller"]
            if not caller.may(self.scope):
                raise Forbidden(
                    f"this key may not do that: it needs the scope {self.scope.value!r}", param="authorization"
                )
        await super().handle(scope, receive, send)
