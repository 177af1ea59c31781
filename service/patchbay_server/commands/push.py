"""`patchbay push`: uploads a delta file to a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from patchbay_server.commands.options import DEFAULT_URL, DeltaArgument, JsonOption, UrlOption
from patchbay_server.commands.output import BYTES, open_console, print_json, printable, progress

CHUNK = 1 << 20


def push(
    delta: DeltaArgument,
    name: Annotated[str, typer.Option(help="The name that requests will use. A known name gets a new version.")],
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Stage the version without making it current.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
    as_json: JsonOption = False,
) -> None:
    """Upload a delta under a name. The same bytes again are the same version."""
    created, record = _upload(url, delta, {"name": name, "activate": "false" if no_activate else "true"})
    if as_json:
        print_json(record | {"created": created})
    else:
        open_console().print(_sentence(created, record), soft_wrap=True)


def _upload(url: str, delta: Path, query: dict[str, str]) -> tuple[bool, dict[str, Any]]:
    from patchbay_server.commands.client import Client

    with delta.open("rb") as file, Client(url) as client, progress("push", BYTES) as update:
        size = delta.stat().st_size
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        body = _chunks(file, lambda done: update(done, size, query["name"]))
        status, record = client.request(
            "POST", "/v1/deltas", expect="version", params=query, content=body, headers=headers
        )
    return status == 201, record


def _chunks(file: BinaryIO, on_sent: Callable[[int], None]) -> Iterator[bytes]:
    sent = 0
    on_sent(sent)
    while chunk := file.read(CHUNK):
        yield chunk
        sent += len(chunk)
        on_sent(sent)


def _sentence(created: bool, record: dict[str, Any]) -> str:
    which = f"{record['name']}@{record['version']}"
    verb = "is now" if created else "was already"
    state = "current" if record["current"] else "staged, not current"
    return printable(f"{which} {verb} on the server ({state}), {record['digest']}")
