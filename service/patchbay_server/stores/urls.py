"""From one URL to the store it names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from patchbay.errors import StoreUnavailable
from patchbay.store import Catalog, SqliteCatalog
from patchbay_server.stores.redis import RedisCatalog


def open_catalog(url: str) -> Catalog:
    """`sqlite:///relative/path.db`, `sqlite:////absolute/path.db`, `redis://...` or `rediss://...` (TLS).

    Raises StoreUnavailable for any other URL, and if the store cannot be opened.
    """
    scheme, separator, rest = url.partition("://")
    if scheme in ("redis", "rediss") and separator:
        return RedisCatalog(url)
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return SqliteCatalog(Path(unquote(rest[1:])))
    raise StoreUnavailable(
        f"{_without_password(url)!r} names no catalog: use sqlite:///relative/path.db, sqlite:////absolute/path.db, "
        "redis://host:port/0 or rediss://host:port/0"
    )


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the URL"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
