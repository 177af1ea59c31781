"""A whole catalog in SQLite, read and added to in one transaction. Knows no files but the catalog's own."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple

from patchbay.store.audit import Entry
from patchbay.store.base import MergeRecord
from patchbay.store.database import Database
from patchbay.store.keys import KeyRecord, read_scopes, write_scopes
from patchbay.store.snapshot import Brought, Limited, Name, Snapshot, Version, missing
from patchbay.store.tenants import Limits

_NAMES = "SELECT tenant, name, last_version, current FROM delta_names ORDER BY tenant, name"
_VERSIONS = """SELECT tenant, name, version, digest, size, summary, created_at, deleted_at FROM deltas
               ORDER BY tenant, name, version"""
_MERGES = "SELECT tenant, name, recipe, created_at FROM merges ORDER BY tenant, name"
_BROUGHT = "SELECT tenant, digest, size, created_at FROM blobs ORDER BY tenant, digest"
_KEYS = """SELECT id, tenant, scopes, secret_hash, created_at, expires_at, last_used_at, revoked_at FROM api_keys
           ORDER BY id"""
_AUDIT = "SELECT at, tenant, actor, action, subject, result FROM audit ORDER BY number"


class SqliteSnapshots:
    """`Snapshots` of `database`, which has the catalog's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def dump(self) -> Snapshot:
        with self._database.transaction(write=False) as db:
            return _dump(db)

    def load(self, snapshot: Snapshot) -> None:
        with self._database.transaction() as db:
            new = missing(_dump(db), snapshot)
            db.executemany(
                "INSERT INTO delta_names (tenant, name, last_version, current) VALUES (?,?,?,?)",
                map(astuple, new.names),
            )
            db.executemany(
                """INSERT INTO deltas (tenant, name, version, digest, size, summary, created_at, deleted_at)
                   VALUES (?,?,?,?,?,?,?,?)""",
                map(astuple, new.versions),
            )
            db.executemany("INSERT INTO merges VALUES (?,?,?,?)", map(astuple, new.merges))
            db.executemany("INSERT INTO blobs VALUES (?,?,?,?)", map(astuple, new.brought))
            db.executemany(
                "INSERT INTO tenants VALUES (?,?)", [(row.tenant, row.limits.to_json()) for row in new.limits]
            )
            db.executemany("INSERT INTO api_keys VALUES (?,?,?,?,?,?,?,?)", map(_key_row, new.keys))
            db.executemany(
                "INSERT INTO audit (at, tenant, actor, action, subject, result) VALUES (?,?,?,?,?,?)",
                map(astuple, new.audit),
            )


def _dump(db: sqlite3.Connection) -> Snapshot:
    limits = db.execute("SELECT name, limits FROM tenants ORDER BY name")
    return Snapshot(
        names=tuple(Name(*row) for row in db.execute(_NAMES)),
        versions=tuple(Version(*row) for row in db.execute(_VERSIONS)),
        merges=tuple(MergeRecord(*row) for row in db.execute(_MERGES)),
        brought=tuple(Brought(*row) for row in db.execute(_BROUGHT)),
        limits=tuple(Limited(tenant, Limits.from_json(text)) for tenant, text in limits),
        keys=tuple(KeyRecord(key, tenant, read_scopes(s), *rest) for key, tenant, s, *rest in db.execute(_KEYS)),
        audit=tuple(Entry(*row) for row in db.execute(_AUDIT)),
    )


def _key_row(key: KeyRecord) -> tuple[object, ...]:
    times = (key.created_at, key.expires_at, key.last_used_at, key.revoked_at)
    return (key.id, key.tenant, write_scopes(key.scopes), key.secret_hash, *times)
