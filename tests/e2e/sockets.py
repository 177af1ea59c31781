"""Bytes that no HTTP client would send, and what comes back. Knows no case and no server."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.client import HTTPResponse

DEADLINE_S = 20.0
Send = Callable[[socket.socket], None]


class _Answers(io.BytesIO):
    """Several answers behind each other: `HTTPResponse` closes what it reads from."""

    def makefile(self, mode: str) -> io.BytesIO:
        return self

    def close(self) -> None:
        return


def answers(data: bytes) -> list[str]:
    """Every whole answer as `200`, and as `422 invalid_request` where it is an error in the one shape."""
    stream, found = _Answers(data), []
    while stream.tell() < len(data):
        response = HTTPResponse(stream)  # type: ignore[arg-type]
        response.begin()
        body = response.read()
        found.append(str(response.status))
        if response.status >= 400:
            assert response.headers["content-type"] == "application/json", body
            error = json.loads(body)["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["message"]
            found[-1] += f" {error['code']}"
    return found


def exchange(address: tuple[str, int], send: Send) -> bytes:
    """What comes back until the server closes. Raises TimeoutError where it does not, and ConnectionResetError where it
    does not wait for what is on its way.
    """
    with socket.create_connection(address, timeout=DEADLINE_S) as connection:
        with suppress(BrokenPipeError):  # the server has had enough
            send(connection)
        data = b""
        while connection.fileno() >= 0 and (piece := connection.recv(65536)):
            data += piece
        return data


def until_answered(piece: bytes, pause: float = 0.1) -> Send:
    """So little at a time, until the server says something or closes."""

    def send(connection: socket.socket) -> None:
        until = time.monotonic() + DEADLINE_S
        connection.settimeout(pause)
        while time.monotonic() < until:
            connection.sendall(piece)
            with suppress(TimeoutError):
                connection.recv(1, socket.MSG_PEEK)
                connection.settimeout(DEADLINE_S)
                return
        raise TimeoutError("the server took it for ever")

    return send


def reset(connection: socket.socket) -> None:
    """Ends the connection as a client that crashed does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def then(*steps: bytes | Send) -> Send:
    def send(connection: socket.socket) -> None:
        for step in steps:
            if callable(step):
                step(connection)
            else:
                connection.sendall(step)

    return send


def half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


def head(line: str, *headers: str) -> bytes:
    return "".join(f"{text}\r\n" for text in (line, "Host: a", *headers, "")).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A well-formed request, unless the headers say otherwise."""
    given = {header.partition(":")[0].lower() for header in headers}
    more = [] if given & {"content-length", "transfer-encoding"} else [f"Content-Length: {len(body)}"]
    kind = [] if "content-type" in given else ["Content-Type: application/json"]
    return head(f"POST {path} HTTP/1.1", *kind, *more, *headers) + body


def chunks(pieces: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
