from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.store.backends import KINDS, Store, new_store
from tests.store.redis_server import redis_url

from patchbay.store import Catalog

__all__ = ["redis_url"]

SMALL_DISK_BYTES = 1 << 20


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> str | None:
    """The URL of the real server, started only for the catalog that wants it."""
    return request.getfixturevalue("redis_url") if kind == "redis" else None


@pytest.fixture
def store(kind: str, server: str | None) -> Iterator[Store]:
    with new_store(kind, server) as store:
        yield store


@pytest.fixture
def catalog(store: Store) -> Catalog:
    return store()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in which no file can grow past 1 MiB: a tiny disk for root, else a limit on file sizes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES},nr_inodes=64", "tmpfs", str(folder)]
    if os.geteuid() == 0 and shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield folder
        finally:
            # Lazy: a test that failed may still hold a file open.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_DISK_BYTES, before[1]))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
