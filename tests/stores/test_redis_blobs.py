"""What only blobs in Redis can meet: the cap, a full server, uploads that die half-way."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from tests.store.redis_server import running_redis

from patchbay.errors import StoreFull, StoreUnavailable
from patchbay_server.stores import redis_blobs
from patchbay_server.stores.redis_blobs import RedisObjects
from patchbay_server.stores.remote import CHUNK_BYTES

FIRST, SECOND = (f"sha256:{letter * 64}" for letter in "ab")


@pytest.fixture
def own_server() -> Iterator[str]:
    with running_redis("--save", "") as url:
        yield url


@pytest.fixture
def file(tmp_path: Path) -> Callable[[int], Path]:
    def make(size: int) -> Path:
        path = tmp_path / str(size)
        path.write_bytes(b"x" * size)
        return path

    return make


def keys(client: redis.Redis) -> list[bytes]:
    found: list[bytes] = client.keys()  # type: ignore[assignment]
    return found


def test_all_blobs_together_keep_the_cap(redis_url: str, file: Callable[[int], Path]) -> None:
    with closing(RedisObjects(redis_url, 1000, uuid.uuid4().hex)) as objects:
        objects.write(FIRST, file(600))
        with pytest.raises(
            StoreFull, match="1000 bytes together, and 401 more do not fit: raise PATCHBAY_REDIS_BLOB_BY"
        ):
            objects.write(SECOND, file(401))
        objects.write(SECOND, file(400))
        objects.remove(FIRST)
        objects.write(FIRST, file(600))
        assert objects.digests() == {FIRST, SECOND}


def test_every_key_carries_the_hash_tag_and_goes_with_its_blob(own_server: str, file: Callable[[int], Path]) -> None:
    with closing(RedisObjects(own_server, 1 << 30, "mine")) as objects, redis.Redis.from_url(own_server) as client:
        objects.write(FIRST, file(CHUNK_BYTES + 1))
        found = keys(client)
        assert len(found) == 3 and all(key.startswith(b"{mine}:") for key in found)
        assert {client.ttl(key) for key in found} == {-1}, "none of them expires"
        objects.remove(FIRST)
        assert keys(client) == []


def test_an_upload_that_dies_is_not_seen_and_expires(own_server: str, file: Callable[[int], Path]) -> None:
    with closing(RedisObjects(own_server, 1 << 30)) as objects, redis.Redis.from_url(own_server) as client:
        objects._write_chunks("dead", file(CHUNK_BYTES + 1))
        assert objects.size(FIRST) is None and objects.digests() == set()
        assert all(0 < client.ttl(key) <= redis_blobs.UNNAMED_S for key in keys(client))


def test_a_chunk_that_was_lost_on_the_way_names_nothing(
    redis_url: str, file: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = uuid.uuid4().hex
    with closing(RedisObjects(redis_url, 1 << 30, prefix)) as objects, redis.Redis.from_url(redis_url) as client:
        real = objects._write_chunks

        def losing(at: str, file: Path) -> int:
            number = real(at, file)
            client.delete(f"{{{prefix}}}:chunk:{at}:0")
            return number

        monkeypatch.setattr(objects, "_write_chunks", losing)
        with pytest.raises(StoreUnavailable, match="did not come to Redis at .* as a whole: send it again"):
            objects.write(FIRST, file(10))
        assert objects.size(FIRST) is None


def test_a_chunk_that_is_gone_is_unavailable(own_server: str, file: Callable[[int], Path]) -> None:
    with closing(RedisObjects(own_server, 1 << 30)) as objects, redis.Redis.from_url(own_server) as client:
        objects.write(FIRST, file(10))
        [chunk] = [key for key in keys(client) if b":chunk:" in key]
        client.delete(chunk)
        with pytest.raises(StoreUnavailable, match="chunk 0 of sha256:a+ is not at Redis"):
            list(objects.read(FIRST, 10))


def test_who_comes_second_with_the_same_bytes_leaves_no_chunks(own_server: str, file: Callable[[int], Path]) -> None:
    with closing(RedisObjects(own_server, 1 << 30)) as objects, redis.Redis.from_url(own_server) as client:
        for _ in range(2):
            objects.write(FIRST, file(10))
        assert len(keys(client)) == 2
        assert b"".join(objects.read(FIRST, 10)) == b"x" * 10


def test_a_full_server_is_store_full_and_still_deletes(own_server: str, file: Callable[[int], Path]) -> None:
    with closing(RedisObjects(own_server, 1 << 30)) as objects, redis.Redis.from_url(own_server) as client:
        objects.write(FIRST, file(10))
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreFull, match="is at its maxmemory"):
            objects.write(SECOND, file(10))
        assert objects.digests() == {FIRST} and b"".join(objects.read(FIRST, 10)) == b"x" * 10
        objects.remove(FIRST)
        assert objects.digests() == set()


def test_a_server_that_evicts_is_refused(own_server: str) -> None:
    with redis.Redis.from_url(own_server) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreUnavailable, match="maxmemory-policy allkeys-lru"):
        RedisObjects(own_server, 1 << 30)
