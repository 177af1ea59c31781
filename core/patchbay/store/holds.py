"""Who keeps a blob from being removed, in SQLite: a row a digest, until a time. Knows no blobs and no names."""

from __future__ import annotations

import sqlite3

from patchbay.store.base import Digest


def hold(db: sqlite3.Connection, digest: Digest, now: float, until: float) -> bool:
    """False where the digest is condemned."""
    db.execute("DELETE FROM holds WHERE until <= ?", (now,))
    db.execute(
        """INSERT INTO holds VALUES (?, ?, 0)
           ON CONFLICT DO UPDATE SET until = max(until, excluded.until) WHERE NOT condemned""",
        (digest, until),
    )
    return not _is_condemned(db, digest)


def condemn(db: sqlite3.Connection, digest: Digest, since: float, now: float, until: float) -> bool:
    """False where a version has the digest, or had it and was deleted after `since`, or somebody holds it."""
    db.execute("DELETE FROM holds WHERE until <= ?", (now,))
    used = "SELECT 1 FROM deltas WHERE digest = ? AND (deleted_at IS NULL OR deleted_at > ?)"
    if db.execute(used, (digest, since)).fetchone():
        return False
    return db.execute("INSERT OR IGNORE INTO holds VALUES (?, ?, 1)", (digest, until)).rowcount > 0


def pardon(db: sqlite3.Connection, digest: Digest) -> None:
    db.execute("DELETE FROM holds WHERE digest = ? AND condemned", (digest,))


def _is_condemned(db: sqlite3.Connection, digest: Digest) -> bool:
    return db.execute("SELECT 1 FROM holds WHERE digest = ? AND condemned", (digest,)).fetchone() is not None
