"""Which scope a route needs, said beside the route: `@needs(Scope.READ)` below `@router.get(...)`. Knows no keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from patchbay.errors import PatchbayError
from patchbay.store.keys import Scope
from patchbay_server.callers import Caller

_NEEDS = "patchbay_needs"
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Forbidden(PatchbayError):
    """A key that is good, but not for this."""

    code = "forbidden"


def needs(scope: Scope | None) -> Callable[[Endpoint], Endpoint]:
    """The endpoint is for callers with this scope; None for everybody, with or without a key."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _NEEDS, scope)
        return endpoint

    return mark


class ScopedRoute(APIRoute):
    """A route that asks for its scope before a byte of the body is read. Without `needs` it cannot be made."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        assert hasattr(endpoint, _NEEDS), f"{endpoint.__name__} says nothing of the scope it needs: see `needs`"
        self.scope: Scope | None = getattr(endpoint, _NEEDS)
        super().__init__(path, endpoint, **options)

    async def handle(self, scope: Connection, receive: Receive, send: Send) -> None:
        if self.scope is not None:
            caller: Caller = scope["state"]["caller"]
            if not caller.may(self.scope):
                raise Forbidden(
                    f"this key may not do that: it needs the scope {self.scope.value!r}", param="authorization"
                )
        await super().handle(scope, receive, send)
