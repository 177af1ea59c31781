"""The two stores whose promises hold at every kill: all of it in files, or all of it in one Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from patchbay.store import Hub
from patchbay_server.jobs.base import JobQueue
from patchbay_server.jobs.opened import open_queue
from patchbay_server.settings import Settings
from patchbay_server.stores.opened import open_store


@contextmanager
def opened(folder: Path, redis_url: str) -> Iterator[tuple[Hub, JobQueue]]:
    """What a server with this store folder opens; with `redis_url` only the cache of blobs is in the folder."""
    url = redis_url or None
    settings = Settings(base="-", store=folder, store_url=url, blob_url=url)
    with closing(open_store(settings)) as hub, closing(open_queue(settings)) as queue:
        yield hub, queue
