"""`patchbay tenants set` and `list`: how much each tenant of a server may have and use. They work on its store."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.errors import InvalidRecipe
from patchbay_server.commands.options import JsonOption, StoreOption, StoreUrlOption
from patchbay_server.commands.output import listing, open_console, print_json
from patchbay_server.commands.stores import note, open_store
from patchbay_server.sizes import parse_size

if TYPE_CHECKING:
    from patchbay.store import Catalog
    from patchbay.store.tenants import Limits

NONE = "none"
COLUMNS = ("tenant", "bytes", "of", "deltas", "of deltas", "jobs", "requests", "tokens a minute")
tenants = typer.Typer(name="tenants", help="Limit what the tenants of a server may have and use.", no_args_is_help=True)


@tenants.command(name="set")
def set_limits(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The tenant.")],
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of deltas, all versions, and blobs: 350MB, 2GiB.")
    ] = None,
    max_deltas: Annotated[str | None, typer.Option(metavar="N", help="Versions of deltas.")] = None,
    max_jobs: Annotated[str | None, typer.Option(metavar="N", help="Jobs that are queued or running.")] = None,
    max_requests: Annotated[str | None, typer.Option(metavar="N", help="Requests under way at a time.")] = None,
    tokens_per_minute: Annotated[
        str | None, typer.Option(metavar="N", help="Of prompts and answers, in any sixty seconds.")
    ] = None,
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set limits; `none` lifts one, what is left out stays. A running server keeps to them within a second."""
    counts = {"max_deltas": max_deltas, "max_jobs": max_jobs, "max_requests": max_requests}
    given = {"max_bytes": max_bytes, **counts, "tokens_per_minute": tokens_per_minute}
    changes = {limit: _number(limit, text) for limit, text in given.items() if text is not None}
    with open_store(store, store_url, make=True) as catalog:
        limits = replace(catalog.tenants.get_limits(name), **changes)
        catalog.tenants.set_limits(name, limits)
        note(catalog, name, "tenants set", limits.to_json())
        _show([_to_json(catalog, name, limits)], as_json, one=True)


@tenants.command(name="list")
def list_tenants(store: StoreOption = None, store_url: StoreUrlOption = None, as_json: JsonOption = False) -> None:
    """List all tenants with what they have stored and their limits."""
    from patchbay.store.hub import tenants_of

    with open_store(store, store_url) as catalog:
        limits = {name: catalog.tenants.get_limits(name) for name in tenants_of(catalog)}
        _show([_to_json(catalog, name, most) for name, most in limits.items()], as_json)


def _number(limit: str, text: str) -> int | None:
    if text == NONE:
        return None
    if limit == "max_bytes":
        return parse_size(text, limit)
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise InvalidRecipe(f"{limit}: {text[:40]!r} is no number: give one, or {NONE!r}", param=limit)
    return int(text)


def _to_json(catalog: Catalog, name: str, limits: Limits) -> dict[str, object]:
    usage = catalog.tenants.usage(name)
    return {"tenant": name, "bytes": usage.num_bytes, "deltas": usage.num_deltas, "limits": asdict(limits)}


def _show(found: list[dict[str, object]], as_json: bool, *, one: bool = False) -> None:
    if as_json:
        print_json(found[0] if one else {"data": found})
    else:
        open_console().print(listing(COLUMNS, [_cells(each) for each in found], numeric=COLUMNS[1:]))


def _cells(tenant: dict[str, object]) -> list[object]:
    limits = tenant["limits"]
    assert isinstance(limits, dict)
    most = {limit: None if number is None else f"{number:,}" for limit, number in limits.items()}
    stored = [f"{tenant['bytes']:,}", most["max_bytes"], f"{tenant['deltas']:,}", most["max_deltas"]]
    return [tenant["tenant"], *stored, most["max_jobs"], most["max_requests"], most["tokens_per_minute"]]
