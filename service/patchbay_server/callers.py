"""Who a request comes from: keys looked up in the catalog and remembered for a moment. Knows no HTTP and no route."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
from pydantic import SecretStr

from patchbay.errors import NotFound, StoreError, StoreUnavailable
from patchbay.store.base import DEFAULT_TENANT, Catalog
from patchbay.store.keys import KeyRecord, Scope, split_key
from patchbay.store.tenants import Limits

REMEMBER_S = 0.5
"""How long a key that was revoked may still be taken for good, and limits that were changed hold as they were."""
TOUCH_S = 60.0
MAX_REMEMBERED = 4096
# Looked up in threads of their own: neither the event loop nor who fills the common pool keeps them waiting.
_look_ups = anyio.CapacityLimiter(4)


@dataclass(frozen=True, slots=True)
class Caller:
    """`key` is the key's id, or how it could do without: `bootstrap` or `none`."""

    tenant: str
    key: str
    scopes: frozenset[Scope]
    limits: Limits = Limits()

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class _Seen:
    record: KeyRecord
    limits: Limits
    at: float


class Keyring:
    """The keys of one catalog, on one server. `bootstrap` is the operator's own, of the default tenant and in none.

    While there is neither that nor any key in the catalog, everybody is the operator: such a server listens on loopback
    only. Keys are never deleted, so that revoking the last one opens nothing.
    """

    def __init__(self, catalog: Catalog, bootstrap: SecretStr | None, clock: Callable[[], float] = time.time) -> None:
        self._catalog, self._clock = catalog, clock
        self._bootstrap = bootstrap.get_secret_value().encode() if bootstrap else None
        self._is_open, self._looked = bootstrap is None, float("-inf")
        self._limits = Limits()  # of the default tenant
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._touched: dict[str, float] = {}

    async def find(self, text: str) -> Caller | None:
        """Whose key this is; None where it is nobody's. Raises StoreUnavailable."""
        if self._bootstrap is not None and hmac.compare_digest(text.encode(), self._bootstrap):
            await self._look_again()
            return Caller(DEFAULT_TENANT, "bootstrap", frozenset({Scope.ADMIN}), self._limits)
        if self._is_open:
            await self._look_again()
        if self._is_open:
            return Caller(DEFAULT_TENANT, "none", frozenset({Scope.ADMIN}), self._limits)
        parts = split_key(text)
        seen = await self._find(parts[0]) if parts else None
        if parts is None or seen is None or not seen.record.matches(parts[1]):
            return None
        record = seen.record
        if record.state(self._clock()) != "active":
            return None
        await self._touch(record)
        return Caller(record.tenant, record.id, record.scopes, seen.limits)

    async def _look_again(self) -> None:
        """Once there has been a key a server is never open again; a catalog that is gone changes nothing."""
        now = self._clock()
        if now - self._looked >= REMEMBER_S:
            self._looked = now
            with suppress(StoreUnavailable):
                self._is_open, self._limits = await anyio.to_thread.run_sync(self._look, limiter=_look_ups)

    def _look(self) -> tuple[bool, Limits]:
        is_open = self._is_open and not self._catalog.keys.list_keys()
        return is_open, self._catalog.tenants.get_limits(DEFAULT_TENANT)

    async def _find(self, key: str) -> _Seen | None:
        seen, now = self._seen.get(key), self._clock()  # from before the question: the answer is older than it looks
        if seen is not None and now - seen.at < REMEMBER_S:
            return seen
        try:
            seen = _Seen(*await anyio.to_thread.run_sync(self._read, key, limiter=_look_ups), now)
        except NotFound:
            return None
        except StoreUnavailable:
            if seen is None:
                raise
            return seen  # while the catalog is away, who could come in before still can
        self._seen[key] = seen
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return seen

    def _read(self, key: str) -> tuple[KeyRecord, Limits]:
        record = self._catalog.keys.get(key)
        return record, self._catalog.tenants.get_limits(record.tenant)

    async def _touch(self, record: KeyRecord) -> None:
        """Once a minute. That it was used is worth less than the answer: a full store stops nobody."""
        now = self._clock()
        if now - max(record.last_used_at or 0, self._touched.get(record.id, 0)) < TOUCH_S:
            return
        self._touched[record.id] = now
        with suppress(StoreError):
            await anyio.to_thread.run_sync(partial(self._catalog.keys.touch, record.id, now), limiter=_look_ups)
