"""The tenants of a catalog in SQLite, in the catalog's file. Knows nothing of what is stored but its size."""

from __future__ import annotations

import sqlite3
import time

from patchbay.store.base import check_name
from patchbay.store.database import Database
from patchbay.store.tenants import Limits, Usage, check_room

_USED = """SELECT (SELECT coalesce(sum(size), 0) FROM deltas WHERE tenant = :t AND deleted_at IS NULL)
                  + (SELECT coalesce(sum(size), 0) FROM blobs WHERE tenant = :t)
                  + (SELECT coalesce(sum(length), 0) FROM uploads WHERE tenant = :t AND expires_at > :now),
                  (SELECT count(*) FROM deltas WHERE tenant = :t AND deleted_at IS NULL)"""


class SqliteTenants:
    """`Tenants` in `database`, which has the catalog's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get_limits(self, tenant: str) -> Limits:
        with self._database.transaction(write=False) as db:
            return _limits(db, tenant)

    def set_limits(self, tenant: str, limits: Limits) -> None:
        check_name(tenant, param="tenant")
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO tenants VALUES (?,?)", (tenant, limits.to_json()))

    def list_limits(self) -> dict[str, Limits]:
        with self._database.transaction(write=False) as db:
            rows = db.execute("SELECT name, limits FROM tenants ORDER BY name")
            return {name: Limits.from_json(text) for name, text in rows}

    def usage(self, tenant: str) -> Usage:
        with self._database.transaction(write=False) as db:
            return _usage(db, tenant)

    def check_room(self, tenant: str, size: int, deltas: int = 0) -> None:
        with self._database.transaction(write=False) as db:
            take_room(db, tenant, size, deltas)


def take_room(db: sqlite3.Connection, tenant: str, size: int, deltas: int = 0) -> None:
    """Inside the transaction that stores it. Raises QuotaExceeded. Nothing is added up where there is no limit."""
    limits = _limits(db, tenant)
    if limits.max_bytes is not None or limits.max_deltas is not None:
        check_room(tenant, limits, _usage(db, tenant), size, deltas)


def _limits(db: sqlite3.Connection, tenant: str) -> Limits:
    row = db.execute("SELECT limits FROM tenants WHERE name = ?", (tenant,)).fetchone()
    return Limits.from_json(row[0] if row else None)


def _usage(db: sqlite3.Connection, tenant: str) -> Usage:
    return Usage(*db.execute(_USED, {"t": tenant, "now": time.time()}).fetchone())
