"""What is passed back of a server that breaks off: nothing, or all that there was and that it broke."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from threading import Thread

import pytest
from starlette.types import Message

from patchbay_server.replicas.relay import KEPT_BACK, Lost, Outgoing, new_client, passed_on, relay

HEAD = b"HTTP/1.1 200 OK\r\nconnection: x-own, keep-alive\r\nx-own: 1\r\nx-kept: 2\r\n"
EVENTS = HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@contextmanager
def says(answer: bytes) -> Iterator[str]:
    """A server that answers one request so, and hangs up. What it has not read of the request by then it reads first: a
    socket closed on unread bytes takes back what was answered.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):
                connection.recv(1 << 16)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

        thread = Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def passed(url: str, request: Outgoing | None = None) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        async with new_client() as client:
            await relay(client, url, request or Outgoing("GET", "/x?y=1", [("host", "me")], b""), send)

    try:
        asyncio.run(run())
    except Lost as lost:
        if not lost.begun:
            raise
        sent.append({"type": "told" if lost.told else "broken"})
    return sent


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def body(sent: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


def test_an_answer_is_passed_back_without_what_is_of_the_connection() -> None:
    with says(HEAD + b"content-length: 3\r\n\r\nyes") as url:
        start, *rest = passed(url)
    assert start["status"] == 200 and dict(start["headers"]) == {b"x-kept": b"2", b"content-length": b"3"}
    assert body(rest) == b"yes" and rest[-1]["more_body"] is False
    assert passed_on([(b"Host", b"a"), (b"TE", b"b"), (b"Connection", b"x"), (b"X", b"c")]) == [("host", "a")]


def test_where_nobody_listens_nothing_was_sent() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(Lost) as lost:
        passed(url)
    assert not lost.value.sent


@pytest.mark.parametrize("answer", [b"", HEAD, HEAD + b"content-length: 9\r\n\r\nhal", EVENTS])
def test_what_ends_before_anything_was_passed_back_can_be_asked_again(answer: bytes) -> None:
    with says(answer) as url, pytest.raises(Lost) as lost:
        passed(url)
    assert lost.value.sent


def test_a_stream_that_has_begun_ends_with_an_error() -> None:
    with says(EVENTS + chunk(b"data: 1\n\n") + chunk(b"data: 2\n\n")) as url:
        sent = passed(url)
    assert sent.pop() == {"type": "told"}
    *events, last = body(sent).decode().removesuffix("\n\n").split("\n\n")
    assert events == ["data: 1", "data: 2"]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "engine_failed" and "ask again" in error["message"]
    assert sent[-1]["more_body"] is False


def test_a_file_that_has_begun_breaks_the_connection() -> None:
    with says(HEAD + b"content-length: %d\r\n\r\n" % (3 * KEPT_BACK) + b"x" * 2 * KEPT_BACK) as url:
        sent = passed(url)
    assert sent[0]["type"] == "http.response.start" and sent[-1] == {"type": "broken"}
    assert len(body(sent)) == 2 * KEPT_BACK
