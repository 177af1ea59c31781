"""`jobs` and a compression on a server, over a real port: followed through broken connections, ended as at home."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx2
import pytest
from tests.jobs.searching import search
from tests.service.commands.conftest import Cli
from tests.service.commands.test_remote import running

from patchbay.backbone import Backbone
from patchbay.checkpoint import Checkpoint
from patchbay_server.commands.failures import ServerError, ServerUnreachable, explain
from patchbay_server.commands.follow import JobClient
from patchbay_server.commands.remote_compress import compress_remotely
from patchbay_server.jobs.base import State
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.jobs.wiring import open_handlers
from patchbay_server.jobs.worker import Worker
from patchbay_server.settings import Settings

SPEC = {"request": {"name": "quadratic"}, "seed": 3, "budget": 40, "work": 20_000}
T = "default"


@pytest.fixture(scope="module")
def backbone(base: Path) -> Backbone:
    return Backbone.load(base, device="cpu")


@pytest.fixture
def settings(cli: Cli, backbone: Backbone, tmp_path: Path) -> Settings:
    return Settings(base=str(backbone.folder), store=tmp_path / "store")


@pytest.fixture
def url(settings: Settings, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with running(settings, backbone) as url:
        monkeypatch.setenv("PATCHBAY_URL", url)
        yield url


@pytest.fixture
def queue(settings: Settings) -> Iterator[SqliteQueue]:
    with closing(SqliteQueue(settings.jobs_path)) as queue:
        yield queue


@contextmanager
def working(settings: Settings) -> Iterator[None]:
    """A worker of the server, in a thread."""
    handlers = {**open_handlers(settings), "search": search}
    with closing(SqliteQueue(settings.jobs_path)) as queue:
        worker = Worker(queue, "ann", lambda: handlers)
        thread = threading.Thread(target=worker.run_forever)
        thread.start()
        try:
            yield
        finally:
            worker.stop()
            thread.join()


def test_broken_connections_lose_and_repeat_nothing(url: str, settings: Settings, queue: SqliteQueue) -> None:
    job, _ = queue.submit(T, "search", SPEC)
    seen: list[tuple[int, str]] = []
    connections = 0
    with working(settings), httpx2.Client(base_url=url, timeout=60) as client:
        while not queue.get(T, job.id).state.is_final or len(seen) < len(queue.events(job.id, 0)):
            headers = {"Last-Event-ID": str(seen[-1][0] if seen else 0)}
            with client.stream("GET", f"/v1/jobs/{job.id}/events", headers=headers) as response:
                connections += 1
                for event in httpx2.EventSource(response):
                    seen.append((int(event.id), event.data))
                    if len(seen) % 2:
                        break  # in the middle of the stream
    assert connections > 2
    assert seen == [(event.number, json.dumps(event.data)) for event in queue.events(job.id, 0)]


def test_following_survives_the_server(
    settings: Settings, backbone: Backbone, queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first stream is cut by the server's end; the second is of a new server at the same address."""
    job, _ = queue.submit(T, "search", SPEC)
    with ExitStack() as first, ExitStack() as second:
        url = first.enter_context(running(settings, backbone))
        client = second.enter_context(JobClient(url))
        numbers = []
        for event in client.follow(job.id):
            numbers.append(event.number)
            if event.number == 1:
                port = httpx2.URL(url).port
                first.close()
                second.enter_context(running(settings, backbone, port=port or 0))
                second.enter_context(working(settings))
        assert event.is_last and event.data["state"] == "done"
    assert numbers == [event.number for event in queue.events(job.id, 0)]


