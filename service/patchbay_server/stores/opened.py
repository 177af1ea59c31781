"""The store that settings name, for servers and for commands that look after it. Knows no base and no engine."""

from __future__ import annotations

from patchbay.store import Hub
from patchbay_server.settings import Settings
from patchbay_server.stores.urls import open_blobs, open_catalog


def open_store(settings: Settings, reserved: frozenset[str] = frozenset()) -> Hub:
    """Nothing may be stored under `reserved` names. Raises StoreUnavailable."""
    cache = settings.store / "blob-cache"
    blobs = open_blobs(settings.blobs_url, cache, settings.blob_cache_bytes, settings.redis_blob_bytes)
    try:
        return Hub(open_catalog(settings.catalog_url), blobs, reserved)
    except BaseException:
        blobs.close()
        raise
