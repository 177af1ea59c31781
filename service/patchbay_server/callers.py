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
from patchbay.store.base import DEFAULT_TENANT
from patchbay.store.keys import KeyRecord, Keys, Scope, split_key

REMEMBER_S = 0.5
"""How long a key that was revoked may still be taken for good."""
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

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class _Seen:
    record: KeyRecord
    at: float


class Keyring:
    """The keys of one server. `bootstrap` is the operator's own, of the default tenant, and in no catalog.

    While there is neither that nor any key in the catalog, everybody is the operator: such a server listens on loopback
    only. Keys are never deleted, so that revoking the last one opens nothing.
    """

    def __init__(self, keys: Keys, bootstrap: SecretStr | None, clock: Callable[[], float] = time.time) -> None:
        self._keys, self._clock = keys, clock
        self._bootstrap = bootstrap.get_secret_value().encode() if bootstrap else None
        self._is_open, self._looked = bootstrap is None, float("-inf")
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._touched: dict[str, float] = {}

    async def find(self, text: str) -> Caller | None:
        """Whose key this is; None where it is nobody's. Raises StoreUnavailable."""
        if self._bootstrap is not None and hmac.compare_digest(text.encode(), self._bootstrap):
            return Caller(DEFAULT_TENANT, "bootstrap", frozenset({Scope.ADMIN}))
        if await self._asks_for_none():
            return Caller(DEFAULT_TENANT, "none", frozenset({Scope.ADMIN}))
        parts = split_key(text)
        record = await self._find_record(parts[0]) if parts else None
        if parts is None or record is None or not record.matches(parts[1]) or record.state(self._clock()) != "active":
            return None
        await self._touch(record)
        return Caller(record.tenant, record.id, record.scopes)

    async def _asks_for_none(self) -> bool:
        """Once there has been a key it is never so again, and a catalog that is gone changes nothing."""
        if self._is_open and self._clock() - self._looked >= REMEMBER_S:
            now = self._clock()
            with suppress(StoreUnavailable):
                self._is_open = not await anyio.to_thread.run_sync(self._keys.list_keys, limiter=_look_ups)
            self._looked = now
        return self._is_open

    async def _find_record(self, key: str) -> KeyRecord | None:
        seen, now = self._seen.get(key), self._clock()  # from before the question: the answer is older than it looks
        if seen is not None and now - seen.at < REMEMBER_S:
            return seen.record
        try:
            record = await anyio.to_thread.run_sync(self._keys.get, key, limiter=_look_ups)
        except NotFound:
            return None
        except StoreUnavailable:
            if seen is None:
                raise
            return seen.record  # while the catalog is away, who could come in before still can
        self._seen[key] = _Seen(record, now)
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return record

    async def _touch(self, record: KeyRecord) -> None:
        """Once a minute. That it was used is worth less than the answer: a full store stops nobody."""
        now = self._clock()
        if now - max(record.last_used_at or 0, self._touched.get(record.id, 0)) < TOUCH_S:
            return
        self._touched[record.id] = now
        with suppress(StoreError):
            await anyio.to_thread.run_sync(partial(self._keys.touch, record.id, now), limiter=_look_ups)
