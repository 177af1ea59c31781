"""The queue that settings name, for servers, workers and commands. Knows no base and no handlers."""

from __future__ import annotations

from urllib.parse import urlsplit

from patchbay_server.jobs.base import JobQueue
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.settings import Settings


def open_queue(settings: Settings) -> JobQueue:
    """In Redis where the catalog is, unless a file is named; else in a file. Raises StoreUnavailable."""
    if not _is_in_redis(settings):
        return SqliteQueue(settings.jobs_path)
    from patchbay_server.jobs.redis import RedisQueue  # noqa: PLC0415 - an idle worker on SQLite does without

    return RedisQueue(settings.catalog_url)


def queue_place(settings: Settings) -> str:
    """For people; without the password."""
    if not _is_in_redis(settings):
        return str(settings.store.resolve())
    parts = urlsplit(settings.catalog_url)
    return f"Redis at {parts.hostname}:{parts.port or 6379}"


def _is_in_redis(settings: Settings) -> bool:
    return settings.jobs_db is None and settings.catalog_url.startswith(("redis://", "rediss://"))
