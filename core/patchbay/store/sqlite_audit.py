"""The audit log of a catalog in SQLite, in the catalog's file, whose triggers refuse whatever else would change it."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple

from patchbay.store.audit import Entry
from patchbay.store.database import Database


class SqliteAudit:
    """`Audit` in `database`, which has the catalog's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, entry: Entry) -> None:
        with self._database.transaction() as db:
            query = "INSERT INTO audit (at, tenant, actor, action, subject, result) VALUES (?,?,?,?,?,?)"
            db.execute(query, astuple(entry))

    def list_entries(self, tenant: str | None = None, limit: int = 100) -> list[Entry]:
        query = """SELECT at, tenant, actor, action, subject, result FROM audit
                   WHERE ? IS NULL OR tenant = ? ORDER BY number DESC LIMIT ?"""
        with self._database.transaction(write=False) as db:
            return [Entry(*row) for row in db.execute(query, (tenant, tenant, limit))][::-1]

    def forget(self, before: float, *, dry_run: bool = False) -> int:
        with self._database.transaction(write=not dry_run) as db:
            kept = "SELECT number FROM audit WHERE at >= ? ORDER BY number LIMIT 1"
            [end] = db.execute(kept, (before,)).fetchone() or [1 << 62]
            [count] = db.execute("SELECT count(*) FROM audit WHERE number < ?", (end,)).fetchone()
            if count and not dry_run:
                _delete_before(db, end)
            return int(count)


def _delete_before(db: sqlite3.Connection, number: int) -> None:
    """Inside the transaction, so that nobody else ever sees the log without its trigger."""
    [trigger] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'no_audit_delete'").fetchone()
    db.execute("DROP TRIGGER no_audit_delete")
    db.execute("DELETE FROM audit WHERE number < ?", (number,))
    db.execute(trigger)
