"""The catalog in Redis, for several hosts: Redis 6.2 or newer, or Valkey. Knows no blobs.

All keys carry one hash tag, so that they share a slot and every change is one Lua script: all of it, or nothing.
    {prefix}:schema             the layout's number, below
    {prefix}:deltas:TENANT      name -> {"last": 3, "current": 2 (0: none), "live": {"2": digest, "3": digest}}
    {prefix}:versions:TENANT    name@version -> the record; never changes, and stays after the version was deleted
    {prefix}:deleted:TENANT     name@version -> when it was deleted
    {prefix}:merges:TENANT      name -> the merge
    {prefix}:blobs:TENANT       digest -> {"size", "created_at"} of the bytes that a tenant has brought
    {prefix}:uploads:TENANT     digest -> {"length", "expires_at"} of an upload that is under way
    {prefix}:tenants            tenant -> its limits
    {prefix}:audit              a list: the audit log, oldest first
    {prefix}:keys               API keys; `redis_keys.py` tells more
    {prefix}:digests            digest -> {"tenant/name@version": true}, live ones only
    {prefix}:tombstones         digest, scored by when a version that had it was last deleted
    {prefix}:holds, :condemned  digest, scored by when the hold ends
Records pass through the scripts as text: Lua would round their numbers to 14 digits.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import redis

from patchbay.store import base, refusals
from patchbay.store.base import DeltaRecord, Digest, MergeRecord
from patchbay_server.stores.connection import RedisServer
from patchbay_server.stores.redis_audit import RedisAudit
from patchbay_server.stores.redis_keys import RedisKeys
from patchbay_server.stores.redis_snapshots import RedisSnapshots
from patchbay_server.stores.redis_tenants import RedisTenants, check_quota
from patchbay_server.stores.redis_uploads import RedisUploads
from patchbay_server.stores.scripts import (
    ADD_BLOB,
    ADD_VERSION,
    CONDEMN,
    DELETE_DELTA,
    FIND_DIGEST,
    HOLD,
    SAVE_MERGE,
    SET_CURRENT,
    USAGE,
)

SCHEMA = 1


class RedisCatalog:
    """A `Catalog` at `redis://` or `rediss://`; `client` replaces the one that would be made from `url`.

    Reads are asked again for a second, changes are sent once: `connection.py` says why.
    Durable as far as the server is: `appendonly yes`, and `appendfsync always` if no second may be lost.
    """

    remembers = False

    def __init__(self, url: str, prefix: str = "patchbay", *, client: redis.Redis | None = None) -> None:
        self._server = RedisServer(url, "the catalog", text=True, client=client)
        self._client = self._server.client
        self._prefix = f"{{{prefix}}}"
        self.keys = RedisKeys(self._server, self._key("keys"))
        self.audit = RedisAudit(self._server, self._key("audit"))
        self.snapshots = RedisSnapshots(self._server, self._key, self._tenants)
        self.uploads = RedisUploads(self._server, lambda tenant: self._key("uploads", tenant), self._keys)
        self.tenants = RedisTenants(self._server, self._key("tenants"), self._count)
        script = self._client.register_script
        self._add_version, self._add_blob, self._usage = script(ADD_VERSION), script(ADD_BLOB), script(USAGE)
        self._set_current, self._delete_delta = script(SET_CURRENT), script(DELETE_DELTA)
        self._save_merge, self._find_digest = script(SAVE_MERGE), script(FIND_DIGEST)
        self._hold, self._condemn = script(HOLD), script(CONDEMN)
        try:
            self._server.refuse_eviction()
            self._server.check_schema(self._key("schema"), SCHEMA, "catalog")
        except BaseException:
            self.close()
            raise

    def add_version(
        self, tenant: str, name: str, digest: Digest, size: int, summary: str, activate: bool = True
    ) -> tuple[DeltaRecord, bool]:
        base.check_name(tenant, param="tenant")
        base.check_name(name)
        text = json.dumps({"digest": digest, "size": size, "created_at": time.time(), "summary": summary})
        args = [tenant, name, digest, text, int(activate), size]
        status, version, current, stored = self._change(self._add_version, tenant, args)
        check_quota(tenant, size, status, version, current)
        if status == "merge":
            raise refusals.owned_by("merge", name)
        return _record(tenant, name, version, stored, current), status == "created"

    def get_delta(self, tenant: str, name: str, version: int | None = None) -> DeltaRecord:
        entry = self._entry(tenant, name)
        chosen = entry["current"] if version is None else version
        if version is None and not chosen:
            raise refusals.no_current(name, _live(entry))
        if chosen not in _live(entry):
            raise refusals.no_version(name, chosen, _live(entry))
        return self._records(tenant, {name: entry}, [(name, chosen)])[0]

    def find_digest(self, tenant: str, digest: Digest) -> list[DeltaRecord]:
        if not base.is_digest(digest):
            return []
        rows = self._server.ask(self._find_digest, keys=self._keys(tenant), args=[tenant, digest])
        found = [_record(tenant, name, version, text, current) for name, version, current, text in rows]
        return sorted(found, key=lambda record: (record.name, record.version))

    def list_deltas(self, tenant: str) -> list[DeltaRecord]:
        entries = self._entries(tenant)
        shown = [(name, entry["current"] or max(_live(entry))) for name, entry in sorted(entries.items())]
        return self._records(tenant, entries, shown)

    def list_versions(self, tenant: str, name: str) -> list[DeltaRecord]:
        entry = self._entry(tenant, name)
        return self._records(tenant, {name: entry}, [(name, version) for version in _live(entry)])

    def set_current(self, tenant: str, name: str, version: int, expected: int | None = None) -> DeltaRecord:
        self._entry(tenant, name)
        args = [tenant, name, version, "" if expected is None else expected]
        status, before, stored = self._change(self._set_current, tenant, args)
        entry = json.loads(before)
        if status == "no version":
            raise self._missing(tenant, name, version, entry)
        if status == "moved on":
            raise refusals.moved_on(name, expected or 0, entry["current"] or None)
        return _record(tenant, name, version, stored, version)

    def delete_delta(self, tenant: str, name: str, version: int | None = None) -> list[DeltaRecord]:
        self._entry(tenant, name)
        args = [tenant, name, "" if version is None else version, repr(time.time())]
        status, before = self._change(self._delete_delta, tenant, args)
        entry = json.loads(before)
        if status == "no version":
            raise self._missing(tenant, name, version, entry)
        if status == "still current":
            raise refusals.still_current(name, entry["current"])
        return self._records(tenant, {name: entry}, [(name, v) for v in _live(entry) if version in (None, v)])

    def save_merge(self, tenant: str, name: str, recipe: str, replace: bool = False) -> MergeRecord:
        base.check_name(tenant, param="tenant")
        base.check_name(name)
        record = MergeRecord(tenant, name, recipe, time.time())
        text = json.dumps({"recipe": recipe, "created_at": record.created_at})
        status = self._change(self._save_merge, tenant, [tenant, name, text, int(replace)])
        if status == "delta":
            raise refusals.owned_by("delta", name)
        if status == "merge":
            raise refusals.merge_exists(name)
        return record

    def get_merge(self, tenant: str, name: str) -> MergeRecord:
        text = self._server.ask(self._client.hget, self._key("merges", tenant), name) if base.is_name(name) else None
        if text is None:
            raise refusals.no_merge(name, self._merge_names(tenant))
        return MergeRecord(tenant, name, **json.loads(text))

    def list_merges(self, tenant: str) -> list[MergeRecord]:
        merges = self._server.ask(self._client.hgetall, self._key("merges", tenant))
        return [MergeRecord(tenant, name, **json.loads(text)) for name, text in sorted(merges.items())]

    def delete_merge(self, tenant: str, name: str) -> None:
        if not base.is_name(name) or not self._server.change(self._client.hdel, self._key("merges", tenant), name):
            raise refusals.no_merge(name, self._merge_names(tenant))

    def add_blob(self, tenant: str, digest: Digest, size: int) -> bool:
        base.check_name(tenant, param="tenant")
        text = json.dumps({"size": size, "created_at": time.time()})
        status, used, most = self._change(self._add_blob, tenant, [tenant, digest, text, size])
        check_quota(tenant, size, status, used, most)
        return bool(status == "created")

    def forget_blob(self, digest: Digest) -> None:
        for tenant in self._tenants("blobs"):
            self._server.change(self._client.hdel, self._key("blobs", tenant), digest)

    def has_blob(self, tenant: str, digest: Digest) -> bool:
        return base.is_digest(digest) and bool(
            self._server.ask(self._client.hexists, self._key("blobs", tenant), digest)
        )

    def live_digests(self) -> set[Digest]:
        return set(self._server.ask(self._client.hkeys, self._key("digests")))

    def all_versions(self) -> list[DeltaRecord]:
        return [record for tenant in self._tenants("deltas") for record in self._versions_of(tenant)]

    def pinned_digests(self) -> set[Digest]:
        merges = [merge for tenant in self._tenants("merges") for merge in self.list_merges(tenant)]
        return {digest for merge in merges for digest in base.digests_in(merge.recipe)}

    def _tenants(self, kind: str) -> list[str]:
        """Those that have ever had something of a kind."""
        start = self._key(kind, "")
        keys = self._server.ask(lambda: list(self._client.scan_iter(f"{_literal(start)}*", count=1000)))
        return sorted(key.removeprefix(start) for key in set(keys))

    def _versions_of(self, tenant: str) -> list[DeltaRecord]:
        entries = self._entries(tenant)
        chosen = [(name, version) for name, entry in sorted(entries.items()) for version in _live(entry)]
        return self._records(tenant, entries, chosen)

    def hold(self, digest: Digest, seconds: float) -> None:
        if self._change(self._hold, "", ["", digest, seconds]) != "ok":
            raise refusals.being_removed(digest)

    def condemn(self, digest: Digest, since: float, seconds: float) -> bool:
        return bool(self._change(self._condemn, "", ["", digest, repr(since), seconds]) == "ok")

    def pardon(self, digest: Digest) -> None:
        self._server.change(self._client.zrem, self._key("condemned"), digest)

    def ping(self) -> None:
        self._server.ask(self._client.ping)

    def close(self) -> None:
        self._server.close()

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def _change(self, script: Callable[..., Any], tenant: str, args: list[Any]) -> Any:
        return self._server.change(script, keys=self._keys(tenant), args=args)

    def _keys(self, tenant: str) -> list[str]:
        """What every script is given."""
        per_tenant = [self._key(kind, tenant) for kind in ("deltas", "versions", "deleted", "merges", "blobs")]
        common = [self._key(kind) for kind in ("digests", "tenants", "tombstones", "holds", "condemned")]
        return [*per_tenant, *common, self._key("uploads", tenant)]

    def _count(self, tenant: str) -> tuple[str, str]:
        num_bytes, num_deltas = self._server.ask(self._usage, keys=self._keys(tenant), args=[tenant, ""])
        return num_bytes, num_deltas

    def _entries(self, tenant: str) -> dict[str, Any]:
        """The names with live versions."""
        texts = self._server.ask(self._client.hgetall, self._key("deltas", tenant))
        entries = {name: json.loads(text) for name, text in texts.items()}
        return {name: entry for name, entry in entries.items() if entry["live"]}

    def _entry(self, tenant: str, name: str) -> Any:
        """A name's entry. Raises NotFound if it has no live version."""
        text = self._server.ask(self._client.hget, self._key("deltas", tenant), name) if base.is_name(name) else None
        entry = json.loads(text) if text else None
        if not entry or not entry["live"]:
            raise refusals.no_delta(name, self._entries(tenant))
        return entry

    def _records(self, tenant: str, entries: dict[str, Any], chosen: list[tuple[str, int]]) -> list[DeltaRecord]:
        """Records never change, so what an entry named a moment ago is still there, whatever happened since."""
        if not chosen:
            return []
        fields = [f"{name}@{version}" for name, version in chosen]
        texts = self._server.ask(self._client.hmget, self._key("versions", tenant), fields)
        return [
            _record(tenant, name, version, text, entries[name]["current"])
            for (name, version), text in zip(chosen, texts, strict=True)
        ]

    def _merge_names(self, tenant: str) -> list[str]:
        return list(self._server.ask(self._client.hkeys, self._key("merges", tenant)))

    def _missing(self, tenant: str, name: str, version: int | None, entry: Any) -> Exception:
        if not entry["live"] or version is None:
            return refusals.no_delta(name, self._entries(tenant))
        return refusals.no_version(name, version, _live(entry))


def _literal(text: str) -> str:
    """For a pattern of Redis."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)


def _live(entry: Any) -> list[int]:
    return sorted(map(int, entry["live"]))


def _record(tenant: str, name: str, version: int, text: str, current: int) -> DeltaRecord:
    return DeltaRecord(tenant, name, int(version), **json.loads(text), current=int(version) == int(current))
