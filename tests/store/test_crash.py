"""Nothing that was acknowledged is lost, and nothing half done is seen, wherever a process is killed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import patchbay
from patchbay.store import FileBlobs, Hub, SqliteCatalog

WORKER = Path(__file__).with_name("crash_worker.py")
LIBRARY = Path(patchbay.__file__).parent.parent
KILLS = 20

Acknowledged = tuple[str, int, str]  # name, version, digest


def start(root: Path, seed: int, lines: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(root), str(seed), str(lines)]
    environment = os.environ | {"PYTHONPATH": str(LIBRARY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def parse(line: str) -> Acknowledged:
    name, version, digest = line.split()
    return name, int(version), digest


def check(root: Path, acknowledged: list[Acknowledged]) -> None:
    with closing(Hub(SqliteCatalog(root / "catalog.db"), FileBlobs(root / "blobs"), frozenset())) as hub:
        for name, version, digest in acknowledged:
            assert hub.catalog.get_delta("default", name, version).digest == digest
        assert hub.catalog.live_digests() <= hub.blobs.digests()
        for digest in hub.blobs.digests():
            content = hub.open_blob(digest).read_bytes()
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
        for record in hub.catalog.list_deltas("default"):
            versions = [version.version for version in hub.catalog.list_versions("default", record.name)]
            assert record.current and versions == list(range(1, len(versions) + 1))
        # What the killed process was writing is gone: only this process's own folder is there.
        [own] = [path for path in (root / "blobs" / "tmp").iterdir() if path.is_dir()]
        assert [path.name for path in own.iterdir()] == [".lock"]


def test_killed_between_any_two_lines_of_the_store(tmp_path: Path) -> None:
    source = random.Random(20)
    acknowledged: list[Acknowledged] = []
    for kill in range(KILLS):
        # Opening takes some 130 lines, an upload 50 and its commit 120: kills fall into all of them, up to the fifth.
        process = start(tmp_path, seed=kill, lines=source.randrange(1, 1000))
        output, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        acknowledged += map(parse, output.splitlines())
        check(tmp_path, acknowledged)
    assert len(acknowledged) > KILLS


@pytest.mark.parametrize("seed", range(3))
def test_killed_from_outside_at_any_moment(tmp_path: Path, seed: int) -> None:
    """The same without tracing, so that the kill can hit a system call."""
    acknowledged: list[Acknowledged] = []
    with start(tmp_path, 1000 + seed, lines=0) as process:
        assert process.stdout is not None
        for _ in range(random.Random(seed).randrange(5, 40)):
            acknowledged.append(parse(process.stdout.readline()))
        process.kill()
        # Lines that were written before the kill were acknowledged too.
        acknowledged += map(parse, process.stdout.read().splitlines())
    check(tmp_path, acknowledged)
