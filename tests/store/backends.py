"""The catalogs under test. A `Store` is one empty place; calling it opens one more catalog on that place."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fakeredis
import redis

from patchbay.store import Catalog, SqliteCatalog
from patchbay_server.stores import RedisCatalog

Store = Callable[[], Catalog]
KINDS = ["sqlite", "fakeredis", "redis"]


class _FakeRedis(fakeredis.FakeRedis):
    """fakeredis knows neither CONFIG nor INFO."""

    def config_get(self, *patterns: Any, **options: Any) -> Any:
        return {"maxmemory-policy": "noeviction"}


@contextmanager
def new_store(kind: str, redis_url: str | None) -> Iterator[Store]:
    with ExitStack() as opened:
        make = _maker(kind, redis_url, opened)

        def open_one() -> Catalog:
            catalog = make()
            opened.callback(catalog.close)
            return catalog

        yield open_one


def _maker(kind: str, redis_url: str | None, opened: ExitStack) -> Store:
    if kind == "sqlite":
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        return lambda: SqliteCatalog(folder / "catalog.db")
    if kind == "fakeredis":
        server = fakeredis.FakeServer()
        return lambda: RedisCatalog("redis://fake", client=fake_client(server))
    assert redis_url is not None
    prefix = uuid.uuid4().hex
    return lambda: RedisCatalog(redis_url, prefix)


def fake_client(server: fakeredis.FakeServer) -> redis.Redis:
    return _FakeRedis(server=server, decode_responses=True)
