"""The catalog in one SQLite file: the default, for one host. Knows no blobs, and nothing of how the file is opened."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from patchbay.store import base, holds, refusals, sqlite_uploads
from patchbay.store.base import DeltaRecord, Digest, MergeRecord
from patchbay.store.database import Database
from patchbay.store.migrations import SCHEMA
from patchbay.store.sqlite_audit import SqliteAudit
from patchbay.store.sqlite_keys import SqliteKeys
from patchbay.store.sqlite_snapshots import SqliteSnapshots
from patchbay.store.sqlite_tenants import SqliteTenants, take_room

_SELECT = """SELECT d.tenant, d.name, d.version, d.digest, d.size, d.created_at, d.summary, d.version IS n.current
             FROM deltas d JOIN delta_names n USING (tenant, name)
             WHERE d.deleted_at IS NULL """
_NEWEST = "SELECT max(version) FROM deltas l WHERE l.tenant = d.tenant AND l.name = d.name AND l.deleted_at IS NULL"


class SqliteCatalog(Database):
    """A `Catalog` in the file `path`, which is made with its folder if it does not exist."""

    remembers = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, SCHEMA)
        self.keys = SqliteKeys(self)
        self.tenants = SqliteTenants(self)
        self.audit = SqliteAudit(self)
        self.snapshots = SqliteSnapshots(self)
        self.uploads = sqlite_uploads.SqliteUploads(self)

    def add_version(
        self, tenant: str, name: str, digest: Digest, size: int, summary: str, activate: bool = True
    ) -> tuple[DeltaRecord, bool]:
        base.check_name(tenant, param="tenant")
        base.check_name(name)
        with self.transaction() as db:
            if _has_merge(db, tenant, name):
                raise refusals.owned_by("merge", name)
            db.execute("DELETE FROM blobs WHERE tenant = ? AND digest = ?", (tenant, digest))
            same = _records(db, "AND name = ? AND digest = ?", tenant, name, digest)
            if same:
                return same[0], False
            take_room(db, tenant, size, deltas=1)
            version = _next_version(db, tenant, name)
            db.execute(
                "INSERT INTO deltas (tenant, name, version, digest, size, summary, created_at) VALUES (?,?,?,?,?,?,?)",
                (tenant, name, version, digest, size, summary, time.time()),
            )
            if activate:
                _point(db, tenant, name, version)
            return _record(db, tenant, name, version), True

    def get_delta(self, tenant: str, name: str, version: int | None = None) -> DeltaRecord:
        with self.transaction(write=False) as db:
            live = _live(db, tenant, name)
            chosen = _current(db, tenant, name) if version is None else version
            if chosen is None:
                raise refusals.no_current(name, live)
            if chosen not in live:
                raise refusals.no_version(name, chosen, live)
            return _record(db, tenant, name, chosen)

    def find_digest(self, tenant: str, digest: Digest) -> list[DeltaRecord]:
        if not base.is_digest(digest):
            return []
        with self.transaction(write=False) as db:
            return _records(db, "AND digest = ? ORDER BY name, version", tenant, digest)

    def list_deltas(self, tenant: str) -> list[DeltaRecord]:
        with self.transaction(write=False) as db:
            return _records(db, f"AND d.version = coalesce(n.current, ({_NEWEST})) ORDER BY name", tenant)

    def list_versions(self, tenant: str, name: str) -> list[DeltaRecord]:
        with self.transaction(write=False) as db:
            _live(db, tenant, name)
            return _records(db, "AND name = ? ORDER BY version", tenant, name)

    def set_current(self, tenant: str, name: str, version: int, expected: int | None = None) -> DeltaRecord:
        with self.transaction() as db:
            live = _live(db, tenant, name)
            if version not in live:
                raise refusals.no_version(name, version, live)
            current = _current(db, tenant, name)
            if expected is not None and expected != current:
                raise refusals.moved_on(name, expected, current)
            _point(db, tenant, name, version)
            return _record(db, tenant, name, version)

    def delete_delta(self, tenant: str, name: str, version: int | None = None) -> list[DeltaRecord]:
        with self.transaction() as db:
            live = _live(db, tenant, name)
            if version is not None and version not in live:
                raise refusals.no_version(name, version, live)
            current = _current(db, tenant, name)
            if version is not None and version == current and len(live) > 1:
                raise refusals.still_current(name, version)
            gone = _records(db, "AND name = ? ORDER BY version", tenant, name)
            if version is not None:
                gone = [record for record in gone if record.version == version]
            _bury(db, gone)
            if any(record.current for record in gone):
                _point(db, tenant, name, None)
            return gone

    def save_merge(self, tenant: str, name: str, recipe: str, replace: bool = False) -> MergeRecord:
        base.check_name(tenant, param="tenant")
        base.check_name(name)
        record = MergeRecord(tenant, name, recipe, time.time())
        with self.transaction() as db:
            if _versions(db, tenant, name):
                raise refusals.owned_by("delta", name)
            if not replace and _has_merge(db, tenant, name):
                raise refusals.merge_exists(name)
            db.execute("INSERT OR REPLACE INTO merges VALUES (?,?,?,?)", (tenant, name, recipe, record.created_at))
        return record

    def get_merge(self, tenant: str, name: str) -> MergeRecord:
        with self.transaction(write=False) as db:
            if not _has_merge(db, tenant, name):
                raise refusals.no_merge(name, _merge_names(db, tenant))
            return MergeRecord(
                *db.execute("SELECT * FROM merges WHERE tenant = ? AND name = ?", (tenant, name)).fetchone()
            )

    def list_merges(self, tenant: str) -> list[MergeRecord]:
        with self.transaction(write=False) as db:
            rows = db.execute("SELECT * FROM merges WHERE tenant = ? ORDER BY name", (tenant,))
            return [MergeRecord(*row) for row in rows]

    def delete_merge(self, tenant: str, name: str) -> None:
        with self.transaction() as db:
            if not _has_merge(db, tenant, name):
                raise refusals.no_merge(name, _merge_names(db, tenant))
            db.execute("DELETE FROM merges WHERE tenant = ? AND name = ?", (tenant, name))

    def add_blob(self, tenant: str, digest: Digest, size: int) -> bool:
        base.check_name(tenant, param="tenant")
        with self.transaction() as db:
            sqlite_uploads.end(db, tenant, digest)
            if _has_blob(db, tenant, digest):
                return False
            take_room(db, tenant, size)
            db.execute("INSERT INTO blobs VALUES (?,?,?,?)", (tenant, digest, size, time.time()))
            return True

    def forget_blob(self, digest: Digest) -> None:
        with self.transaction() as db:
            db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    def has_blob(self, tenant: str, digest: Digest) -> bool:
        if not base.is_digest(digest):
            return False
        with self.transaction(write=False) as db:
            return _has_blob(db, tenant, digest)

    def live_digests(self) -> set[Digest]:
        with self.transaction(write=False) as db:
            return {row[0] for row in db.execute("SELECT DISTINCT digest FROM deltas WHERE deleted_at IS NULL")}

    def all_versions(self) -> list[DeltaRecord]:
        with self.transaction(write=False) as db:
            return _rows(db, "ORDER BY tenant, name, version")

    def pinned_digests(self) -> set[Digest]:
        with self.transaction(write=False) as db:
            recipes = db.execute("SELECT recipe FROM merges")
            return {digest for (recipe,) in recipes for digest in base.digests_in(recipe)}

    def hold(self, digest: Digest, seconds: float) -> None:
        now = time.time()
        with self.transaction() as db:
            if not holds.hold(db, digest, now, now + seconds):
                raise refusals.being_removed(digest)

    def condemn(self, digest: Digest, since: float, seconds: float) -> bool:
        now = time.time()
        with self.transaction() as db:
            return holds.condemn(db, digest, since, now, now + seconds)

    def pardon(self, digest: Digest) -> None:
        with self.transaction() as db:
            holds.pardon(db, digest)

    def ping(self) -> None:
        with self.transaction(write=False) as db:
            db.execute("SELECT count(*) FROM migrations").fetchone()


def _records(db: sqlite3.Connection, condition: str, *values: str | int) -> list[DeltaRecord]:
    """Of the tenant that is the first value."""
    return _rows(db, f"AND d.tenant = ? {condition}", *values)


def _rows(db: sqlite3.Connection, condition: str, *values: str | int) -> list[DeltaRecord]:
    return [
        DeltaRecord(tenant, name, version, digest, size, created_at, summary, bool(current))
        for tenant, name, version, digest, size, created_at, summary, current in db.execute(_SELECT + condition, values)
    ]


def _record(db: sqlite3.Connection, tenant: str, name: str, version: int) -> DeltaRecord:
    return _records(db, "AND name = ? AND version = ?", tenant, name, version)[0]


def _versions(db: sqlite3.Connection, tenant: str, name: str) -> set[int]:
    # Text that is no name may not even be encodable, so it never reaches the database.
    if not base.is_name(name):
        return set()
    query = "SELECT version FROM deltas WHERE tenant = ? AND name = ? AND deleted_at IS NULL"
    return {row[0] for row in db.execute(query, (tenant, name))}


def _live(db: sqlite3.Connection, tenant: str, name: str) -> set[int]:
    """The live versions. Raises NotFound if there are none."""
    versions = _versions(db, tenant, name)
    if not versions:
        query = "SELECT DISTINCT name FROM deltas WHERE tenant = ? AND deleted_at IS NULL"
        raise refusals.no_delta(name, [row[0] for row in db.execute(query, (tenant,))])
    return versions


def _current(db: sqlite3.Connection, tenant: str, name: str) -> int | None:
    row = db.execute("SELECT current FROM delta_names WHERE tenant = ? AND name = ?", (tenant, name)).fetchone()
    current: int | None = row[0]
    return current


def _point(db: sqlite3.Connection, tenant: str, name: str, version: int | None) -> None:
    db.execute("UPDATE delta_names SET current = ? WHERE tenant = ? AND name = ?", (version, tenant, name))


def _next_version(db: sqlite3.Connection, tenant: str, name: str) -> int:
    query = """INSERT INTO delta_names (tenant, name, last_version) VALUES (?, ?, 1)
               ON CONFLICT DO UPDATE SET last_version = last_version + 1 RETURNING last_version"""
    version: int = db.execute(query, (tenant, name)).fetchone()[0]
    return version


def _bury(db: sqlite3.Connection, records: list[DeltaRecord]) -> None:
    now = time.time()
    rows = [(now, record.tenant, record.name, record.version) for record in records]
    db.executemany("UPDATE deltas SET deleted_at = ? WHERE tenant = ? AND name = ? AND version = ?", rows)


def _has_merge(db: sqlite3.Connection, tenant: str, name: str) -> bool:
    query = "SELECT 1 FROM merges WHERE tenant = ? AND name = ?"
    return base.is_name(name) and db.execute(query, (tenant, name)).fetchone() is not None


def _has_blob(db: sqlite3.Connection, tenant: str, digest: Digest) -> bool:
    query = "SELECT 1 FROM blobs WHERE tenant = ? AND digest = ?"
    return db.execute(query, (tenant, digest)).fetchone() is not None


def _merge_names(db: sqlite3.Connection, tenant: str) -> list[str]:
    return [row[0] for row in db.execute("SELECT name FROM merges WHERE tenant = ?", (tenant,))]
