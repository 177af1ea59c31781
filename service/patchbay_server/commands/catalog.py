"""`patchbay ls`, `show` and `rm`: what a running server holds."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from patchbay_server.commands.options import DEFAULT_URL, JsonOption, UrlOption
from patchbay_server.commands.output import facts, listing, open_console, print_json, printable, size_text, time_text

Record = Mapping[str, Any]
NameArgument = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", show_default=False)]
LIST_COLUMNS = ("name", "version", "state", "size", "ratio", "method", "density", "created")
VERSION_COLUMNS = ("version", "state", "size", "ratio", "method", "density", "created", "digest")
NUMERIC = ("version", "size", "ratio", "density")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def ls(url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """List the deltas on the server."""
    body = _ask(url, "GET", "/v1/deltas", expect="data")
    if as_json:
        print_json(body)
    elif body["data"]:
        open_console().print(_table(LIST_COLUMNS, body["data"]))
    else:
        open_console().print("no deltas yet: upload one with `patchbay push FILE --name NAME`", soft_wrap=True)


def show(name: NameArgument, url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Show one delta and all its versions."""
    body = _ask(url, "GET", _path(name), expect="versions")
    if as_json:
        print_json(body)
        return
    console = open_console()
    console.print(facts(_details(body)))
    console.print()
    console.print(_table(VERSION_COLUMNS, body["versions"]))


def rm(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also what saved merges are made of.")] = False,
    url: UrlOption = DEFAULT_URL,
    as_json: JsonOption = False,
) -> None:
    """Delete a version, or with the bare name all of them. Asks first where it runs on a terminal."""
    path = _path(name)
    if not yes and sys.stdin.isatty():
        _ask_first(name if "@" in name else f"{name} and all its versions")
    body = _ask(url, "DELETE", f"{path}?force=true" if force else path, expect="deleted")
    if as_json:
        print_json(body)
    else:
        gone = ", ".join(f"{record['name']}@{record['version']}" for record in body["deleted"])
        open_console().print(f"deleted {printable(gone)}", soft_wrap=True)


def _ask_first(what: str) -> None:
    # Not typer.confirm: that one writes a blank to stdout even when it asks on stderr.
    print(f"Delete {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise typer.Abort


def _ask(url: str, method: str, path: str, *, expect: str) -> dict[str, Any]:
    from patchbay_server.commands.client import Client

    with Client(url) as client:
        return client.request(method, path, expect=expect)[1]


def _path(text: str) -> str:
    """The resource of `name` or `name@version`. Checked here, because a `/` or `..` would be another resource."""
    from patchbay.errors import InvalidName
    from patchbay.store.base import check_name

    name, at, version = text.partition("@")
    check_name(name)
    if at and not _VERSION.fullmatch(version):
        raise InvalidName(f"{version[:64]!r} is no version: write NAME@1, NAME@2 and so on", param="version")
    return f"/v1/deltas/{text}"


def _table(columns: Sequence[str], records: Sequence[Record]) -> object:
    rows = [[_cells(record)[column] for column in columns] for record in records]
    return listing(columns, rows, numeric=NUMERIC)


def _cells(record: Record) -> dict[str, object]:
    summary = record["summary"]
    ratio, density = summary.get("ratio"), summary.get("density")
    return {
        "name": record["name"],
        "version": record["version"],
        "state": "current" if record["current"] else "not current",
        "size": f"{record['size']:,}",
        "ratio": None if ratio is None else f"{ratio:.1f}",
        "method": summary.get("method"),
        "density": None if density is None else f"{density:g}",
        "created": time_text(record["created_at"]),
        "digest": record["digest"],
    }


def _details(record: Record) -> dict[str, object]:
    shown = {"size": size_text(record["size"]), "digest": record["digest"]}
    own = {name.replace("_", " "): _plain(value) for name, value in record["summary"].items()}
    state = "current" if record["current"] else "not current"
    return {"delta": f"{record['name']}@{record['version']} ({state})", **shown, **own}


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else value
