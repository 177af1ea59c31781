"""A whole catalog in Redis, read and added to in one transaction; `redis.py` tells the keys and what they hold."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import redis
from redis.client import Pipeline

from patchbay.errors import StoreUnavailable
from patchbay.store.audit import Entry
from patchbay.store.base import MergeRecord
from patchbay.store.keys import KeyRecord
from patchbay.store.snapshot import Brought, Limited, Name, Snapshot, Version, missing
from patchbay.store.tenants import Limits
from patchbay_server.stores.connection import RedisServer
from patchbay_server.stores.redis_keys import key_record, known_text

PER_TENANT = ("deltas", "versions", "deleted", "merges", "blobs")
COMMON = ("tenants", "keys", "keys:used", "keys:revoked", "digests")
TRIES = 20
"""A catalog that changes while it is read is read again."""


class RedisSnapshots:
    """`Snapshots` on `server`; `key` makes a key of its parts, `tenants(kind)` says who has something of a kind."""

    def __init__(self, server: RedisServer, key: Callable[..., str], tenants: Callable[[str], list[str]]) -> None:
        self._server, self._client, self._key, self._tenants = server, server.client, key, tenants

    def dump(self) -> Snapshot:
        for _ in range(TRIES):
            tenants = self._all_tenants()
            read: list[Any] = self._server.ask(self._read, tenants)
            if tenants == self._all_tenants():  # none came that was not asked for
                return _snapshot(tenants, read)
        raise StoreUnavailable(f"new tenants come to {self._server.place} all the time: try again")

    def load(self, snapshot: Snapshot) -> None:
        for _ in range(TRIES):
            try:
                self._server.change(self._load, snapshot)
                return
            except StoreUnavailable as error:
                if not isinstance(error.__cause__, redis.WatchError):
                    raise
        raise StoreUnavailable(f"the catalog at {self._server.place} changes all the time: end its servers first")

    def _load(self, snapshot: Snapshot) -> None:
        owners = {row.tenant for part in (snapshot.names, snapshot.merges, snapshot.brought) for row in part}
        tenants = sorted(owners.union(self._all_tenants()))
        with self._client.pipeline() as pipeline:
            pipeline.watch(*self._keys_of(tenants))  # type: ignore[no-untyped-call]
            there = _snapshot(tenants, self._read(tenants))
            new = missing(there, snapshot)
            pipeline.multi()
            self._add(pipeline, there, new)
            pipeline.execute()

    def _read(self, tenants: list[str]) -> list[Any]:
        """All hashes, then the audit log, at one moment."""
        with self._client.pipeline() as pipeline:
            for key in self._keys_of(tenants)[:-1]:
                pipeline.hgetall(key)
            pipeline.lrange(self._key("audit"), 0, -1)
            found: list[Any] = pipeline.execute()
        return found

    def _keys_of(self, tenants: list[str]) -> list[str]:
        owned = [self._key(kind, tenant) for tenant in tenants for kind in PER_TENANT]
        return [*owned, *map(self._key, COMMON), self._key("audit")]

    def _all_tenants(self) -> list[str]:
        return sorted({tenant for kind in PER_TENANT for tenant in self._tenants(kind)})

    def _add(self, pipeline: Pipeline, there: Snapshot, new: Snapshot) -> None:
        live = defaultdict[tuple[str, str], dict[str, str]](dict)
        users = defaultdict[str, dict[str, bool]](dict)
        for version in (*there.versions, *new.versions):
            if version.deleted_at is None:
                live[version.tenant, version.name][str(version.version)] = version.digest
                users[version.digest][f"{version.tenant}/{version.name}@{version.version}"] = True
        for name in new.names:
            entry = {"last": name.last_version, "current": name.current or 0, "live": live[name.tenant, name.name]}
            pipeline.hset(self._key("deltas", name.tenant), name.name, json.dumps(entry))
        for version in new.versions:
            self._add_version(pipeline, version, users)
        for merge in new.merges:
            text = json.dumps({"recipe": merge.recipe, "created_at": merge.created_at})
            pipeline.hset(self._key("merges", merge.tenant), merge.name, text)
        for row in new.brought:
            text = json.dumps({"size": row.size, "created_at": row.created_at})
            pipeline.hset(self._key("blobs", row.tenant), row.digest, text)
        for limited in new.limits:
            pipeline.hset(self._key("tenants"), limited.tenant, limited.limits.to_json())
        for key in new.keys:
            self._add_key(pipeline, key)
        for change in new.audit:
            pipeline.rpush(self._key("audit"), json.dumps(asdict(change)))

    def _add_version(self, pipeline: Pipeline, row: Version, users: Mapping[str, Mapping[str, bool]]) -> None:
        field = f"{row.name}@{row.version}"
        kept = {"digest": row.digest, "size": row.size, "created_at": row.created_at, "summary": row.summary}
        pipeline.hset(self._key("versions", row.tenant), field, json.dumps(kept))
        if row.deleted_at is None:
            pipeline.hset(self._key("digests"), row.digest, json.dumps(users[row.digest]))
        else:
            pipeline.hset(self._key("deleted", row.tenant), field, repr(row.deleted_at))
            pipeline.zadd(self._key("tombstones"), {row.digest: row.deleted_at}, gt=True)

    def _add_key(self, pipeline: Pipeline, key: KeyRecord) -> None:
        pipeline.hset(self._key("keys"), key.id, known_text(key))
        for kind, at in (("keys:used", key.last_used_at), ("keys:revoked", key.revoked_at)):
            if at is not None:
                pipeline.hset(self._key(kind), key.id, repr(at))


def _snapshot(tenants: list[str], read: list[Any]) -> Snapshot:
    owned = {tenant: read[len(PER_TENANT) * n :][: len(PER_TENANT)] for n, tenant in enumerate(tenants)}
    limits, keys, used, revoked, _, audit = read[len(PER_TENANT) * len(tenants) :]
    return Snapshot(
        names=tuple(
            _name(t, name, json.loads(text)) for t, (names, *_) in owned.items() for name, text in sorted(names.items())
        ),
        versions=tuple(
            row for t, (_, versions, deleted, *_) in owned.items() for row in _versions(t, versions, deleted)
        ),
        merges=tuple(
            MergeRecord(t, name, **json.loads(text))
            for t, (_, _, _, merges, _) in owned.items()
            for name, text in sorted(merges.items())
        ),
        brought=tuple(
            Brought(t, digest, **json.loads(text))
            for t, (*_, blobs) in owned.items()
            for digest, text in sorted(blobs.items())
        ),
        limits=tuple(Limited(tenant, Limits.from_json(text)) for tenant, text in sorted(limits.items())),
        keys=tuple(key_record(key, text, used.get(key), revoked.get(key)) for key, text in sorted(keys.items())),
        audit=tuple(Entry(**json.loads(text)) for text in audit),
    )


def _name(tenant: str, name: str, entry: Mapping[str, Any]) -> Name:
    return Name(tenant, name, entry["last"], entry["current"] or None)


def _versions(tenant: str, versions: Mapping[str, str], deleted: Mapping[str, str]) -> list[Version]:
    rows = []
    for field, text in versions.items():
        name, _, number = field.rpartition("@")
        gone = deleted.get(field)
        rows.append(Version(tenant, name, int(number), **json.loads(text), deleted_at=float(gone) if gone else None))
    return sorted(rows, key=lambda row: (row.name, row.version))
