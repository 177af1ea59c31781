from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from subprocess import PIPE

import pytest

import patchbay
from patchbay.errors import StoreUnavailable
from patchbay.store import SqliteCatalog, migrations

DIGEST = f"sha256:{'a' * 64}"

# A catalog as its first schema wrote it. It stays as it is, whatever the schema becomes.
V1 = f"""
CREATE TABLE migrations (name TEXT PRIMARY KEY, applied_at REAL NOT NULL);
INSERT INTO migrations VALUES ('m0001_deltas', 1700000000.0);
CREATE TABLE delta_names (
  tenant TEXT NOT NULL, name TEXT NOT NULL, last_version INTEGER NOT NULL, current INTEGER,
  PRIMARY KEY (tenant, name)) WITHOUT ROWID;
CREATE TABLE deltas (
  tenant TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
  size INTEGER NOT NULL, summary TEXT NOT NULL, created_at REAL NOT NULL, deleted_at REAL,
  PRIMARY KEY (tenant, name, version));
CREATE UNIQUE INDEX live_digests ON deltas (digest, tenant, name) WHERE deleted_at IS NULL;
INSERT INTO delta_names VALUES ('default', 'math', 4, 3);
INSERT INTO deltas VALUES ('default', 'math', 3, '{DIGEST}', 12, '{{"v": 1}}', 1700000001.5, NULL);
INSERT INTO deltas VALUES ('default', 'math', 4, '{DIGEST}', 12, '{{}}', 1700000002.5, 1700000003.5);
"""


def write(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    return [(name, " ".join(sql.split())) for name, sql in rows]


def applied(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT name FROM migrations ORDER BY rowid")]


def open_and_close(path: Path) -> None:
    SqliteCatalog(path).close()


def test_steps_are_numbered_without_gaps() -> None:
    numbers = [int(step.__name__[1:5]) for step in migrations.MIGRATIONS]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_blank_file_gets_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    for _ in range(2):
        open_and_close(path)
        assert applied(path) == [step.__name__ for step in migrations.MIGRATIONS]


def test_the_first_schema_is_brought_up_to_date_and_keeps_its_rows(tmp_path: Path) -> None:
    old, blank = tmp_path / "old.db", tmp_path / "blank.db"
    write(old, V1)
    open_and_close(blank)
    with closing(SqliteCatalog(old)) as catalog:
        [record] = catalog.list_versions("default", "math")
        assert (record.version, record.digest, record.size, record.summary) == (3, DIGEST, 12, '{"v": 1}')
        assert record.created_at == 1700000001.5 and record.current
        assert catalog.add_version("default", "math", f"sha256:{'b' * 64}", 1, "{}")[0].version == 5
        catalog.save_merge("default", "mix", "{}")
    assert schema(old) == schema(blank)
    assert applied(old) == applied(blank)


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    write(path, V1 + "INSERT INTO migrations VALUES ('m0099_later', 1800000000.0);")
    before = schema(path)
    with pytest.raises(StoreUnavailable, match=r"newer Patchbay \(schema step m0099_later\): upgrade"):
        SqliteCatalog(path)
    assert schema(path) == before


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    write(path, "CREATE TABLE songs (title TEXT)")
    with pytest.raises(StoreUnavailable, match="belongs to another program"):
        SqliteCatalog(path)
    assert schema(path) == [("songs", "CREATE TABLE songs (title TEXT)")]


def test_a_failing_step_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    # A step's table is in the way, so that step fails after others could have been applied.
    write(path, V1 + "CREATE TABLE merges (something TEXT)")
    before = schema(path), applied(path)
    with pytest.raises(StoreUnavailable, match="already exists"):
        SqliteCatalog(path)
    assert (schema(path), applied(path)) == before


OPENER = """
import sys
from pathlib import Path
from patchbay.store import SqliteCatalog
for line in sys.stdin:
    SqliteCatalog(Path(line.strip())).close()
    print("opened", flush=True)
"""


def test_many_processes_may_open_a_blank_file_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(patchbay.__file__).parent.parent)}
    command = [sys.executable, "-c", OPENER]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment))
            for _ in range(6)
        ]
        for i in range(60):
            path = tmp_path / f"catalog{i}.db"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{path}\n")
                process.stdin.flush()
            for process in processes:
                assert process.stdout is not None and process.stdout.readline() == "opened\n"
            assert applied(path) == [step.__name__ for step in migrations.MIGRATIONS]
