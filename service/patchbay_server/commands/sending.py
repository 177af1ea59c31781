"""A large file on its way to a server: in parts, over as many connections as it takes, and on from where it broke off.

Also from one run of a command to the next: the server knows an upload by the hash of its bytes. Knows nothing of what
the file is.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from patchbay.errors import StoreFull
from patchbay_server.commands.client import Client
from patchbay_server.commands.failures import ServerError, ServerUnreachable

RESUMABLE_BYTES = 16 << 20
"""Smaller files are sent again as a whole."""
PATIENCE = 10
"""Times in a row that nothing got through."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
CHUNK = 1 << 20
PART = "application/offset+octet-stream"
PASSING = (408, 409, 429)
"""A part that came while the server was still at the one before, for instance."""
OnBytes = Callable[[int], None]


def hash_file(file: Path, on_bytes: OnBytes = lambda count: None) -> str:
    """`sha256:` and 64 digits; `on_bytes` hears how many were read."""
    digest, done = hashlib.sha256(), 0
    for chunk in chunks(file):
        digest.update(chunk)
        done += len(chunk)
        on_bytes(done)
    return f"sha256:{digest.hexdigest()}"


def send_file(client: Client, file: Path, digest: str, on_bytes: OnBytes) -> None:
    """The server has the file as a blob of the client's tenant. `on_bytes` hears how many it has.

    Raises ServerUnreachable where nothing gets through any more; ServerError.
    """
    size, failures = file.stat().st_size, 0
    offset = _begin(client, digest, size)
    while offset < size:
        on_bytes(offset)
        before = offset
        try:
            if failures:
                offset = _begin(client, digest, size)  # which says how far it came
            if offset < size:
                offset = _append(client, file, digest, offset, on_bytes)
        except (ServerUnreachable, ServerError) as error:
            failures = 1 if offset > before else failures + 1
            if failures > PATIENCE or not _passes(error):
                raise
            time.sleep(min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))
    on_bytes(size)


def chunks(file: Path, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file, from `start` on."""
    with file.open("rb") as source:
        source.seek(start)
        while chunk := source.read(CHUNK):
            yield chunk


def _begin(client: Client, digest: str, size: int) -> int:
    """How much of it the server has."""
    metadata = f"digest {base64.b64encode(digest.encode()).decode()}"
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(size), "Upload-Metadata": metadata}
    return client.number("POST", "/v1/uploads", "Upload-Offset", headers=headers)


def _append(client: Client, file: Path, digest: str, offset: int, on_bytes: OnBytes) -> int:
    def rest() -> Iterator[bytes]:
        at = offset
        for chunk in chunks(file, offset):
            yield chunk
            at += len(chunk)
            on_bytes(at)

    length = str(file.stat().st_size - offset)
    headers = {"Tus-Resumable": "1.0.0", "Upload-Offset": str(offset), "Content-Type": PART, "Content-Length": length}
    return client.number("PATCH", f"/v1/uploads/{digest}", "Upload-Offset", content=rest(), headers=headers)


def _passes(error: ServerUnreachable | ServerError) -> bool:
    if isinstance(error, ServerUnreachable):
        return True
    # An upload that the server has forgotten in between (404) is begun anew.
    return (error.status >= 500 and error.code != StoreFull.code) or error.status in (*PASSING, 404)
