"""The SQLite catalog's schema, as numbered steps that each run once. Knows no queries.

A released step never changes; a change of the schema is a new function at the end of MIGRATIONS.
"""

from __future__ import annotations

import sqlite3

from patchbay.store.database import Migration, Schema


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


def m0003_keys(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE api_keys (
             id TEXT PRIMARY KEY, tenant TEXT NOT NULL, scopes TEXT NOT NULL, secret_hash TEXT NOT NULL,
             created_at REAL NOT NULL, expires_at REAL, last_used_at REAL, revoked_at REAL) WITHOUT ROWID"""
    )


def m0004_blobs(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE blobs (
             tenant TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, created_at REAL NOT NULL,
             PRIMARY KEY (tenant, digest)) WITHOUT ROWID"""
    )


def m0005_tenants(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE tenants (name TEXT PRIMARY KEY, limits TEXT NOT NULL) WITHOUT ROWID")


def m0006_audit(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE audit (
             number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, tenant TEXT NOT NULL, actor TEXT NOT NULL,
             action TEXT NOT NULL, subject TEXT NOT NULL, result TEXT NOT NULL)"""
    )
    db.execute("CREATE INDEX audit_of_tenants ON audit (tenant, number)")
    for change in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER no_audit_{change.lower()} BEFORE {change} ON audit "
            "BEGIN SELECT raise(ABORT, 'the audit log is never changed'); END"
        )


def m0007_holds(db: sqlite3.Connection) -> None:
    # until: unix seconds; condemned: held by whoever removes the blob, so that nobody else can hold it.
    db.execute(
        "CREATE TABLE holds (digest TEXT PRIMARY KEY, until REAL NOT NULL, condemned INTEGER NOT NULL) WITHOUT ROWID"
    )


def m0008_uploads(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE uploads (
             tenant TEXT NOT NULL, digest TEXT NOT NULL, length INTEGER NOT NULL, expires_at REAL NOT NULL,
             PRIMARY KEY (tenant, digest)) WITHOUT ROWID"""
    )


MIGRATIONS: tuple[Migration, ...] = (
    m0001_deltas,
    m0002_merges,
    m0003_keys,
    m0004_blobs,
    m0005_tenants,
    m0006_audit,
    m0007_holds,
    m0008_uploads,
)
SCHEMA = Schema(
    table="migrations",
    steps=MIGRATIONS,
    subject="the catalog {path}",
    part="the catalog",
    foreign="this SQLite database belongs to another program: give the catalog a file of its own",
    reasons={
        sqlite3.SQLITE_NOTADB: "{path} is not a SQLite database: name another file, or move this one away",
        sqlite3.SQLITE_CORRUPT: "the catalog {path} is damaged: restore it from a backup",
        sqlite3.SQLITE_BUSY: "another process keeps the catalog {path} locked: try again",
    },
)
