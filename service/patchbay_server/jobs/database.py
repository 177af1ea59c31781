"""The SQLite file of the queue: opened in WAL mode, migrated in numbered steps, one transaction at a time.

Knows no jobs but for the tables. A change to the schema is a new function at the end of MIGRATIONS.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from patchbay.errors import StoreFull, StoreUnavailable
from patchbay.store.base import disk_errors

BUSY_SECONDS = 10.0


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


Migration = Callable[[sqlite3.Connection], None]
MIGRATIONS: tuple[Migration, ...] = (m0001_jobs, m0002_evaluations, m0003_events)


class Database:
    """One connection behind one lock: writers wait for each other in SQLite anyway.

    WAL with synchronous=FULL: what was acknowledged survives a power cut. Raises StoreUnavailable, StoreFull.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _sqlite_errors(path):
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        try:
            with _sqlite_errors(path):
                _use_wal(self._db)
                self._db.execute("PRAGMA synchronous = FULL")
            with self.transaction() as db:
                _migrate(db, path)
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock, _sqlite_errors(self._path):
            # IMMEDIATE takes the write lock first: a transaction that read and then wants to write could fail half-way.
            self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        db.execute("CREATE TABLE job_migrations (name TEXT PRIMARY KEY, applied_at REAL NOT NULL)")
    elif "job_migrations" not in tables:
        raise StoreUnavailable(f"{path} is no database of jobs: name another file with PATCHBAY_JOBS_DB")
    applied = {row[0] for row in db.execute("SELECT name FROM job_migrations")}
    unknown = sorted(applied - {step.__name__ for step in MIGRATIONS})
    if unknown:
        raise StoreUnavailable(f"{path} was written by a newer Patchbay (schema step {unknown[0]}): upgrade to open it")
    for step in MIGRATIONS:
        if step.__name__ not in applied:
            step(db)
            db.execute("INSERT INTO job_migrations (name, applied_at) VALUES (?, ?)", (step.__name__, time.time()))


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        # Extended codes carry the primary code in their low byte; errors of the Python module itself carry none.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise StoreFull(f"no space left for the jobs in {path}: free some, then try again") from error
        raise StoreUnavailable(f"the jobs in {path} cannot be used: {error}") from error


def _use_wal(db: sqlite3.Connection) -> None:
    """Switching needs the file alone, and SQLite does not wait for that as it does for its other locks."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
