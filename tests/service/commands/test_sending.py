"""`push` and `compress --server` over lines that break, through a proxy that breaks them and servers that die."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests.service.commands.conftest import Cli
from tests.service.commands.test_remote import Serve, as_json, backbone, error_of, serve
from tests.stores.faulty import Fault, Proxy, faulty
from tests.waiting import until

from patchbay.compress.compress import Options, compress
from patchbay_server.commands import sending
from patchbay_server.commands.client import Client
from patchbay_server.commands.failures import ServerUnreachable
from patchbay_server.commands.sending import hash_file, send_file

__all__ = ["backbone", "serve"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files go in parts, too, and nobody waits for long."""
    monkeypatch.setattr(sending, "RESUMABLE_BYTES", 1000)
    monkeypatch.setattr(sending, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(sending, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(sending, "CHUNK", 4096)


@pytest.fixture
def proxy(serve: Serve) -> Iterator[Proxy]:
    with faulty(serve()) as proxy:
        yield proxy


@pytest.fixture
def url(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"http://127.0.0.1:{proxy.port}"
    monkeypatch.setenv("PATCHBAY_URL", url)
    return url


def test_a_large_delta_is_sent_once_and_named_as_often_as_wanted(cli: Cli, url: str, proxy: Proxy, delta: Path) -> None:
    first = as_json(cli, "push", delta, "--name", "math")
    assert first["created"] and first["digest"] == hash_file(delta)
    proxy.inject(Fault("reset", "up", after=4000))  # the bytes could not get through any more
    assert as_json(cli, "push", delta, "--name", "math") == first | {"created": False}
    staged = as_json(cli, "push", delta, "--name", "other", "--no-activate")
    assert staged["created"] and not staged["current"]
    assert error_of(cli, "push", delta, "--name", "Not A Name")[:2] == (2, "invalid_name")
    assert error_of(cli, "push", delta, "--name", "base")[:2] == (2, "invalid_name")


@pytest.fixture(scope="module")
def foreign_delta(model_folder: Callable[..., Path], tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("foreign") / "tuned.safetensors"
    compress(model_folder("bert_classifier", seed=7), tuned, out, Options("magnitude", density=0.1))
    return out


def test_a_delta_of_another_base_is_not_sent(cli: Cli, url: str, proxy: Proxy, foreign_delta: Path) -> None:
    proxy.inject(Fault("reset", "up", after=1000))  # it could not get through
    code, kind, message = error_of(cli, "push", foreign_delta, "--name", "math")
    assert (code, kind) == (2, "wrong_base")
    assert str(foreign_delta) in message and "nothing was sent; push it to a server of its base" in message


def test_what_is_no_delta_is_not_sent(cli: Cli, url: str, proxy: Proxy, tmp_path: Path) -> None:
    proxy.inject(Fault("reset", "up", after=0))
    file = tmp_path / "x.safetensors"
    file.write_bytes(bytes(5000))
    assert error_of(cli, "push", file, "--name", "math")[:2] == (2, "malformed_delta")


def test_a_key_that_may_only_write_is_enough(
    cli: Cli, serve: Serve, delta: Path, foreign_delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(api_key="the-operators-own-key")
    made = cli("keys", "create", "--tenant", "acme", "--scope", "write", "--store", tmp_path / "store", "--json")
    monkeypatch.setenv("PATCHBAY_API_KEY", json.loads(made.stdout)["key"])
    assert as_json(cli, "push", delta, "--name", "math")["created"]
    assert error_of(cli, "push", foreign_delta, "--name", "math")[:2] == (2, "wrong_base")


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_a_line_that_breaks_again_and_again(cli: Cli, url: str, proxy: Proxy, delta: Path, kind: str) -> None:
    proxy.inject(Fault(kind, "up", after=12_000, times=3))  # type: ignore[arg-type]
    assert as_json(cli, "push", delta, "--name", "math")["created"]
    assert proxy.hits >= 2  # what came before a connection was closed need not come again


def test_an_answer_that_is_lost(cli: Cli, url: str, proxy: Proxy, delta: Path, serve: Serve) -> None:
    """The bytes came whole, and nobody heard of it."""
    digest, sent = hash_file(delta), []
    with Client(url) as client:
        proxy.inject(Fault("reset", after=400, times=1))  # the answer to the first request has fewer bytes
        send_file(client, delta, digest, sent.append)
        assert proxy.hits == 1 and sent[-1] == delta.stat().st_size
        assert client.number("HEAD", f"/v1/uploads/{digest}", "Upload-Offset") == delta.stat().st_size


def test_after_a_break_it_goes_on_from_what_the_server_has(url: str, delta: Path) -> None:
    broken: list[int] = []

    def break_off(count: int) -> None:
        if len(broken) < 3 and count > max(broken, default=0) + 5000:
            broken.append(count)
            time.sleep(0.05)  # it may take what was sent
            raise ServerUnreachable("the line broke")

    digest = hash_file(delta)
    with Client(url) as client:
        send_file(client, delta, digest, break_off)
        assert broken
        assert client.number("HEAD", f"/v1/uploads/{digest}", "Upload-Offset") == delta.stat().st_size


def test_another_run_goes_on_where_the_first_one_was_ended(cli: Cli, url: str, delta: Path) -> None:
    digest, size = hash_file(delta), delta.stat().st_size

    def end(count: int) -> None:
        if count > 8000:
            time.sleep(0.02)  # it may take what was sent
            raise KeyboardInterrupt

    with Client(url) as client:

        def ended_run() -> int:
            with pytest.raises(KeyboardInterrupt):
                send_file(client, delta, digest, end)
            return client.number("HEAD", f"/v1/uploads/{digest}", "Upload-Offset")

        until(lambda: ended_run() > 0)  # the server has to notice first
        heard: list[int] = []
        send_file(client, delta, digest, heard.append)
    assert 0 < heard[0] < size and heard == sorted(heard) and heard[-1] == size


def test_a_server_that_stays_away(cli: Cli, url: str, proxy: Proxy, delta: Path) -> None:
    proxy.inject(Fault("reset", "up", after=4000))
    result = cli("push", delta, "--name", "math", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["error"]["code"] == "server_unreachable"
    assert proxy.hits > sending.PATIENCE


def test_a_file_that_changes_meanwhile_is_refused(cli: Cli, url: str, delta: Path, tmp_path: Path) -> None:
    changing = tmp_path / "changing"
    changing.write_bytes(delta.read_bytes())
    digest = hash_file(changing)
    changing.write_bytes(delta.read_bytes()[:-1] + b"x")
    with Client(url) as client, pytest.raises(Exception, match="nothing was kept"):
        send_file(client, changing, digest, lambda count: None)


def test_an_upload_that_the_server_has_forgotten_is_begun_anew(url: str, delta: Path) -> None:
    digest, forgotten = hash_file(delta), []

    def forget(count: int) -> None:
        if not forgotten:
            forgotten.append(httpx2.delete(f"{url}/v1/uploads/{digest}").status_code)

    with Client(url) as client:
        send_file(client, delta, digest, forget)
        assert forgotten == [204]
        assert client.number("HEAD", f"/v1/uploads/{digest}", "Upload-Offset") == delta.stat().st_size
