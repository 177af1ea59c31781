"""`patchbay store` on a real store."""

from __future__ import annotations

import hashlib
import json
import re
import time
from contextlib import closing
from pathlib import Path

import pytest
from tests.service.commands.conftest import Cli
from tests.service.commands.test_compress import error_of, report_of

from patchbay.store import FileBlobs, Hub, SqliteCatalog
from patchbay.store.audit import Entry
from patchbay.store.resumable import Resumable
from patchbay_server.commands.store import DAY_S
from patchbay_server.jobs.redis import RedisQueue
from patchbay_server.jobs.sqlite import SqliteQueue

T = "default"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with a delta, a blob of a job that waits, one that nobody needs, an upload, and one that ended."""
    folder = tmp_path / "store"
    hub = Hub(SqliteCatalog(folder / "catalog.db"), FileBlobs(folder / "blobs"), frozenset())
    with closing(hub), closing(SqliteQueue(folder / "jobs.db")) as queue:
        with hub.begin_upload(100) as upload:
            upload.write(b"delta")
            upload.finish()
            hub.commit(upload, T, "math", "{}")
        for content in (b"waits", b"left over"):
            temp = hub.blobs.new_temp()
            temp.write_bytes(content)
            hub.blobs.put(temp, digest_of(content))
        for name in (b"under way", b"expired"):
            Resumable(hub).begin(T, digest_of(name), 9)
            with Resumable(hub).open(T, digest_of(name))[1] as partial:
                partial.write(name[:4])
                partial.sync()
        hub.catalog.uploads.end(T, digest_of(b"expired"))
        queue.submit(T, "compression", {"files": {"config.json": digest_of(b"waits")}})
    return folder


def test_what_nobody_needs_is_removed(cli: Cli, place: Path) -> None:
    expected = [{"digest": digest_of(b"left over"), "size": 9}]
    planned = report_of(cli, "store", "gc", "--store", place, "--dry-run")
    uploads = {"count": 1, "bytes": 4}
    counts = {"bytes": 9, "uploads": uploads, "kept": 1, "audit": 0}
    assert planned == {"dry_run": True, "removed": expected, **counts}
    done = cli("store", "gc", "--store", str(place))
    assert done.exit_code == 0 and done.stdout.splitlines() == [
        "removed: 1 blobs that nothing needs, 9 bytes",
        "removed: 1 expired uploads, 4 bytes",
        "kept: 1 blobs of no version, which a job, an upload, a saved merge or a request under way may need",
    ]
    assert report_of(cli, "store", "gc", "--store", place)["removed"] == []
    with closing(FileBlobs(place / "blobs")) as blobs:
        assert blobs.digests() == {digest_of(b"delta"), digest_of(b"waits")}
        assert {path.name for path in blobs.uploads.glob("*/*.offset")} == {f"{digest_of(b'under way')[7:]}.offset"}


def test_the_oldest_of_the_audit_log_is_forgotten(cli: Cli, place: Path) -> None:
    with closing(SqliteCatalog(place / "catalog.db")) as catalog:
        for days in (400, 300, 2):
            catalog.audit.append(Entry(time.time() - days * DAY_S, T, "a-key", "POST /v1/deltas", f"{days} old", "201"))

    def about() -> list[str]:
        with closing(SqliteCatalog(place / "catalog.db")) as catalog:
            return [entry.subject for entry in catalog.audit.list_entries()]

    options = "--store", place, "--keep-audit", "365"
    assert report_of(cli, "store", "gc", *options, "--dry-run")["audit"] == 1
    assert about() == ["400 old", "300 old", "2 old"]
    assert "removed: 1 entries of the audit log" in cli("store", "gc", *map(str, options)).stdout
    assert about()[:2] == ["300 old", "2 old"] and re.fullmatch("1 entries from before 20.*", about()[2])
    assert report_of(cli, "store", "gc", "--store", place)["audit"] == 0 and len(about()) == 3


def test_what_jobs_in_redis_read_stays(cli: Cli, tmp_path: Path, redis_database: str) -> None:
    options = "--store", tmp_path, "--store-url", redis_database
    with closing(FileBlobs(tmp_path / "blobs")) as blobs, closing(RedisQueue(redis_database)) as queue:
        temp = blobs.new_temp()
        temp.write_bytes(b"waits")
        blobs.put(temp, digest_of(b"waits"))
        job, _ = queue.submit(T, "compression", {"files": {"config.json": digest_of(b"waits")}})
        assert report_of(cli, "store", "gc", *options)["removed"] == []
        queue.cancel(T, job.id)
        assert report_of(cli, "store", "gc", *options)["removed"] == [{"digest": digest_of(b"waits"), "size": 5}]


def test_a_whole_store_has_no_problem(cli: Cli, place: Path) -> None:
    found = report_of(cli, "store", "fsck", "--store", place)
    assert found == {"ok": True, "versions": 1, "blobs": 1, "problems": [], "nameless": 2}
    assert cli("store", "fsck", "--store", str(place)).stdout.splitlines() == [
        "checked: 1 versions of deltas in 1 blobs, 0 problems",
        "not checked: 2 other blobs; `patchbay store gc` removes those of them that nothing needs",
    ]


def test_a_damaged_store_is_told_and_fails(cli: Cli, place: Path) -> None:
    name = digest_of(b"delta").removeprefix("sha256:")
    (place / "blobs" / "sha256" / name[:2] / name).write_bytes(b"atled")
    done = cli("store", "fsck", "--store", str(place))
    assert done.exit_code == 1 and "default/math@1: the blob" in done.stdout
    (problem,) = json.loads(cli("store", "fsck", "--store", place, "--json").stdout)["problems"]
    assert (problem["kind"], problem["name"], problem["version"]) == ("damaged", "math", 1)


@pytest.mark.parametrize("command", ["gc", "fsck"])
def test_a_store_that_is_not_there_is_not_made(cli: Cli, tmp_path: Path, command: str) -> None:
    assert "there is no store" in error_of(cli, "store", command, "--store", tmp_path / "none")["message"]
    assert not (tmp_path / "none").exists()
