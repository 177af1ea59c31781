"""`patchbay keys create`, `list` and `revoke`: who may use a server. They work on its store, whether it runs or not."""

from __future__ import annotations

import time
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay_server.commands.options import JsonOption, StoreOption, StoreUrlOption
from patchbay_server.commands.output import facts, listing, open_console, print_json, time_text
from patchbay_server.commands.stores import note, open_store

if TYPE_CHECKING:
    from patchbay.store.keys import KeyRecord

COLUMNS = ("id", "tenant", "scopes", "state", "created", "expires", "used")
keys = typer.Typer(name="keys", help="Make, list and revoke the API keys of a server.", no_args_is_help=True)


class ScopeName(StrEnum):
    READ = "read"
    INFER = "infer"
    WRITE = "write"
    ADMIN = "admin"


@keys.command()
def create(
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Whose deltas it sees; a new name is a new tenant.")],
    scope: Annotated[
        list[ScopeName] | None,
        typer.Option(
            show_default="read and infer",
            help="What it may do; may be given again. admin includes the others, and concerns the whole server.",
        ),
    ] = None,
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="In local time.")
    ] = None,
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once: the store has only a hash of it."""
    from patchbay.store.keys import Scope, new_key

    with open_store(store, store_url, make=True) as catalog:
        scopes = map(Scope, scope or (ScopeName.READ, ScopeName.INFER))
        text, record = new_key(tenant, scopes, expires.timestamp() if expires else None)
        catalog.keys.add(record)
        note(catalog, record.tenant, "keys create", record.id)
    if as_json:
        print_json({"key": text, **_to_json(record)})
        return
    open_console().print(text, soft_wrap=True)  # alone on its line, so that it is copied whole and with nothing else
    open_console().print(facts(_cells(record)))
    open_console(stderr=True).print("keep it: it is shown this once", soft_wrap=True)


@keys.command(name="list")
def list_keys(store: StoreOption = None, store_url: StoreUrlOption = None, as_json: JsonOption = False) -> None:
    """List all keys, revoked and expired ones too, without their secrets."""
    with open_store(store, store_url) as catalog:
        records = catalog.keys.list_keys()
    if as_json:
        print_json({"data": [_to_json(record) for record in records]})
    elif records:
        open_console().print(listing(COLUMNS, [[_cells(record)[name] for name in COLUMNS] for record in records]))
    else:
        open_console().print("no keys yet: `patchbay keys create --tenant NAME` makes one", soft_wrap=True)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", show_default=False, help="As `patchbay keys list` shows it.")],
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key for good. A running server refuses it within a second."""
    with open_store(store, store_url) as catalog:
        record = catalog.keys.revoke(key)
        note(catalog, record.tenant, "keys revoke", record.id)
    if as_json:
        print_json(_to_json(record))
    else:
        open_console().print(facts(_cells(record)))


def _to_json(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "tenant": record.tenant,
        "scopes": _scopes(record),
        "state": record.state(time.time()),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "last_used_at": record.last_used_at,
        "revoked_at": record.revoked_at,
    }


def _cells(record: KeyRecord) -> dict[str, object]:
    times = {"created": record.created_at, "expires": record.expires_at, "used": record.last_used_at}
    shown = {name: None if at is None else time_text(at) for name, at in times.items()}
    told = {"id": record.id, "tenant": record.tenant, "scopes": ", ".join(_scopes(record))}
    return {**told, "state": record.state(time.time()), **shown}


def _scopes(record: KeyRecord) -> list[str]:
    return [name.value for name in ScopeName if name.value in record.scopes]
