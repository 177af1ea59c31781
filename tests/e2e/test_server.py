"""The server as a process: real sockets, real signals, a real disk that fills up."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests import pico
from tests.e2e.processes import announced, ended, forking, start_server
from tests.long import LONG
from tests.service.serving import assert_error, edited, ok

KILLS = 20 if LONG else 8
NAMES = ("math", "code", "law")
DISK_BYTES = 1 << 20
JSON = {"content-type": "application/json"}
IMAGE = {"array": [[[0.1] * pico.IMAGE] * pico.IMAGE] * 3}


@pytest.fixture(scope="module")
def base(model_folder: Callable[..., Path]) -> Path:
    return model_folder("vit")


@pytest.fixture(scope="module")
def deltas(
    base: Path, finetune_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("deltas")
    made = {}
    for seed, name in enumerate(("math", "code"), 1):
        file = folder / f"{name}.safetensors"
        made[name] = pico.delta_file(base, finetune_folder("vit", seed), file, density=0.3).read_bytes()
    return made


@pytest.fixture(scope="module")
def variants(deltas: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """Valid deltas without end, no two alike."""
    file = tmp_path_factory.mktemp("variants") / "math.safetensors"
    file.write_bytes(deltas["math"])

    def endless() -> Iterator[bytes]:
        for number in itertools.count():
            yield edited(file, lambda manifest, n=number: manifest["provenance"].update(finetuned=f"run {n}"))

    return endless()


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """One process for the tests that only talk to it; the last of them ends it."""
    with ended(start_server(base, tmp_path_factory.mktemp("store"), "--port", "0")) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: subprocess.Popen[str], base: Path) -> Iterator[httpx2.Client]:
    name, task, url = announced(server).groups()
    assert (name, task) == (base.name, "image-classification")
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def upload(client: httpx2.Client, name: str, content: object) -> httpx2.Response:
    return client.post("/v1/deltas", params={"name": name}, content=content)


def classify(client: httpx2.Client, model: str) -> httpx2.Response:
    return client.post("/v1/classify", json={"model": model, "input": IMAGE})


def test_it_listens_where_it_says(client: httpx2.Client) -> None:
    assert ok(client.get("/healthz")) == {"status": "ok"}
    assert ok(client.get("/readyz"))["status"] == "ready"


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Numbers to rounding: who else is in the batch decides about that."""
    for answer, wanted in zip(found.pop("data", []), expected.get("data", []), strict=True):
        assert answer.pop("probabilities") == pytest.approx(wanted["probabilities"], abs=1e-5)
        assert answer == {key: value for key, value in wanted.items() if key != "probabilities"}
    assert found == {key: value for key, value in expected.items() if key != "data"}


