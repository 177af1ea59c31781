"""Two replicas as a user starts them, on a real Ray: `make test-ray`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Timer

import httpx2
import pytest
from tests import pico
from tests.e2e.processes import announced, ended, start, start_server
from tests.long import ray
from tests.service.serving import ok
from tests.waiting import until

pytestmark = ray
NAMES = tuple(f"d{number}" for number in range(6))
TEXT = {"prompt": "the cat", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
KEY = "k" * 20


def replicas() -> set[int]:
    """Process ids of all that run on this machine."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return {int(pid) for pid in re.findall(r"^\s*(\d+) ray::ServeReplica:\w+:Replica", found, re.MULTILINE)}


def count(client: httpx2.Client, name: str, **labels: str) -> float:
    series = re.findall(rf"^{name}({{.*}})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for found, value in series if all(each in found for each in wanted))


def complete(client: httpx2.Client, model: str) -> httpx2.Response:
    return client.post("/v1/completions", json={"model": model, **TEXT})


@pytest.fixture(scope="module")
def files(
    llama: Path, finetune_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("deltas")
    made = {}
    for seed, name in enumerate(NAMES, 1):
        file = folder / f"{name}.safetensors"
        made[name] = pico.delta_file(llama, finetune_folder("llama", seed), file, density=0.3).read_bytes()
    return made


def upload(client: httpx2.Client, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        ok(client.post("/v1/deltas", params={"name": name}, content=data), 201)


def test_one_of_two_replicas_is_killed_and_nobody_notices(llama: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    with ended(start_server(llama, tmp_path / "store", "--port", "0", "--replicas", "2", "--workers", "0")) as process:
        with httpx2.Client(base_url=announced(process)[3], timeout=120) as client:
            upload(client, files)
            answers = {name: ok(complete(client, name))["choices"] for name in NAMES}
            before = replicas()
            assert len(before) == 2 and count(client, "patchbay_replicas") == 2
            assert count(client, "patchbay_delta_cache_misses_total") == len(NAMES), "each by one replica"
            timer = Timer(0.3, lambda: os.kill(min(before), signal.SIGKILL))
            timer.start()
            with ThreadPoolExecutor(4) as pool:
                for name, answer in zip(
                    NAMES * 50, pool.map(lambda name: complete(client, name), NAMES * 50), strict=True
                ):
                    assert ok(answer)["choices"] == answers[name]
            assert count(client, "patchbay_routed_total", outcome="hit") > 0.9 * 50 * len(NAMES)
            until(lambda: len(replicas() - {min(before)}) == 2 and count(client, "patchbay_replicas") == 2)
        process.terminate()
        assert process.wait(120) == 0
        until(lambda: not replicas())


def test_why_replicas_do_not_start_is_said(
    llama: Path, model_folder: Callable[..., Path], tmp_path: Path, files: dict[str, bytes]
) -> None:
    store = tmp_path / "store"
    with ended(start_server(llama, store, "--port", "0", "--workers", "0")) as process:
        client = httpx2.Client(base_url=announced(process)[3], timeout=60)
        upload(client, dict([next(iter(files.items()))]))
        client.close()
    other = model_folder("llama", seed=5)
    with ended(start_server(other, store, "--port", "0", "--replicas", "2", "--workers", "0")) as process:
        _, said = process.communicate(timeout=300)
        assert (
            process.returncode == 1
            and "no replica could be started: the store holds 'd0', a delta of another base" in said
        )


@contextmanager
def on_ray(base: Path, store: Path, **settings: str) -> Iterator[httpx2.Client]:
    """`deploy/ray_serve.py`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings |= {"PATCHBAY_BASE": str(base), "PATCHBAY_STORE": str(store), "PATCHBAY_API_KEY": KEY}
    with ended(start(str(Path(__file__).with_name("on_ray.py")), str(port), **settings)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        url, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {KEY}"}
        with httpx2.Client(base_url=url, headers=headers, timeout=120) as client:
            yield client
        process.communicate(timeout=120)


@pytest.fixture
def cluster(llama: Path, tmp_path: Path) -> Iterator[httpx2.Client]:
    with on_ray(llama, tmp_path / "store") as client:
        yield client


def test_the_same_behind_serves_own_proxy(cluster: httpx2.Client, files: dict[str, bytes]) -> None:
    upload(cluster, files)
    for _ in range(3):
        answers = {name: ok(complete(cluster, name)) for name in NAMES}
    assert answers["d0"]["patchbay"]["deltas"][0]["name"] == "d0"
    assert count(cluster, "patchbay_routed_total", outcome="hit") == 2 * len(NAMES)
    with cluster.stream("POST", "/v1/completions", json={"model": "base", **TEXT, "stream": True}) as stream:
        assert len([line for line in stream.iter_lines() if line]) > 4
    answer = cluster.get("/v1/models", headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert cluster.get("/v1/models", headers={"authorization": "Bearer no"}).status_code == 401
    assert cluster.get("/readyz", headers={"authorization": ""}).status_code == 200


def test_replicas_come_while_requests_wait(llama: Path, tmp_path: Path) -> None:
    """One of them runs one request at a time, and four wait for each other."""
    enough = Event()

    def ask_on(client: httpx2.Client) -> int:
        count = 0
        while not enough.is_set():
            ok(complete(client, "base"))
            count += 1
        return count

    with on_ray(llama, tmp_path / "store", PATCHBAY_MAX_RUNNING="1") as client, ThreadPoolExecutor(4) as pool:
        assert len(replicas()) == 1
        asked = [pool.submit(ask_on, client) for _ in range(4)]
        try:
            until(lambda: len(replicas()) == 2 and count(client, "patchbay_replicas") == 2)
        finally:
            enough.set()
        assert all(one.result() > 0 for one in asked)
