"""Bodies that are uploads: taken in pieces, written in threads, compared with what their sender says that they are.

Knows no route and no store.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from patchbay.errors import InputError
from patchbay.store.base import Digest
from patchbay_server.errors import DigestMismatch

# Written and hashed in pieces of this size and in a thread: a checkpoint must not stop the event loop.
PIECE = 1 << 20
writes = anyio.CapacityLimiter(4)
_MEMBER = re.compile(r"sha-256=:([^:]*):")


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body. Raises ClientDisconnect after what came, for a sender that fell silent, too (`connections.py`)."""
    piece = bytearray()
    lost: ClientDisconnect | None = None
    try:
        async for chunk in request.stream():
            piece += chunk
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
    except ClientDisconnect as error:
        lost = error
    yield bytes(piece)
    if lost is not None:
        raise lost


async def receive(request: Request, write: Callable[[bytes], None]) -> None:
    """Writes the body, piece by piece, in threads. Raises what `pieces` and `write` raise."""
    async for piece in pieces(request):
        await anyio.to_thread.run_sync(write, piece, limiter=writes)


def content_length(request: Request) -> int:
    """What the body says that it has; 0 where it does not say."""
    declared = request.headers.get("content-length", "0")
    return int(declared) if declared.isdecimal() else 0


def content_digest(request: Request) -> Digest | None:
    """What `Content-Digest` (RFC 9530) says of the body; None where it says nothing in sha-256.

    Raises InputError where that cannot be read.
    """
    said = ",".join(request.headers.getlist("content-digest"))
    members = [member.strip() for member in said.split(",")]
    ours = [member for member in members if member.partition("=")[0] == "sha-256"]
    if not ours:
        return None
    found = _MEMBER.fullmatch(ours[-1])  # of a key that is given twice the last counts, says RFC 8941
    try:
        digest = base64.b64decode(found[1], validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise InputError(
            f"Content-Digest {ours[-1][:100]!r} cannot be read: write sha-256=:BASE64 OF THE 32 BYTES:",
            param="content-digest",
        )
    return f"sha256:{digest.hex()}"


def check_content(promised: Digest | None, found: Digest) -> None:
    """Raises DigestMismatch."""
    if promised is not None and promised != found:
        raise DigestMismatch(
            f"the body came as {found}, and its Content-Digest is {promised}: nothing was kept, send it again",
            param="content-digest",
        )
