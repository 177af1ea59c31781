"""Begun uploads in SQLite, in the catalog's file. Knows no bytes."""

from __future__ import annotations

import sqlite3
import time

from patchbay.store.base import Digest, check_name
from patchbay.store.database import Database
from patchbay.store.sqlite_tenants import take_room
from patchbay.store.uploads import MAX_BEGUN, Begun, no_upload, other_length, too_many


class SqliteUploads:
    """`Uploads` in `database`, which has the catalog's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, tenant: str, digest: Digest, length: int, seconds: float) -> Begun:
        check_name(tenant, param="tenant")
        now = time.time()
        with self._database.transaction() as db:
            db.execute("DELETE FROM uploads WHERE expires_at <= ?", (now,))
            found = _find(db, tenant, digest)
            if found is None:
                _check(db, tenant, length)
            elif found.length != length:
                raise other_length(digest, length, found.length)
            db.execute("INSERT OR REPLACE INTO uploads VALUES (?,?,?,?)", (tenant, digest, length, now + seconds))
        return Begun(tenant, digest, length, now + seconds)

    def get(self, tenant: str, digest: Digest) -> Begun:
        with self._database.transaction(write=False) as db:
            found = _find(db, tenant, digest)
        if found is None or found.expires_at <= time.time():
            raise no_upload(digest)
        return found

    def end(self, tenant: str, digest: Digest) -> None:
        with self._database.transaction() as db:
            end(db, tenant, digest)


def end(db: sqlite3.Connection, tenant: str, digest: Digest) -> None:
    """Inside a transaction of the catalog."""
    db.execute("DELETE FROM uploads WHERE tenant = ? AND digest = ?", (tenant, digest))


def _check(db: sqlite3.Connection, tenant: str, length: int) -> None:
    """Raises QuotaExceeded."""
    if db.execute("SELECT count(*) FROM uploads WHERE tenant = ?", (tenant,)).fetchone()[0] >= MAX_BEGUN:
        raise too_many(tenant)
    take_room(db, tenant, length)


def _find(db: sqlite3.Connection, tenant: str, digest: Digest) -> Begun | None:
    query = "SELECT tenant, digest, length, expires_at FROM uploads WHERE tenant = ? AND digest = ?"
    row = db.execute(query, (tenant, digest)).fetchone()
    return None if row is None else Begun(*row)
