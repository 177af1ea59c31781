from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.jobs.clocks import Clock

from patchbay_server.jobs.base import JobQueue
from patchbay_server.jobs.sqlite import SqliteQueue


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[JobQueue]:
    with closing(SqliteQueue(tmp_path / "jobs.db", clock)) as queue:
        yield queue
