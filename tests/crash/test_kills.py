"""SIGKILL at any moment, of who changes a store and of the Redis that keeps it.

No acknowledged change is lost, no name points at a blob that is not there, and the store is whole: after every kill,
with two processes that publish, delete, collect and work on jobs at the same time. `make test-long` kills 200 times.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.crash.ledger import Ledger
from tests.crash.stores import opened
from tests.e2e.processes import ENVIRONMENT, ended
from tests.long import LONG
from tests.store.redis_server import RestartableRedis
from tests.waiting import until

PROGRAM = Path(__file__).with_name("operations.py")
ROOT = Path(__file__).parents[2]
TENANTS = ("ann", "bob")
KILLS = 200 if LONG else 4
LINES = 100
"""Of their logs: so long the two processes live at the most. At the least for none, and die as they open the store."""
Start = Callable[[str, int, str, Path, Path], int]


@contextmanager
def forking(redis_url: str) -> Iterator[Start]:
    """Starts one more process: seed, round, tenant, folder, log -> its id."""
    paths = {"PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), redis_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | paths,
    )
    with ended(process):
        orders, answers = process.stdin, process.stdout
        assert orders is not None and answers is not None and answers.readline() == "ready\n"

        def start(seed: str, turn: int, tenant: str, folder: Path, log: Path) -> int:
            orders.write(f"{seed} {turn} {tenant} {folder} {log}\n")
            orders.flush()
            return int(answers.readline())

        yield start


def kill_all(processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for process in processes:
        while Path(f"/proc/{process}").exists():
            time.sleep(0.001)


def run_until_killed(
    start: Start,
    source: random.Random,
    turn: int,
    folders: dict[str, Path],
    logs: dict[str, Path],
    kill_first: Callable[[], None],
) -> None:
    """Two processes, for a while that is counted in what they do; `kill_first` is what dies before them."""
    wanted = source.randrange(LINES)
    processes = [start(str(source.random()), turn, tenant, folders[tenant], logs[tenant]) for tenant in TENANTS]
    source.shuffle(processes)
    try:
        until(lambda: sum(map(num_lines, logs.values())) >= wanted)
        time.sleep(source.uniform(0, 0.01))
        kill_first()
        kill_all(processes[:1])
        time.sleep(source.uniform(0, 0.03))
    finally:
        kill_all(processes)


def num_lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def read_logs(ledger: Ledger, logs: dict[str, Path]) -> None:
    for tenant, log in logs.items():
        ledger.read(tenant, log)


def report(kind: str, ledger: Ledger, started: float) -> None:
    """Shown with -s."""
    done = ", ".join(f"{count} {change}" for change, count in sorted(ledger.acknowledged.items()))
    spent = time.monotonic() - started
    total = ledger.acknowledged.total()
    print(f"\n{kind}: {KILLS} kills in {spent:.0f} s, {total} acknowledged: {done}; {ledger.removed} blobs collected")


def test_sqlite_and_files(tmp_path: Path) -> None:
    source, ledger, started = random.Random(1), Ledger(), time.monotonic()
    store = tmp_path / "store"
    store.mkdir()
    with forking("") as start:
        for number in range(KILLS):
            logs = {tenant: tmp_path / f"{number}-{tenant}.log" for tenant in TENANTS}
            run_until_killed(start, source, number, dict.fromkeys(TENANTS, store), logs, lambda: None)
            read_logs(ledger, logs)
            with opened(store, "") as (hub, queue):
                ledger.check(hub, queue, TENANTS)
            check_files(store)
    report("SQLite", ledger, started)
    assert_all_happened(ledger)


def check_files(store: Path) -> None:
    """The databases are whole, and what the dead were writing went when the store was opened."""
    for name in ("catalog.db", "jobs.db"):
        with closing(sqlite3.connect(store / name)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert not [path for path in (store / "blobs" / "tmp").iterdir() if path.is_dir()]


def test_redis_with_its_log_always_synced(tmp_path: Path) -> None:
    """Every second time it is the redis-server that dies, and is started again on what it has written."""
    source, ledger, started = random.Random(2), Ledger(), time.monotonic()
    (tmp_path / "redis").mkdir()
    redis = RestartableRedis(["--dir", str(tmp_path / "redis"), "--appendfsync", "always"])
    redis.start()
    folders = {tenant: tmp_path / tenant for tenant in TENANTS}
    for folder in folders.values():
        folder.mkdir()
    try:
        with forking(redis.url) as start:
            for number in range(KILLS):
                is_servers_turn = number % 2 == 1
                logs = {tenant: tmp_path / f"{number}-{tenant}.log" for tenant in TENANTS}
                run_until_killed(start, source, number, folders, logs, redis.kill if is_servers_turn else lambda: None)
                if is_servers_turn:
                    redis.start()
                read_logs(ledger, logs)
                # With an empty cache: blobs are to be read from Redis.
                empty = tmp_path / f"{number}-cache"
                empty.mkdir()
                with opened(empty, redis.url) as (hub, queue):
                    ledger.check(hub, queue, TENANTS)
    finally:
        redis.kill()
    report("Redis", ledger, started)
    assert_all_happened(ledger)


def assert_all_happened(ledger: Ledger) -> None:
    """A run in which nothing is deleted or nobody works would prove little."""
    wanted = {"publish", "claim"}
    if LONG:
        wanted |= {"choose", "delete", "bring", "leave", "collect"}
        wanted |= {"submit", "evaluate", "finish", "retry", "release", "cancel"}
        assert ledger.removed > KILLS // 4
    assert wanted <= set(ledger.acknowledged) and ledger.acknowledged.total() > 5 * KILLS
