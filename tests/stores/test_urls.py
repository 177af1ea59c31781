from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from patchbay.errors import StoreUnavailable
from patchbay.store import SqliteCatalog
from patchbay_server.stores import RedisCatalog, open_catalog


def test_an_absolute_sqlite_path_has_four_slashes(tmp_path: Path) -> None:
    with closing(open_catalog(f"sqlite:///{tmp_path}/a%20b.db")) as catalog:
        assert isinstance(catalog, SqliteCatalog)
    assert (tmp_path / "a b.db").is_file()


def test_a_relative_sqlite_path_has_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_catalog("sqlite:///data/catalog.db").close()
    assert (tmp_path / "data" / "catalog.db").is_file()


def test_redis(redis_url: str) -> None:
    with closing(open_catalog(redis_url)) as catalog:
        assert isinstance(catalog, RedisCatalog)
        catalog.ping()


@pytest.mark.parametrize(
    "url",
    ["", "sqlite:", "sqlite://", "sqlite:///", "sqlite://host/x.db", "postgres://x/y", "redis", "redis:/x", "/a.db"],
)
def test_other_urls_are_refused_with_those_that_work(url: str) -> None:
    with pytest.raises(StoreUnavailable, match="names no catalog: use sqlite:///relative/path.db"):
        open_catalog(url)


@pytest.mark.parametrize("url", ["redis://host:port/0", "redis://[::1", "rediss://h:99999999/0"])
def test_broken_redis_urls_are_refused(url: str) -> None:
    with pytest.raises(StoreUnavailable):
        open_catalog(url)


def test_passwords_stay_out_of_messages() -> None:
    for url in ("mysql://me:hunter2@host/db", "redis://me:hunter2@host:port/0", "mysql://me:hunter2@[::1"):
        with pytest.raises(StoreUnavailable) as refused:
            open_catalog(url)
        assert "hunter2" not in str(refused.value)
