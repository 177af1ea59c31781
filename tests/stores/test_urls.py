from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from patchbay.errors import StoreUnavailable
from patchbay.store import FileBlobs, SqliteCatalog
from patchbay_server.stores import open_blobs, open_catalog
from patchbay_server.stores.remembered import RememberedCatalog
from patchbay_server.stores.remote import RemoteBlobs


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
        assert isinstance(catalog, RememberedCatalog)
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


@pytest.fixture
def cache(tmp_path: Path) -> tuple[Path, int, int]:
    return tmp_path / "blob-cache", 1 << 20, 1 << 20


def test_blobs_in_a_folder(tmp_path: Path, cache: tuple[Path, int, int]) -> None:
    with closing(open_blobs((tmp_path / "a b").as_uri(), *cache)) as blobs:
        assert isinstance(blobs, FileBlobs)
    assert (tmp_path / "a b" / "sha256").is_dir() and not cache[0].exists()


def test_blobs_in_redis(redis_url: str, cache: tuple[Path, int, int]) -> None:
    with closing(open_blobs(redis_url, *cache)) as blobs:
        assert isinstance(blobs, RemoteBlobs)
        assert f"sha256:{'0' * 64}" not in blobs.digests()


def test_blobs_in_object_storage(new_bucket: Callable[[], str], cache: tuple[Path, int, int]) -> None:
    with closing(open_blobs(new_bucket(), *cache)) as blobs:
        assert isinstance(blobs, RemoteBlobs)
        assert blobs.digests() == set()


@pytest.mark.parametrize("url", ["", "file:", "file://", "file:///", "file://host/x", "ftp://x/y", "s3", "s3:/x", "/a"])
def test_other_blob_urls_are_refused_with_those_that_work(url: str, cache: tuple[Path, int, int]) -> None:
    with pytest.raises(StoreUnavailable, match="names no blob store: use file:///absolute/folder"):
        open_blobs(url, *cache)


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///x", "az://container", "s3://[::1", "redis://h:p/0", "redis://h/0?no=1"]
)
def test_broken_blob_urls_are_refused(url: str, cache: tuple[Path, int, int]) -> None:
    with pytest.raises(StoreUnavailable):
        open_blobs(url, *cache)


@pytest.mark.parametrize(
    "url", ["s3://key:hunter2@bucket/x", "s3://bucket/x?secret=hunter2", "ftp://me:hunter2@host/x"]
)
def test_credentials_are_refused_in_urls_of_blobs_and_not_repeated(url: str, cache: tuple[Path, int, int]) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        open_blobs(url, *cache)
    assert "hunter2" not in str(refused.value)


def test_passwords_stay_out_of_messages() -> None:
    for url in ("mysql://me:hunter2@host/db", "redis://me:hunter2@host:port/0", "mysql://me:hunter2@[::1"):
        with pytest.raises(StoreUnavailable) as refused:
            open_catalog(url)
        assert "hunter2" not in str(refused.value)
