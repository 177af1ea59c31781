"""`push`, `ls`, `show` and `rm` against the real app on a real port."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tests.service.commands.conftest import Cli

from patchbay.backbone import Backbone
from patchbay_server.app import create_app
from patchbay_server.connections import Connection
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.server import open_engine, open_hub
from patchbay_server.settings import Settings

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0
KEY = "0123456789abcdef-key"


@contextmanager
def running(settings: Settings, backbone: Backbone, port: int = 0) -> Iterator[str]:
    hub = open_hub(settings, backbone.name)
    queue = SqliteQueue(settings.jobs_path)
    app = create_app(settings, open_engine(settings, backbone, hub), hub, queue)
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, ws="none", log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not server.started:
                assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            app.state.stopping.set()
            server.should_exit = True
            thread.join()
            queue.close()
            hub.close()


@pytest.fixture(scope="module")
def backbone(base: Path) -> Backbone:
    return Backbone.load(base, device="cpu")


Serve = Callable[..., str]


@pytest.fixture
def serve(cli: Cli, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(api_key=...)`: a server with an empty store; commands speak to it through PATCHBAY_URL."""
    contexts = []

    def start(**options: Any) -> str:
        settings = Settings(base=str(backbone.folder), store=tmp_path / "store", **options)
        context = running(settings, backbone)
        url = context.__enter__()
        contexts.append(context)
        monkeypatch.setenv("PATCHBAY_URL", url)
        return url

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def as_json(cli: Cli, *args: object) -> dict[str, Any]:
    result = cli(*args, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    body: dict[str, Any] = json.loads(result.stdout)
    return body


def error_of(cli: Cli, *args: object) -> tuple[int, str, str]:
    result = cli(*args, "--json")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")
    error = json.loads(result.stdout)["error"]
    return result.exit_code, error["code"], error["message"]


def test_the_life_of_a_name(cli: Cli, serve: Serve, delta: Path, exact_delta: Path) -> None:
    serve()
    assert as_json(cli, "ls") == {"data": []}
    first = as_json(cli, "push", delta, "--name", "math")
    assert first["created"] and (first["name"], first["version"], first["current"]) == ("math", 1, True)
    assert first["size"] == delta.stat().st_size
    again = as_json(cli, "push", delta, "--name", "math")
    assert again == first | {"created": False}
    staged = as_json(cli, "push", exact_delta, "--name", "math", "--no-activate")
    assert (staged["version"], staged["current"]) == (2, False)
    assert [r["version"] for r in as_json(cli, "ls")["data"]] == [1]
    assert [r["version"] for r in as_json(cli, "show", "math")["versions"]] == [1, 2]
    assert as_json(cli, "show", "math@2")["digest"] == staged["digest"]
    assert [r["version"] for r in as_json(cli, "rm", "math@2")["deleted"]] == [2]
    assert [r["version"] for r in as_json(cli, "rm", "math", "--yes")["deleted"]] == [1]
    assert as_json(cli, "ls") == {"data": []}


def test_what_people_read(cli: Cli, serve: Serve, delta: Path, exact_delta: Path) -> None:
    serve()
    assert "patchbay push" in cli("ls").stdout
    digest = as_json(cli, "push", delta, "--name", "math")["digest"]
    assert cli("push", delta, "--name", "math").stdout == f"math@1 was already on the server (current), {digest}\n"
    staged = cli("push", exact_delta, "--name", "math", "--no-activate").stdout
    assert staged.startswith("math@2 is now on the server (staged, not current), sha256:")
    header, row = cli("ls").stdout.splitlines()
    assert header.split()[:4] == ["name", "version", "state", "size"]
    assert row.split()[:4] == ["math", "1", "current", f"{delta.stat().st_size:,}"]
    shown = cli("show", "math").stdout
    assert "math@1 (current)" in shown and digest in shown and "cat, dog, owl" in shown and "not current" in shown
    assert cli("rm", "math").stdout == "deleted math@1, math@2\n"


def test_refused_by_the_server(cli: Cli, serve: Serve, delta: Path, tmp_path: Path) -> None:
    serve(max_upload_bytes=1 << 20)
    code, kind, message = error_of(cli, "show", "math")
    assert (code, kind) == (2, "not_found") and "'math'" in message
    assert error_of(cli, "rm", "math@3")[:2] == (2, "not_found")
    assert error_of(cli, "push", delta, "--name", "Not A Name")[:2] == (2, "invalid_name")
    pickle, large = tmp_path / "model.pt", tmp_path / "large.safetensors"
    pickle.write_bytes(b"PK\x03\x04" + bytes(100))
    assert error_of(cli, "push", pickle, "--name", "math")[:2] == (2, "unsupported_file")
    with large.open("wb") as file:
        file.truncate(64 << 20)
    assert error_of(cli, "push", large, "--name", "math")[:2] == (2, "malformed_delta")
    with large.open("wb") as file:
        file.truncate(15 << 20)
    # Answered before the body was read: the answer has to arrive all the same.
    assert error_of(cli, "push", large, "--name", "math")[:2] == (2, "delta_too_large")
    assert as_json(cli, "ls") == {"data": []}


def test_the_key(cli: Cli, serve: Serve, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(api_key=KEY)
    code, kind, message = error_of(cli, "ls")
    assert (code, kind) == (2, "unauthorized") and "PATCHBAY_API_KEY" in message
    monkeypatch.setenv("PATCHBAY_API_KEY", "a-wrong-key-of-enough-length")
    code, kind, message = error_of(cli, "push", delta, "--name", "math")
    assert (code, kind) == (2, "unauthorized") and "wrong-key" not in message
    monkeypatch.setenv("PATCHBAY_API_KEY", KEY)
    assert as_json(cli, "push", delta, "--name", "math")["created"]
    monkeypatch.setenv("PATCHBAY_API_KEY", "line\nbreak")
    assert error_of(cli, "ls")[:2] == (2, "invalid_input")


@pytest.mark.parametrize("name", ["../models", "..", "a/b", "a@b", "a@0", "a@", "@1", "a?b", ""])
def test_names_stay_below_deltas(cli: Cli, name: str) -> None:
    for command in ("show", "rm"):
        assert error_of(cli, command, name, "--url", "http://127.0.0.1:1")[:2] == (2, "invalid_name")


@pytest.mark.parametrize("url", ["localhost:8321", "ftp://localhost", "http://", "http://h:port", ""])
def test_no_url(cli: Cli, url: str) -> None:
    code, kind, message = error_of(cli, "ls", "--url", url)
    assert (code, kind) == (2, "invalid_input") and "http://127.0.0.1:8321" in message


def test_another_kind_of_server(cli: Cli, serve: Serve) -> None:
    url = serve()
    code, kind, message = error_of(cli, "ls", "--url", f"{url}/nowhere")
    assert code == 2 and "there is no route GET /nowhere/v1/deltas" in message
    with strange_server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as strange:
        assert error_of(cli, "ls", "--url", strange)[:2] == (2, "unexpected_answer")
    with strange_server(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as strange:
        assert error_of(cli, "ls", "--url", strange)[:2] == (1, "unexpected_answer")
    with strange_server(b"SSH-2.0-OpenSSH\r\n") as strange:
        assert error_of(cli, "ls", "--url", strange)[:2] == (1, "server_unreachable")


def test_a_password_in_the_url_is_not_shown(cli: Cli) -> None:
    _, _, message = error_of(cli, "ls", "--url", "http://me:hunter2@127.0.0.1:1")
    assert "127.0.0.1:1" in message and "hunter2" not in message


def test_rm_asks_on_a_terminal(cli: Cli, serve: Serve, delta: Path) -> None:
    serve()
    as_json(cli, "push", delta, "--name", "math")
    assert on_terminal("rm", "math", answer="n\n") == (1, "")
    assert as_json(cli, "show", "math")["version"] == 1
    assert on_terminal("rm", "math", answer="y\n") == (0, "deleted math@1\n")
    assert as_json(cli, "ls") == {"data": []}


def on_terminal(*args: str, answer: str) -> tuple[int, str]:
    """A real process with a terminal as its stdin."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(ROOT / "service")])}
        done = subprocess.run(
            [sys.executable, "-c", "from patchbay_server.cli import main; main()", *args],
            stdin=theirs,
            capture_output=True,
            text=True,
            env=os.environ | environment,
            timeout=DEADLINE_S,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Delete math and all its versions?" in done.stderr and "Traceback" not in done.stderr
    return done.returncode, done.stdout


@contextmanager
def strange_server(answer: bytes) -> Iterator[str]:
    """Answers one connection with these bytes: what may stand at a URL that is not ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