def test_a_thousand_mixed_requests_leave_the_base_as_it_was(client: httpx2.Client, deltas: dict[str, bytes]) -> None:
    for name, data in deltas.items():
        ok(upload(client, name, data), 201)
    ok(client.post("/v1/merges", json={"name": "both", "recipe": "linear(math, code)"}), 201)
    models = ["base", "math", "0.5*math", "math - code", "both", "nope", "math +", "1.5*code"]
    alone = {model: classify(client, model).json() for model in models}

    def request(number: int) -> None:
        kind = number % 10
        if kind < 8:
            same(classify(client, models[kind]).json(), alone[models[kind]])
        elif number % 20 == 8:
            assert upload(client, f"again-{number % 60}", deltas["code"]).status_code in (200, 201)
        elif number % 20 == 18:
            assert_error(upload(client, "broken", deltas["code"][:-1]), 422, "malformed_delta", "file")
        elif number % 20 == 9:
            assert_error(client.post("/v1/classify", content=b"{", headers=JSON), 422, "invalid_request")
        else:
            assert ok(client.post("/v1/base/verify"))["ok"] is True

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(request, range(1000)))
    assert ok(client.post("/v1/base/verify"))["ok"] is True
    for model in models:
        same(classify(client, model).json(), alone[model])


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(client: httpx2.Client) -> None:
    """Only the header goes over the wire: the answer does not wait for a gigabyte."""
    host, port = client.base_url.host, client.base_url.port
    assert port is not None
    with socket.create_connection((host, port), timeout=30) as connection:
        head = f"POST /v1/deltas?name=huge HTTP/1.1\r\nHost: {host}\r\nContent-Length: {1 << 40}\r\n\r\n"
        connection.sendall(head.encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
            if b"}}" in answer:
                break
    assert answer.startswith(b"HTTP/1.1 413") and b"delta_too_large" in answer


def test_a_port_that_is_taken(base: Path, client: httpx2.Client, tmp_path: Path) -> None:
    port = str(client.base_url.port)
    with ended(start_server(base, tmp_path, "--port", port)) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert said.strip().splitlines()[-1].startswith("error: cannot listen on 127.0.0.1:" + port)
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to(
    request: pytest.FixtureRequest, base: Path, tmp_path: Path, number: signal.Signals
) -> None:
    if number == signal.SIGTERM:
        process = request.getfixturevalue("server")
        request.getfixturevalue("client").close()
    else:
        process = start_server(base, tmp_path, "--port", "0")
    with ended(process):
        if number == signal.SIGINT:
            announced(process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "Traceback" not in said


def send_until_killed(client: httpx2.Client, files: Iterator[bytes], acknowledged: list[Any]) -> None:
    """Uploads piece by piece, so that a kill can fall between two of them."""
    try:
        while True:
            data, name = next(files), NAMES[len(acknowledged) % len(NAMES)]
            pieces = (data[i : i + 4096] for i in range(0, len(data), 4096))
            record = ok(upload(client, name, pieces), 201)
            acknowledged.append((record["name"], record["version"], record["digest"]))
    except httpx2.TransportError:
        return


def check_everything(client: httpx2.Client, store: Path, acknowledged: list[Any]) -> None:
    names = {record["name"] for record in ok(client.get("/v1/deltas"))["data"]}
    versions = {
        (name, v["version"]): v["digest"] for name in names for v in ok(client.get(f"/v1/deltas/{name}"))["versions"]
    }
    for name, version, digest in acknowledged:
        assert versions[name, version] == digest
    for name, version in versions:
        content = client.get(f"/v1/deltas/{name}@{version}/file").content
        assert versions[name, version] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    for name in names:
        ok(classify(client, name))
    for blob in (store / "blobs" / "sha256").glob("*/*"):
        assert blob.name == hashlib.sha256(blob.read_bytes()).hexdigest()
    # What the killed server was writing is gone: only the new one's own folder is there.
    [own] = [path for path in (store / "blobs" / "tmp").iterdir() if path.is_dir()]
    assert [path.name for path in own.iterdir()] == [".lock"]
    assert ok(client.post("/v1/base/verify"))["ok"] is True


def test_killed_again_and_again_it_loses_nothing_that_it_acknowledged(
    base: Path, variants: Iterator[bytes], tmp_path: Path
) -> None:
    source = random.Random(2)
    acknowledged: list[tuple[str, int, str]] = []
    with forking(base, tmp_path) as forker:
        for _ in range(KILLS):
            client = forker.start()
            check_everything(client, tmp_path, acknowledged)
            wanted = len(acknowledged) + source.randrange(3)
            sender = threading.Thread(target=send_until_killed, args=(client, variants, acknowledged))
            sender.start()
            while len(acknowledged) < wanted and sender.is_alive():
                sender.join(0.001)
            sender.join(source.random() * 0.04)  # anywhere in the next upload, check or commit
            forker.kill()
            sender.join()
        check_everything(forker.start(), tmp_path, acknowledged)
    assert len(acknowledged) > KILLS / 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("a small disk needs root and mount")
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_a_refusal_and_not_an_end(
    base: Path, deltas: dict[str, bytes], variants: Iterator[bytes], small_disk: Path
) -> None:
    with forking(base, small_disk) as forker:
        client = forker.start()
        ok(upload(client, "math", deltas["math"]), 201)
        alone = ok(classify(client, "math"))
        filler = small_disk / "filler"
        refused = 0
        for left in (20_000, 8_192, 0):  # less than the delta takes
            filler.unlink(missing_ok=True)
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(bytes(free - left))
            before = tree(small_disk)
            response = upload(client, "math", next(variants))
            assert_error(response, 507, "store_full", response.json()["error"]["param"])
            refused += 1
            assert tree(small_disk) == before
            assert ok(classify(client, "math")) == alone
            assert [record["version"] for record in ok(client.get("/v1/deltas"))["data"]] == [1]
        filler.unlink()
        assert ok(upload(client, "math", next(variants)), 201)["version"] == 2
        assert refused == 3


def tree(folder: Path) -> dict[str, int]:
    """Every file with its size, but for the catalog's own, which SQLite grows and shrinks as it likes."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("catalog.db")]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
