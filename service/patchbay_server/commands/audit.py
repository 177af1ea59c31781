"""`patchbay audit`: the log of changes in a server's store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from patchbay_server.commands.options import JsonOption, StoreOption, StoreUrlOption
from patchbay_server.commands.output import listing, open_console, print_json, time_text
from patchbay_server.commands.stores import open_store

COLUMNS = ("when", "tenant", "who", "what", "about", "result")


def audit(
    tenant: Annotated[str | None, typer.Option(metavar="NAME", show_default="all", help="Whose changes.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The newest so many.")] = 100,
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List who changed what on a server, oldest first."""
    with open_store(store, store_url) as catalog:
        entries = catalog.audit.list_entries(tenant, limit)
    if as_json:
        print_json({"data": [asdict(entry) for entry in entries]})
        return
    rows = [(time_text(e.at), e.tenant, e.actor, e.action, e.subject, e.result) for e in entries]
    open_console().print(listing(COLUMNS, rows))
