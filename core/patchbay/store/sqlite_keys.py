"""The keys of a catalog in SQLite, in the catalog's file. Knows no secrets and no requests."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from patchbay.store.database import Database
from patchbay.store.keys import KeyRecord, is_key_id, no_key, read_scopes, write_scopes

_COLUMNS = "id, tenant, scopes, secret_hash, created_at, expires_at, last_used_at, revoked_at"


class SqliteKeys:
    """`Keys` in `database`, which has the catalog's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: KeyRecord) -> None:
        times = (record.created_at, record.expires_at, record.last_used_at, record.revoked_at)
        row = (record.id, record.tenant, write_scopes(record.scopes), record.secret_hash, *times)
        with self._database.transaction() as db:
            db.execute(f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)", row)

    def get(self, key: str) -> KeyRecord:
        with self._database.transaction(write=False) as db:
            return _get(db, key)

    def list_keys(self) -> list[KeyRecord]:
        with self._database.transaction(write=False) as db:
            return [_record(row) for row in db.execute(f"SELECT {_COLUMNS} FROM api_keys ORDER BY created_at, id")]

    def revoke(self, key: str) -> KeyRecord:
        with self._database.transaction() as db:
            _get(db, key)
            db.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (time.time(), key))
            return _get(db, key)

    def touch(self, key: str, at: float) -> None:
        if is_key_id(key):
            with self._database.transaction() as db:
                db.execute("UPDATE api_keys SET last_used_at = ? WHERE id = ?", (at, key))


def _get(db: sqlite3.Connection, key: str) -> KeyRecord:
    # Text that is no id may not even be encodable, so it never reaches the database.
    row = db.execute(f"SELECT {_COLUMNS} FROM api_keys WHERE id = ?", (key,)).fetchone() if is_key_id(key) else None
    if row is None:
        raise no_key(key)
    return _record(row)


def _record(row: tuple[Any, ...]) -> KeyRecord:
    key, tenant, scopes, *rest = row
    return KeyRecord(key, tenant, read_scopes(scopes), *rest)
