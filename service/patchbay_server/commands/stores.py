"""The store of a server, for commands that work on it directly. Knows nothing of what they do there."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from patchbay.errors import InputError, NotFound

if TYPE_CHECKING:
    from patchbay.store import Catalog, Hub
    from patchbay_server.jobs.base import JobQueue


@contextmanager
def open_store(store: Path | None, store_url: str | None, *, make: bool = False) -> Iterator[Catalog]:
    """The catalog that a server with these options has. Raises StoreUnavailable; NotFound for an embedded one that no
    server has made yet, unless `make`.
    """
    from patchbay_server.settings import DEFAULT_STORE, catalog_url
    from patchbay_server.stores import open_catalog

    folder = store or DEFAULT_STORE
    if not (make or store_url or (folder / "catalog.db").is_file()):
        raise NotFound(f"there is no catalog in {folder}: name the server's store with --store or --store-url")
    with closing(open_catalog(catalog_url(folder, store_url))) as catalog:
        yield catalog


@contextmanager
def open_hub(
    store: Path | None, store_url: str | None, blob_url: str | None, jobs_db: Path | None, *, make: bool = False
) -> Iterator[tuple[Hub, JobQueue]]:
    """Catalog, blobs and jobs that a server with these options has. Raises StoreUnavailable; InputError where there is
    no store, unless `make`.
    """
    from patchbay_server.commands.serve import make_settings
    from patchbay_server.jobs.opened import open_queue
    from patchbay_server.stores.opened import open_store

    # The base is a server's: what the environment says of it must not matter here.
    places = {"store": store, "store_url": store_url, "blob_url": blob_url, "jobs_db": jobs_db}
    settings = make_settings({"base": "-", **places})
    if make:
        settings.store.mkdir(parents=True, exist_ok=True)
    if not settings.store.is_dir():
        raise InputError(f"there is no store at {settings.store}: name the servers' with --store", param="store")
    with closing(open_store(settings)) as hub, closing(open_queue(settings)) as queue:
        yield hub, queue


def note(catalog: Catalog, tenant: str, action: str, subject: str) -> None:
    """A change that a command has made goes into the audit log, with who ran it."""
    from patchbay.store.audit import Entry, printable

    catalog.audit.append(Entry(time.time(), tenant, printable(f"user {_user()}"), action, printable(subject), "done"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
