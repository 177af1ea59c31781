"""The keys of a catalog in Redis. Knows no secrets and no requests.

    {prefix}:keys               id -> what never changes of a key
    {prefix}:keys:used          id -> when it was last used
    {prefix}:keys:revoked       id -> when it was revoked

Each of them changes by one command, so no script is needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from redis.client import Pipeline

from patchbay.store.keys import KeyRecord, is_key_id, no_key, read_scopes, write_scopes
from patchbay_server.stores.connection import RedisServer


class RedisKeys:
    """`Keys` on `server`; `name` is the first of the keys above."""

    def __init__(self, server: RedisServer, name: str) -> None:
        self._server, self._client = server, server.client
        self._known, self._used, self._revoked = name, f"{name}:used", f"{name}:revoked"

    def add(self, record: KeyRecord) -> None:
        self._server.change(self._client.hset, self._known, record.id, known_text(record))

    def get(self, key: str) -> KeyRecord:
        if not is_key_id(key):
            raise no_key(key)
        known, used, revoked = self._ask(lambda pipeline, name: pipeline.hget(name, key))
        if known is None:
            raise no_key(key)
        return key_record(key, known, used, revoked)

    def list_keys(self) -> list[KeyRecord]:
        known, used, revoked = self._ask(lambda pipeline, name: pipeline.hgetall(name))
        found = [key_record(key, text, used.get(key), revoked.get(key)) for key, text in known.items()]
        return sorted(found, key=lambda record: (record.created_at, record.id))

    def revoke(self, key: str) -> KeyRecord:
        self.get(key)
        self._server.change(self._client.hsetnx, self._revoked, key, repr(time.time()))
        return self.get(key)

    def touch(self, key: str, at: float) -> None:
        if is_key_id(key) and self._server.ask(self._client.hexists, self._known, key):
            self._server.change(self._client.hset, self._used, key, repr(at))

    def _ask(self, command: Callable[[Pipeline, str], object]) -> list[Any]:
        """The same of all three at once. A pipeline is good for one try, so each makes its own."""

        def run() -> list[Any]:
            pipeline = self._client.pipeline()
            for name in (self._known, self._used, self._revoked):
                command(pipeline, name)
            return pipeline.execute()

        found: list[Any] = self._server.ask(run)
        return found


def known_text(record: KeyRecord) -> str:
    """What never changes of a key."""
    kept = {
        "tenant": record.tenant,
        "scopes": write_scopes(record.scopes),
        "secret_hash": record.secret_hash,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
    }
    return json.dumps(kept)


def key_record(key: str, text: str, used: str | None, revoked: str | None) -> KeyRecord:
    kept = json.loads(text)
    kept["scopes"] = read_scopes(kept["scopes"])
    return KeyRecord(key, **kept, last_used_at=_time(used), revoked_at=_time(revoked))


def _time(text: str | None) -> float | None:
    return None if text is None else float(text)
