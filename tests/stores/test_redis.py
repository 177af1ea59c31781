"""What only the Redis catalog can meet: policies, memory limits, permissions, lost servers."""

from __future__ import annotations

import re
import select
import socket
import socketserver
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis
from tests.store.redis_server import running_redis

from patchbay.errors import NotFound, StoreFull, StoreUnavailable
from patchbay_server.stores import RedisCatalog, open_catalog
from patchbay_server.stores import redis as redis_catalog

T = "default"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@pytest.fixture
def own_server() -> Iterator[str]:
    """A server of this test's own, to be reconfigured and stopped."""
    with running_redis() as url:
        yield url


def admin(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru"])
def test_a_server_that_evicts_is_refused(own_server: str, policy: str) -> None:
    with admin(own_server) as client:
        client.config_set("maxmemory-policy", policy)
        with pytest.raises(StoreUnavailable, match=f"maxmemory-policy {policy}.*set `maxmemory-policy noeviction`"):
            RedisCatalog(own_server)
        client.config_set("maxmemory-policy", "noeviction")
        RedisCatalog(own_server).close()


@pytest.mark.parametrize(("policy", "refused"), [("allkeys-lru", True), ("noeviction", False)])
def test_where_config_is_forbidden_info_tells_the_policy(own_server: str, policy: str, refused: bool) -> None:
    with admin(own_server) as client:
        client.config_set("maxmemory-policy", policy)
        client.acl_setuser(
            "app", enabled=True, passwords=["+secret"], keys="*", categories=["+@all"], commands=["-config"]
        )
    url = own_server.replace("redis://", "redis://app:secret@")
    if not refused:
        RedisCatalog(url).close()
        return
    with pytest.raises(StoreUnavailable, match="maxmemory-policy allkeys-lru"):
        RedisCatalog(url)


def test_where_no_one_tells_the_policy_the_server_is_refused(own_server: str) -> None:
    with admin(own_server) as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+secret"], keys="*", categories=["+@all"], commands=["-config", "-info"]
        )
    with pytest.raises(StoreUnavailable):
        RedisCatalog(own_server.replace("redis://", "redis://app:secret@"))


def test_a_wrong_password_is_unavailable_and_not_repeated_in_the_message(redis_url: str) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        RedisCatalog(redis_url.replace("redis://", "redis://someone:hunter2@"))
    assert "hunter2" not in str(refused.value)


def test_a_newer_schema_is_refused(redis_url: str) -> None:
    prefix = uuid.uuid4().hex
    RedisCatalog(redis_url, prefix).close()
    with admin(redis_url) as client:
        client.set(f"{{{prefix}}}:schema", redis_catalog.SCHEMA + 1)
        with pytest.raises(StoreUnavailable, match="has schema 2 and this Patchbay knows 1: upgrade Patchbay"):
            RedisCatalog(redis_url, prefix)
        client.set(f"{{{prefix}}}:schema", "nonsense")
        with pytest.raises(StoreUnavailable, match="has schema nonsense"):
            RedisCatalog(redis_url, prefix)


def test_every_key_carries_the_hash_tag(own_server: str) -> None:
    with closing(RedisCatalog(own_server, "mine")) as catalog, admin(own_server) as client:
        catalog.add_version(T, "math", digest(1), 1, "{}")
        catalog.add_version(T, "math", digest(2), 1, "{}")
        catalog.save_merge(T, "mix", "{}")
        catalog.delete_delta(T, "math", 1)
        keys = set(client.keys())
    of_tenant = {f"{kind}:{T}" for kind in ("deltas", "versions", "deleted", "merges")}
    kinds = {"schema", "digests", "tombstones"} | of_tenant
    assert keys == {f"{{mine}}:{kind}" for kind in kinds}


def test_prefixes_keep_catalogs_apart(redis_url: str) -> None:
    one, two = uuid.uuid4().hex, uuid.uuid4().hex
    with closing(RedisCatalog(redis_url, one)) as mine, closing(RedisCatalog(redis_url, two)) as other:
        mine.add_version(T, "math", digest(1), 1, "{}")
        assert other.list_deltas(T) == [] and other.live_digests() == set()


def test_deleted_versions_stay_as_tombstones(redis_url: str) -> None:
    prefix = uuid.uuid4().hex
    with closing(RedisCatalog(redis_url, prefix)) as catalog, admin(redis_url) as client:
        catalog.add_version(T, "math", digest(1), 1, "{}")
        catalog.delete_delta(T, "math")
        assert client.hexists(f"{{{prefix}}}:versions:{T}", "math@1")
        deleted_at = client.hget(f"{{{prefix}}}:deleted:{T}", "math@1")
        assert isinstance(deleted_at, str) and float(deleted_at) > 1.7e9


def test_scripts_survive_that_the_server_forgets_them(redis_url: str) -> None:
    with closing(RedisCatalog(redis_url, uuid.uuid4().hex)) as catalog, admin(redis_url) as client:
        catalog.add_version(T, "math", digest(1), 1, "{}")
        client.script_flush()
        assert catalog.add_version(T, "math", digest(2), 1, "{}")[0].version == 2


