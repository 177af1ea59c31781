"""Stores for more than one host, and the choice of a store by URL."""

from __future__ import annotations

from patchbay_server.stores.redis import RedisCatalog
from patchbay_server.stores.urls import open_blobs, open_catalog

__all__ = ["RedisCatalog", "open_blobs", "open_catalog"]
