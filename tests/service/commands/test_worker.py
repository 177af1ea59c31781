"""`patchbay worker`: a process beside the server."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from tests.e2e.processes import ended, start
from tests.service.commands.conftest import Cli
from tests.waiting import until

from patchbay_server.jobs.base import State
from patchbay_server.jobs.redis import RedisQueue
from patchbay_server.jobs.worker import NICE

DEADLINE_S = 60.0


@pytest.mark.parametrize(("number", "as_json"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_it_works_until_it_is_told_to_end(base: Path, tmp_path: Path, number: signal.Signals, as_json: bool) -> None:
    arguments = ["worker", "--base", str(base), "--store", str(tmp_path), *(["--json"] if as_json else [])]
    with ended(start("-m", "patchbay_server.cli", *arguments)) as process:
        deadline = time.monotonic() + DEADLINE_S
        while os.getpriority(os.PRIO_PROCESS, process.pid) < NICE:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    if as_json:
        assert (json.loads(out)["store"], said) == (str(tmp_path), "")
    else:
        assert (out, said) == ("", f"taking jobs from {tmp_path}; Ctrl-C ends it\n")
    assert (tmp_path / "jobs.db").exists()


def test_it_takes_jobs_from_redis_and_blobs_from_anywhere(base: Path, tmp_path: Path, redis_database: str) -> None:
    places = ["--store", str(tmp_path), "--store-url", redis_database, "--blob-url", redis_database]
    with (
        closing(RedisQueue(redis_database)) as queue,
        ended(start("-m", "patchbay_server.cli", "worker", "--base", str(base), *places)) as process,
    ):
        job, _ = queue.submit("default", "compression", {"request": {}})
        until(lambda: queue.get("default", job.id).state is State.RUNNING)
        process.kill()
        out, said = process.communicate(timeout=DEADLINE_S)
    port = redis_database.rpartition(":")[2].partition("/")[0]
    assert (out, said) == ("", f"taking jobs from Redis at 127.0.0.1:{port}; Ctrl-C ends it\n")
    assert not (tmp_path / "jobs.db").exists()


def test_the_servers_address_needs_no_key_here(cli: Cli, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["worker", "--base", base, "--store", tmp_path, "--jobs-db", tmp_path / "file" / "jobs.db", "--json"]
    result = cli(*arguments, env={"PATCHBAY_HOST": "0.0.0.0"})
    assert result.exit_code == 1 and "PATCHBAY_API_KEY" not in result.stderr
    assert json.loads(result.stdout)["error"]["code"] == "store_unavailable"