def test_connections_that_the_server_closed_are_replaced(own_server: str) -> None:
    with closing(RedisCatalog(own_server)) as catalog, admin(own_server) as client:
        client.client_kill_filter(_type="normal", skipme=True)
        catalog.add_version(T, "math", digest(1), 1, "{}")


def test_a_full_server_refuses_whole_changes_and_still_deletes(own_server: str) -> None:
    with closing(RedisCatalog(own_server)) as catalog, admin(own_server) as client:
        catalog.add_version(T, "math", digest(1), 1, "{}")
        catalog.add_version(T, "math", digest(2), 1, "{}")
        before = catalog.list_versions(T, "math")
        client.config_set("maxmemory", 1)
        for change in (
            lambda: catalog.add_version(T, "math", digest(3), 1, "{}"),
            lambda: catalog.add_version(T, "new", digest(3), 1, "{}"),
            lambda: catalog.set_current(T, "math", 1),
            lambda: catalog.save_merge(T, "mix", "{}"),
        ):
            with pytest.raises(StoreFull, match="is at its maxmemory"):
                change()
        assert catalog.list_deltas(T) == [before[1]] and catalog.list_versions(T, "math") == before
        assert catalog.live_digests() == {digest(1), digest(2)} and catalog.list_merges(T) == []
        RedisCatalog(own_server).close()
        catalog.delete_delta(T, "math")
        assert catalog.live_digests() == set()
        client.config_set("maxmemory", 0)
        assert catalog.add_version(T, "math", digest(3), 1, "{}")[0].version == 3


def test_a_lost_server_is_unavailable_and_comes_back() -> None:
    with running_redis() as url:
        catalog = RedisCatalog(url)
        catalog.add_version(T, "math", digest(1), 1, "{}")
    port = re.search(r":(\d+)/", url)
    assert port is not None
    with pytest.raises(StoreUnavailable, match=f"Redis at 127.0.0.1:{port[1]} does not answer"):
        catalog.ping()
    for change in (
        lambda: catalog.add_version(T, "math", digest(2), 1, "{}"),
        lambda: catalog.get_delta(T, "math"),
        lambda: catalog.list_deltas(T),
        lambda: catalog.delete_merge(T, "mix"),
    ):
        with pytest.raises(StoreUnavailable):
            change()
    with running_redis(port=int(port[1])):
        catalog.ping()
        with pytest.raises(NotFound):
            catalog.get_delta(T, "math")
    catalog.close()


class LosesAnswers(socketserver.BaseRequestHandler):
    """Passes everything on, except that the answer after `lose` was set is dropped together with the connection."""

    server_port: int
    lose: threading.Event

    def handle(self) -> None:
        client: socket.socket = self.request
        with socket.create_connection(("127.0.0.1", self.server_port)) as server:
            while True:
                readable, _, _ = select.select([client, server], [], [])
                for source in readable:
                    data = source.recv(65536)
                    if not data or (source is server and self.lose.is_set()):
                        self.lose.clear()
                        return
                    (client if source is server else server).sendall(data)


@contextmanager
def losing_answers(url: str) -> Iterator[tuple[str, threading.Event]]:
    class Here(LosesAnswers):
        server_port = int(url.rpartition(":")[2].removesuffix("/0"))
        lose = threading.Event()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Here) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{proxy.server_address[1]}/0", Here.lose
        finally:
            proxy.shutdown()
            thread.join()


def test_a_lost_answer_is_unavailable_and_the_change_is_not_repeated(redis_url: str) -> None:
    """A repeated compare-and-set would find its own work and report a conflict that there was not."""
    with losing_answers(redis_url) as (url, lose), closing(RedisCatalog(url, uuid.uuid4().hex)) as catalog:
        for i in range(2):
            catalog.add_version(T, "math", digest(i), 1, "{}")
        catalog.set_current(T, "math", 2, expected=2)
        real = catalog._set_current

        def lost(*args: Any, **options: Any) -> Any:
            lose.set()
            return real(*args, **options)

        catalog._set_current = lost  # type: ignore[assignment]
        with pytest.raises(StoreUnavailable, match="does not answer"):
            catalog.set_current(T, "math", 1, expected=2)
        assert catalog.get_delta(T, "math").version == 1


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with running_redis() as url:
        pass
    with pytest.raises(StoreUnavailable, match="does not answer"):
        open_catalog(url)


def test_acknowledged_versions_survive_a_kill(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("redis"))
    with running_redis("--dir", folder, "--appendfsync", "always") as url, closing(RedisCatalog(url)) as catalog:
        records = [catalog.add_version(T, "math", digest(i), 1, "{}")[0] for i in range(50)]
    with running_redis("--dir", folder) as url, closing(RedisCatalog(url)) as catalog:
        assert [record.digest for record in catalog.list_versions(T, "math")] == [record.digest for record in records]
        assert catalog.get_delta(T, "math") == records[-1]
