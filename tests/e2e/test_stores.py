"""A real server on a real S3 server and a real redis-server."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests import pico
from tests.e2e.processes import Forker, forking
from tests.service.serving import assert_error, ok
from tests.store.redis_server import RestartableRedis
from tests.stores.moto_server import CREDENTIALS, make_bucket, s3_endpoint
from tests.waiting import until

__all__ = ["s3_endpoint"]

IMAGE = {"array": [[[0.1] * pico.IMAGE] * pico.IMAGE] * 3}


@pytest.fixture(scope="module")
def deltas(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder, base = tmp_path_factory.mktemp("deltas"), model_folder("vit")
    made = {}
    for seed, name in enumerate(("math", "code"), 1):
        file = folder / f"{name}.safetensors"
        made[name] = pico.delta_file(base, finetune_folder("vit", seed), file, density=0.3).read_bytes()
    return made


def upload(client: httpx2.Client, name: str, content: bytes) -> httpx2.Response:
    return client.post("/v1/deltas", params={"name": name}, content=content)


def classify(client: httpx2.Client, model: str) -> httpx2.Response:
    return client.post("/v1/classify", json={"model": model, "input": IMAGE})


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableRedis]:
    redis = RestartableRedis(["--dir", str(tmp_path_factory.mktemp("redis")), "--appendfsync", "always"])
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def forker(
    model_folder: Callable[..., Path], store: Path, s3_endpoint: str, redis: RestartableRedis
) -> Iterator[Forker]:
    """Servers on one catalog, one bucket and one folder for the cache."""
    stores = {"PATCHBAY_STORE_URL": redis.url, "PATCHBAY_BLOB_URL": make_bucket(s3_endpoint), "PATCHBAY_WORKERS": "0"}
    with forking(model_folder("vit"), store, **CREDENTIALS, AWS_ENDPOINT_URL=s3_endpoint, **stores) as forker:
        yield forker


def test_blobs_in_s3_are_served_after_a_restart_with_an_empty_cache(
    forker: Forker, deltas: dict[str, bytes], store: Path
) -> None:
    cache = store / "blob-cache" / "sha256"
    client = forker.start()
    for name, data in deltas.items():
        ok(upload(client, name, data), 201)
    before = ok(classify(client, "0.5*math + code"))["data"]
    digest = f"sha256:{hashlib.sha256(b'labels').hexdigest()}"
    assert client.put(f"/v1/blobs/{digest}", content=b"labels").status_code == 201
    assert len(list(cache.glob("*/*"))) == 3 and not (store / "blobs").exists()
    forker.kill()
    shutil.rmtree(cache.parent)
    client = forker.start()
    assert client.head(f"/v1/blobs/{digest}").headers["content-length"] == "6"
    assert not list(cache.glob("*/*")), "a blob's size is known without its bytes"
    assert ok(classify(client, "0.5*math + code"))["data"] == before
    assert {file.read_bytes() for file in cache.glob("*/*")} == set(deltas.values())
    for name, data in deltas.items():
        assert client.get(f"/v1/deltas/{name}/file").content == data
        assert upload(client, name, data).status_code == 200


def test_a_lost_catalog_stops_changes_and_not_what_is_resident(
    forker: Forker, deltas: dict[str, bytes], redis: RestartableRedis
) -> None:
    client = forker.start()
    before = ok(classify(client, "math"))
    redis.kill()
    for _ in range(10):
        assert ok(classify(client, "math")) == before
        for model in ("0.5*math", "math@1", "base"):
            ok(classify(client, model))
    for refused in (
        classify(client, "code"),
        upload(client, "law", deltas["code"]),
        client.put("/v1/deltas/math/current", json={"version": 1}),
        client.delete("/v1/deltas/math"),
        client.get("/v1/deltas"),
    ):
        assert_error(refused, 503, "store_unavailable")
        assert refused.headers["retry-after"] == "1"
    assert ok(classify(client, "math")) == before and client.get("/healthz").status_code == 200
    assert ok(client.get("/readyz"))["catalog"] == "away"
    redis.start()
    until(lambda: classify(client, "code").status_code == 200)
    assert ok(classify(client, "math")) == before and ok(client.get("/readyz"))["catalog"] == "answers"
    assert ok(upload(client, "math", deltas["code"]), 201)["version"] == 2
    assert ok(classify(client, "math"))["patchbay"]["deltas"][0]["version"] == 2
    ok(client.delete("/v1/deltas/math"))
    assert_error(classify(client, "math"), 404, "not_found", "model")
