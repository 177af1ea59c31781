"""One SQLite file, opened for good: WAL, numbered schema steps, one transaction at a time. Knows no tables of its own.

One connection behind one lock. Transactions take about a millisecond and SQLite has one writer at a time anyway; a
connection a thread would only leak, since server threads come and go. Other processes wait for each other in SQLite's
own lock, up to BUSY_SECONDS. WAL with synchronous=FULL: what was acknowledged survives a power cut.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from patchbay.errors import StoreFull, StoreUnavailable
from patchbay.store.base import disk_errors

BUSY_SECONDS = 10.0
Migration = Callable[[sqlite3.Connection], None]


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file holds and how people are told of it; `{path}` in a text stands for the file.

    `steps` each run once, in order; their names are kept in `table`. A released step never changes: a change is a new
    one at the end. `subject` names the file's content in errors, `foreign` refuses a file without `table`, `reasons`
    are texts for primary result codes of SQLite that deserve one. `part` is what it is called where nobody is told of
    files.
    """

    table: str
    steps: tuple[Migration, ...]
    subject: str
    part: str
    foreign: str
    reasons: Mapping[int, str] = field(default_factory=dict)


class Database:
    """The file `path`, which is made with its folder if it does not exist. Raises StoreUnavailable, StoreFull."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.Lock()
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            with self._errors():
                _use_wal(self._db)
                self._db.execute("PRAGMA synchronous = FULL")
            with self.transaction() as db:
                self._migrate(db)
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
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

    def _migrate(self, db: sqlite3.Connection) -> None:
        """Applies the steps that are missing: inside one transaction, all of them or none."""
        applied, table = self._applied(db), self._schema.table
        unknown = sorted(applied - {step.__name__ for step in self._schema.steps})
        if unknown:
            raise StoreUnavailable(
                f"{self._subject} was written by a newer Patchbay (schema step {unknown[0]}): "
                "upgrade Patchbay to open it",
                part=self._schema.part,
            )
        for step in self._schema.steps:
            if step.__name__ not in applied:
                step(db)
                db.execute(f"INSERT INTO {table} (name, applied_at) VALUES (?, ?)", (step.__name__, time.time()))

    def _applied(self, db: sqlite3.Connection) -> set[str]:
        table = self._schema.table
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            db.execute(f"CREATE TABLE {table} (name TEXT PRIMARY KEY, applied_at REAL NOT NULL)")
        elif table not in tables:
            raise StoreUnavailable(self._schema.foreign.format(path=self._path), part=self._schema.part)
        return {row[0] for row in db.execute(f"SELECT name FROM {table}")}

    @property
    def _subject(self) -> str:
        return self._schema.subject.format(path=self._path)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # Extended codes carry the primary code in their low byte; errors of the Python module itself carry none.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise StoreFull(f"no space left for {self._subject}: free some, then try again") from error
            if code in self._schema.reasons:
                reason = self._schema.reasons[code].format(path=self._path)
                raise StoreUnavailable(reason, part=self._schema.part) from error
            raise StoreUnavailable(f"{self._subject} cannot be used: {error}", part=self._schema.part) from error


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
