"""The tenants of a catalog in Redis: `{prefix}:tenants` holds name -> limits. What they have stored, and whether more
fits, is counted by the scripts that store it.
"""

from __future__ import annotations

from collections.abc import Callable

from patchbay.store.base import check_name
from patchbay.store.tenants import Limits, Usage, check_room, over_bytes, over_deltas
from patchbay_server.stores.connection import RedisServer


class RedisTenants:
    """`Tenants` on `server`; `count(tenant)` runs the script of the sums."""

    def __init__(self, server: RedisServer, name: str, count: Callable[[str], tuple[str, str]]) -> None:
        self._server, self._client, self._name, self._count = server, server.client, name, count

    def get_limits(self, tenant: str) -> Limits:
        return Limits.from_json(self._server.ask(self._client.hget, self._name, tenant))

    def set_limits(self, tenant: str, limits: Limits) -> None:
        check_name(tenant, param="tenant")
        self._server.change(self._client.hset, self._name, tenant, limits.to_json())

    def list_limits(self) -> dict[str, Limits]:
        found = self._server.ask(self._client.hgetall, self._name)
        return {name: Limits.from_json(text) for name, text in sorted(found.items())}

    def usage(self, tenant: str) -> Usage:
        return Usage(*map(int, self._count(tenant)))

    def check_room(self, tenant: str, size: int, deltas: int = 0) -> None:
        limits = self.get_limits(tenant)
        if limits.max_bytes is not None or limits.max_deltas is not None:
            check_room(tenant, limits, self.usage(tenant), size, deltas)


def check_quota(tenant: str, size: int, status: str, used: str, most: str) -> None:
    """Raises QuotaExceeded where a script has answered so."""
    if status == "over bytes":
        raise over_bytes(tenant, int(used), size, int(most))
    if status == "over deltas":
        raise over_deltas(tenant, int(used), int(most))
