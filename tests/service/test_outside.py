"""Where the stores are is told to the operator, and to nobody who asks."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.service.logged import logged
from tests.service.serving import assert_error, serving
from tests.service.tenants import OPERATOR
from tests.store.redis_server import RestartableRedis, free_port

from patchbay.backbone import Backbone
from patchbay.errors import StoreFull, StoreUnavailable
from patchbay.store import SqliteCatalog
from patchbay.store.base import disk_errors
from patchbay.store.refusals import being_removed
from patchbay_server.errors import error_of
from patchbay_server.jobs.redis import RedisQueue
from patchbay_server.stores import RedisCatalog
from patchbay_server.stores.redis_blobs import RedisObjects

DIGEST = f"sha256:{'a' * 64}"


def test_a_catalog_in_redis_that_is_away(backbone: Callable[[str], Backbone], tmp_path: Path) -> None:
    redis = RestartableRedis([])
    redis.start()
    catalog = RedisCatalog(redis.url)
    with serving(backbone("vit"), tmp_path, catalog, api_key=OPERATOR) as served, logged() as log:
        redis.kill()
        key = {"authorization": f"Bearer {OPERATOR}"}
        stranger = {"authorization": f"Bearer pb_{'0' * 16}_{'x' * 43}"}
        answers = [served.get("/v1/deltas", headers=headers) for headers in (key, stranger)]
    for answer in answers:
        message = assert_error(answer, 503, "store_unavailable")
        assert message.startswith("the catalog does not answer as it should: ask again")
        assert answer.headers["retry-after"] == "1"
        told = [line["message"] for line in log.lines if line.get("request_id") == answer.headers["x-request-id"]]
        port = redis.url.rpartition(":")[2].removesuffix("/0")
        assert any(f"Redis at 127.0.0.1:{port} does not answer" in line for line in told)
        assert not any("/v1/deltas" in line for line in told), "paths have names in them"


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (RedisCatalog, "the catalog"),
        (RedisQueue, "the queue of jobs"),
        (lambda url: RedisObjects(url, 9), "the blob store"),
    ],
)
def test_each_part_in_redis_is_called_by_its_name(make: Callable[[str], object], part: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        make(f"redis://127.0.0.1:{free_port()}/0")
    assert caught.value.outside.startswith(f"{part} does not answer") and "127" not in caught.value.outside


def test_an_embedded_catalog_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(StoreUnavailable, match=re.escape(str(tmp_path))) as caught:
        SqliteCatalog(tmp_path / "catalog.db")
    assert caught.value.outside.startswith("the catalog does not") and str(tmp_path) not in caught.value.outside
    for number, code in ((errno.ENOSPC, "store_full"), (errno.EIO, "store_unavailable")):
        with (
            pytest.raises((StoreFull, StoreUnavailable), match="/secret/folder") as failed,
            disk_errors(Path("/secret/folder")),
        ):
            raise OSError(number, "broken")
        shown = error_of(failed.value)  # what a job shows
        assert shown["code"] == code and "secret" not in shown["message"]


def test_what_says_nothing_of_a_place_is_said_to_all() -> None:
    error = being_removed(DIGEST)
    assert error.outside == error.message and DIGEST in error.message
