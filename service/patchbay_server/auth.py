"""Bearer keys. Knows one key; tenants and scopes come with many."""

from __future__ import annotations

import hmac

from fastapi import Request

from patchbay_server.errors import Unauthorized


def require_key(request: Request) -> None:
    """Raises Unauthorized unless the request carries the configured key, compared in constant time."""
    expected = request.app.state.settings.api_key
    if expected is None:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    matches = hmac.compare_digest(key.strip().encode(), expected.get_secret_value().encode())
    if scheme.lower() != "bearer" or not matches:
        raise Unauthorized("send the server's key as 'Authorization: Bearer KEY'", param="authorization")
