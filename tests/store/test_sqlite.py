"""What only the SQLite catalog can meet: files that are no catalog, full disks, other processes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from patchbay.errors import NotFound, StoreFull, StoreUnavailable
from patchbay.store import SqliteCatalog, database

T = "default"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def test_the_folder_is_made(tmp_path: Path) -> None:
    with closing(SqliteCatalog(tmp_path / "a" / "b" / "catalog.db")) as catalog:
        catalog.ping()


def test_commits_are_as_durable_as_sqlite_can_make_them(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with closing(SqliteCatalog(path)) as catalog, closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert catalog._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"hello, I am a text file. " * 100)
    with pytest.raises(StoreUnavailable, match="is not a SQLite database: name another file"):
        SqliteCatalog(path)
    assert path.read_bytes().startswith(b"hello")


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        SqliteCatalog(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        SqliteCatalog(tmp_path / "file" / "catalog.db")


def test_a_damaged_catalog_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with closing(SqliteCatalog(path)) as catalog:
        for i in range(200):
            catalog.add_version(T, f"n{i}", digest(i), 1, "{}")
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StoreUnavailable, match="is damaged: restore it from a backup"):  # noqa: SIM117
        with closing(SqliteCatalog(path)) as catalog:
            catalog.list_deltas(T)


def test_a_locked_catalog_gives_up_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    path = tmp_path / "catalog.db"
    with closing(SqliteCatalog(path)) as catalog, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="another process keeps the catalog .* locked"):
            catalog.add_version(T, "math", digest(1), 1, "{}")
        assert catalog.list_deltas(T) == []
        other.execute("ROLLBACK")
        catalog.add_version(T, "math", digest(1), 1, "{}")


def test_a_closed_catalog_says_so(tmp_path: Path) -> None:
    catalog = SqliteCatalog(tmp_path / "catalog.db")
    catalog.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        catalog.ping()


def test_a_full_disk_refuses_whole_changes_and_keeps_the_rest(small_disk: Path) -> None:
    with closing(SqliteCatalog(small_disk / "catalog.db")) as catalog:
        if not small_disk.is_mount():
            # SQLite reports a limit on file sizes as any other I/O error; its own limit reads as a full disk.
            catalog._db.execute("PRAGMA max_page_count = 100")
        stored = 0
        with pytest.raises(StoreFull, match="no space left for the catalog"):
            while True:
                catalog.add_version(T, f"n{stored}", digest(stored), 1, "x" * 50_000)
                stored += 1
        assert stored > 0
        assert len(catalog.list_deltas(T)) == len(catalog.live_digests()) == stored
        with pytest.raises(NotFound):
            catalog.get_delta(T, f"n{stored}")


def test_deleted_versions_stay_as_tombstones(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with closing(SqliteCatalog(path)) as catalog, closing(sqlite3.connect(path)) as other:
        catalog.add_version(T, "math", digest(1), 1, "{}")
        catalog.delete_delta(T, "math")
        [(version, deleted_at)] = other.execute("SELECT version, deleted_at FROM deltas").fetchall()
        assert version == 1 and deleted_at > 1.7e9
