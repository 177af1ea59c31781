"""The audit log of a catalog in SQLite, in the catalog's file, whose triggers refuse to change it."""

from __future__ import annotations

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
