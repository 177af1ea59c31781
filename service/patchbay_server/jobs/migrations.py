"""The schema of the queue's SQLite file, as numbered steps that each run once. Knows no queries.

A released step never changes; a change of the schema is a new function at the end of MIGRATIONS.
"""

from __future__ import annotations

import sqlite3

from patchbay.store.database import Migration, Schema

ENDED = "state NOT IN ('queued', 'running')"


def m0001_jobs(db: sqlite3.Connection) -> None:
    # AUTOINCREMENT: the order of submission stays the order of numbers.
    db.execute(
        """CREATE TABLE jobs (
             number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
             kind TEXT NOT NULL, spec TEXT NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL DEFAULT 0,
             losses INTEGER NOT NULL DEFAULT 0, generation INTEGER NOT NULL DEFAULT 0, owner TEXT, lease_until REAL,
             cancelling INTEGER NOT NULL DEFAULT 0, progress TEXT, result TEXT, error TEXT,
             key TEXT, body_hash TEXT, created_at REAL NOT NULL, updated_at REAL NOT NULL)"""
    )
    db.execute("CREATE UNIQUE INDEX job_keys ON jobs (tenant, key) WHERE key IS NOT NULL")
    db.execute("CREATE INDEX open_jobs ON jobs (state, number)")


def m0002_evaluations(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE evaluations (
             job TEXT NOT NULL, number INTEGER NOT NULL, evaluation TEXT NOT NULL,
             PRIMARY KEY (job, number)) WITHOUT ROWID"""
    )


def m0003_events(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE events (
             job TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL,
             created_at REAL NOT NULL, PRIMARY KEY (job, number)) WITHOUT ROWID"""
    )


def m0004_ended_jobs(db: sqlite3.Connection) -> None:
    # Those that were over long enough are looked for with every new job.
    db.execute(f"CREATE INDEX ended_jobs ON jobs (updated_at) WHERE {ENDED}")


MIGRATIONS: tuple[Migration, ...] = (m0001_jobs, m0002_evaluations, m0003_events, m0004_ended_jobs)
SCHEMA = Schema(
    table="job_migrations",
    steps=MIGRATIONS,
    subject="the jobs in {path}",
    part="the queue of jobs",
    foreign="{path} is no database of jobs: name another file with PATCHBAY_JOBS_DB",
)