def test_a_server_that_stays_away_is_given_up(queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay_server.commands.follow.PATIENCE", 2)
    with JobClient("http://127.0.0.1:9") as client, pytest.raises(ServerUnreachable):
        list(client.follow("job"))


def test_a_job_that_is_not_there_is_not_waited_for(url: str) -> None:
    with JobClient(url) as client, pytest.raises(ServerError, match="no job"):
        list(client.follow("job"))


def test_compressed_on_the_server(cli: Cli, url: str, settings: Settings, tuned: Path, queue: SqliteQueue) -> None:
    with working(settings):
        report = compress_remotely(url, str(tuned), "math", {"density": 0.3})
        assert report.path == f"math@1 on {url}"
        assert (report.density, report.original_bytes) == (0.3, Checkpoint.open(tuned).num_bytes)
        blobs = set((settings.store / "blobs" / "sha256").rglob("*"))
        staged = compress_remotely(url, str(tuned), "math", {"density": 0.1}, activate=False)
        assert staged.path.startswith("math@2")
        assert len(set((settings.store / "blobs" / "sha256").glob("*/*")) - blobs) == 1  # the delta alone
    newest, oldest = queue.list_jobs(T, 9)
    assert [job.spec["request"]["activate"] for job in (newest, oldest)] == [False, True]
    shown = cli("jobs", "show", oldest.id).stdout
    assert f"{report.ratio:.1f} times smaller" in shown and "divergence" not in shown


@pytest.mark.parametrize(
    ("options", "code", "exit_code"),
    [({"density": 7.0}, "invalid_recipe", 2), ({"color": "red"}, "invalid_request", 2)],
)
def test_what_the_server_refuses(url: str, tuned: Path, options: dict[str, object], code: str, exit_code: int) -> None:
    with pytest.raises(ServerError) as refused:
        compress_remotely(url, str(tuned), "math", options)
    assert (explain(refused.value).code, explain(refused.value).exit_code) == (code, exit_code)


def test_a_job_that_fails_ends_like_the_command(
    url: str, settings: Settings, finetune_folder: Callable[..., Path]
) -> None:
    with working(settings), pytest.raises(ServerError) as failed:
        compress_remotely(url, str(finetune_folder("vit")), "math", {})
    assert (explain(failed.value).code, explain(failed.value).exit_code) == ("finetune_mismatch", 2)


def test_a_job_that_is_cancelled_meanwhile(url: str, tuned: Path, queue: SqliteQueue) -> None:
    def cancel() -> None:
        while not (jobs := queue.list_jobs(T, 1)):
            pass
        queue.cancel(T, jobs[0].id)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(ServerError, match="was cancelled") as ended:
        compress_remotely(url, str(tuned), "math", {})
    thread.join()
    assert explain(ended.value).exit_code == 1


def test_jobs_on_the_command_line(cli: Cli, url: str, settings: Settings, queue: SqliteQueue) -> None:
    assert "no jobs yet" in cli("jobs", "ls").stdout
    job, _ = queue.submit(T, "search", SPEC | {"work": 0})
    waiting, _ = queue.submit(T, "dream", SPEC)
    assert Worker(queue, "ann", lambda: {"search": search}).run_one()
    header, *rows = cli("jobs", "ls", "--server", url).stdout.splitlines()
    assert header.split()[:4] == ["id", "kind", "name", "state"]
    assert [row.split()[:4] for row in rows] == [
        [waiting.id, "dream", "quadratic", "queued"],
        [job.id, "search", "quadratic", "done"],
    ]
    assert json.loads(cli("jobs", "ls", "--json").stdout)["data"][1]["id"] == job.id
    assert "evaluation" in cli("jobs", "show", job.id).stdout
    assert json.loads(cli("jobs", "show", job.id, "--json").stdout)["progress"]["evaluation"] == 40
    assert json.loads(cli("jobs", "cancel", waiting.id, "--json").stdout)["state"] == "cancelled"
    assert queue.get(T, waiting.id).state is State.CANCELLED
    assert "ended before" in cli("jobs", "cancel", job.id).stderr
    assert queue.get(T, job.id).state is State.DONE


@pytest.mark.parametrize("job", ["nope", "../deltas", "a/b", "\u0662"])
def test_no_such_job(cli: Cli, url: str, job: str) -> None:
    result = cli("jobs", "show", job, "--json")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout)["error"]["code"] == "not_found"
