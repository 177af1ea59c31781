"""The SQLite catalog's schema, as numbered steps that each run once. Knows no queries.

A released step never changes; a change of the schema is a new function at the end of MIGRATIONS.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from patchbay.errors import StoreUnavailable


def m0001_deltas(db: sqlite3.Connection) -> None:
    # last_version outlives the name's deletion, so that a number never means two things.
    db.execute(
        """CREATE TABLE delta_names (
             tenant TEXT NOT NULL, name TEXT NOT NULL, last_version INTEGER NOT NULL, current INTEGER,
             PRIMARY KEY (tenant, name)) WITHOUT ROWID"""
    )
    db.execute(
        """CREATE TABLE deltas (
             tenant TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
             size INTEGER NOT NULL, summary TEXT NOT NULL, created_at REAL NOT NULL, deleted_at REAL,
             PRIMARY KEY (tenant, name, version))"""
    )
    db.execute("CREATE UNIQUE INDEX live_digests ON deltas (digest, tenant, name) WHERE deleted_at IS NULL")


def m0002_merges(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE merges (
             tenant TEXT NOT NULL, name TEXT NOT NULL, recipe TEXT NOT NULL, created_at REAL NOT NULL,
             PRIMARY KEY (tenant, name))"""
    )


Migration = Callable[[sqlite3.Connection], None]
MIGRATIONS: tuple[Migration, ...] = (m0001_deltas, m0002_merges)


def migrate(db: sqlite3.Connection) -> None:
    """Apply the steps that are missing. The caller holds a write transaction: all of them are applied, or none.

    Raises StoreUnavailable if a newer Patchbay has written here, or something that is not Patchbay.
    """
    applied = _applied(db)
    unknown = sorted(applied - {step.__name__ for step in MIGRATIONS})
    if unknown:
        raise StoreUnavailable(
            f"the catalog was written by a newer Patchbay (schema step {unknown[0]}): upgrade Patchbay to open it"
        )
    for step in MIGRATIONS:
        if step.__name__ not in applied:
            step(db)
            db.execute("INSERT INTO migrations (name, applied_at) VALUES (?, ?)", (step.__name__, time.time()))


def _applied(db: sqlite3.Connection) -> set[str]:
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        db.execute("CREATE TABLE migrations (name TEXT PRIMARY KEY, applied_at REAL NOT NULL)")
    elif "migrations" not in tables:
        raise StoreUnavailable("this SQLite database belongs to another program: give the catalog a file of its own")
    return {row[0] for row in db.execute("SELECT name FROM migrations")}
