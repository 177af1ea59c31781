"""`patchbay push`: uploads a delta file to a running server."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from patchbay_server.commands.options import DEFAULT_URL, DeltaArgument, JsonOption, UrlOption
from patchbay_server.commands.output import BYTES, open_console, print_json, printable, progress

if TYPE_CHECKING:
    from patchbay_server.commands.client import Client


def push(
    delta: DeltaArgument,
    name: Annotated[str, typer.Option(help="The name that requests will use. A known name gets a new version.")],
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Stage the version without making it current.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
    as_json: JsonOption = False,
) -> None:
    """Upload a delta under a name. The same bytes again are the same version.

    What breaks off in the middle of a large one goes on from there, also when the command is run again.
    """
    created, record = _upload(url, delta, name, not no_activate)
    if as_json:
        print_json(record | {"created": created})
    else:
        open_console().print(_sentence(created, record), soft_wrap=True)


def _upload(url: str, delta: Path, name: str, activate: bool) -> tuple[bool, dict[str, Any]]:
    from patchbay_server.commands.client import Client
    from patchbay_server.commands.sending import RESUMABLE_BYTES

    size = delta.stat().st_size
    with Client(url) as client:
        if size < RESUMABLE_BYTES:
            return _send_whole(client, delta, name, activate)
        return _send_in_parts(client, delta, name, activate)


def _send_whole(client: Client, delta: Path, name: str, activate: bool) -> tuple[bool, dict[str, Any]]:
    from patchbay_server.commands.sending import chunks

    query = {"name": name, "activate": "true" if activate else "false"}
    size, sent = delta.stat().st_size, 0
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
    with progress("push", BYTES) as update:

        def body() -> Iterator[bytes]:
            nonlocal sent
            update(0, size, name)
            for chunk in chunks(delta):
                yield chunk
                sent += len(chunk)
                update(sent, size, name)

        status, record = client.request(
            "POST", "/v1/deltas", expect="version", params=query, content=body(), headers=headers
        )
    return status == 201, record


def _send_in_parts(client: Client, delta: Path, name: str, activate: bool) -> tuple[bool, dict[str, Any]]:
    """The server is asked first: it may have another base, or the bytes, or want no delta of this name."""
    from patchbay_server.commands.failures import ServerError
    from patchbay_server.commands.sending import hash_file, send_file

    _check_base(client, delta)
    size = delta.stat().st_size
    with progress("hash", BYTES) as update:
        digest = hash_file(delta, lambda done: update(done, size, name))

    def publish() -> tuple[bool, dict[str, Any]]:
        body = {"blob": digest, "activate": activate}
        status, record = client.request("PUT", f"/v1/deltas/{quote(name, safe='')}", expect="version", json=body)
        return status == 201, record

    try:
        return publish()
    except ServerError as error:
        if (error.status, error.param) != (404, "blob"):
            raise
    with progress("push", BYTES) as update:
        send_file(client, delta, digest, lambda done: update(done, size, name))
    return publish()


def _check_base(client: Client, delta: Path) -> None:
    """Raises WrongBase for a delta of another base than the server's, and DeltaError for what is none at all."""
    from patchbay.delta.file import DeltaFile
    from patchbay.errors import WrongBase
    from patchbay_server.commands.failures import ServerError

    wanted = DeltaFile.open(delta).manifest.base
    try:
        _, base = client.request("GET", "/v1/base", expect="fingerprint")
    except ServerError as error:
        if error.status == HTTPStatus.FORBIDDEN:  # a key that may write and not read: the server looks, at the end
            return
        raise
    if base["fingerprint"] != wanted.fingerprint:
        raise WrongBase(
            f"{delta} was made for base {wanted.name!r} ({wanted.fingerprint[:19]}...), and the server's is "
            f"{base.get('name')!r} ({base['fingerprint'][:19]}...): nothing was sent; push it to a server of its base, "
            "or compress the fine-tune against this one",
            param="base.fingerprint",
        )


def _sentence(created: bool, record: dict[str, Any]) -> str:
    which = f"{record['name']}@{record['version']}"
    verb = "is now" if created else "was already"
    state = "current" if record["current"] else "staged, not current"
    return printable(f"{which} {verb} on the server ({state}), {record['digest']}")
