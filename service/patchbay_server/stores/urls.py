"""From one URL to the store it names. Knows no settings."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from patchbay.errors import StoreUnavailable
from patchbay.store import BlobStore, Catalog, FileBlobs, SqliteCatalog
from patchbay_server.stores.cache import BlobCache
from patchbay_server.stores.redis import RedisCatalog
from patchbay_server.stores.redis_blobs import RedisObjects
from patchbay_server.stores.remembered import RememberedCatalog
from patchbay_server.stores.remote import Objects, RemoteBlobs

OBJECT_STORES = ("s3", "gs", "az")


def open_catalog(url: str) -> Catalog:
    """`sqlite:///relative/path.db`, `sqlite:////absolute/path.db`, `redis://...` or `rediss://...` (TLS).

    Raises StoreUnavailable for any other URL, and if the store cannot be opened.
    """
    scheme, separator, rest = url.partition("://")
    if scheme in ("redis", "rediss") and separator:
        return RememberedCatalog(RedisCatalog(url))
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return SqliteCatalog(Path(unquote(rest[1:])))
    raise StoreUnavailable(
        f"{_without_password(url)!r} names no catalog: use sqlite:///relative/path.db, sqlite:////absolute/path.db, "
        "redis://host:port/0 or rediss://host:port/0"
    )


def open_blobs(url: str, cache: Path, cache_bytes: int, redis_bytes: int) -> BlobStore:
    """`file:///absolute/folder`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
    `redis://...` or `rediss://...` (TLS).

    All but files keep up to `cache_bytes` of what was read in the folder `cache`; Redis takes `redis_bytes` altogether.
    Raises StoreUnavailable for any other URL, and if the store cannot be opened.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "file" and rest.startswith("/") and len(rest) > 1:
        return FileBlobs(Path(unquote(rest)))
    if scheme in ("redis", "rediss", *OBJECT_STORES) and separator:
        objects = _open_objects(url, scheme, redis_bytes)
        try:
            return RemoteBlobs(objects, BlobCache(cache, cache_bytes))
        except BaseException:
            objects.close()
            raise
    raise StoreUnavailable(
        f"{_without_password(url)!r} names no blob store: use file:///absolute/folder, s3://bucket/prefix, "
        "gs://bucket/prefix, az://container/prefix, redis://host:port/0 or rediss://host:port/0"
    )


def _open_objects(url: str, scheme: str, redis_bytes: int) -> Objects:
    if scheme not in OBJECT_STORES:
        return RedisObjects(url, redis_bytes)
    if url != _without_password(url):
        raise StoreUnavailable(
            f"the URL {_without_password(url)!r} was given more than a place: credentials and options go into the "
            "environment"
        )
    try:
        from patchbay_server.stores.object_storage import ObjectStorage  # noqa: PLC0415 - comes with an extra
    except ModuleNotFoundError as error:
        raise StoreUnavailable(f"{scheme}:// needs obstore: pip install 'patchbay[objects]'") from error
    return ObjectStorage(url)


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the URL"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
