"""The catalog of a server, for commands that work on it directly. Knows nothing of what they do there."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from patchbay.errors import NotFound

if TYPE_CHECKING:
    from patchbay.store import Catalog


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


def note(catalog: Catalog, tenant: str, action: str, subject: str) -> None:
    """A change that a command has made goes into the audit log, with who ran it."""
    from patchbay.store.audit import Entry, printable

    catalog.audit.append(Entry(time.time(), tenant, printable(f"user {_user()}"), action, printable(subject), "done"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
