"""HTTP/1.1 connections with bounds: on how long a request may take to come, and on how much of it may be no body.

uvicorn has neither, so that a few bytes a minute would keep a connection for ever, and a header without end would fill
the memory. How many connections there are is for a proxy or a firewall to bound. Knows no route and no key.
"""

from __future__ import annotations

import json
from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from patchbay_server.errors import error_body

HEAD_S = 15.0  # from the connection, or the first byte after an answer, to the end of the headers
BODY_S = 30.0  # from one look at a body that is on its way to the next
LEAST_BODY = 8192  # bytes that must have come between two looks
MOST_HEAD = 1 << 16  # bytes in a row that are no body: headers, what goes with the lengths of chunks, trailers
MOST_HEADERS = 128
LINGER_S = 2.0


class Connection(HttpToolsProtocol):
    """What cannot be read is refused in the one shape of errors, behind the answers to what came before on the same
    connection, and ends it.
    """

    _timer: TimerHandle | None = None
    _in_head = True
    _in_body = False
    _new_body = 0
    _no_body = 0
    _could_read = True
    _is_heard = False
    _is_over = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._is_heard = True
        self._no_body += len(data)
        self._in_head = not self._in_body  # blank lines before a request begin it, too: they must not go on for ever
        super().data_received(data)
        if self._no_body > MOST_HEAD:
            self._refuse_head()
        if self._in_head or self._in_body:
            self._set_timer()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers are dropped: what a request is has been decided by then."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if version not in ("1.0", "1.1"):
            self._refuse(505, "http_error", f"HTTP/{version} is not spoken here: use HTTP/1.1")
        elif len(self.headers) > MOST_HEADERS or size > MOST_HEAD:
            self._refuse_head()
        else:
            super().on_headers_complete()
            self._drop_timer()
            self._in_head, self._in_body, self._new_body = False, True, 0
            return
        raise ValueError("refused")  # ends the parser, too

    def on_body(self, body: bytes) -> None:
        self._no_body = 0
        self._new_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._drop_timer()
        self._in_body, self._no_body = False, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Instead of uvicorn's, for what its parser refuses."""
        self._refuse(400, "invalid_request", "this is no HTTP/1.1 request that can be read")

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as if it had not asked for another protocol."""

    def _set_timer(self) -> None:
        if self._timer is None and not self._is_over and not self.transport.is_closing():
            self._could_read = self._can_read()
            self._timer = self.loop.call_later(HEAD_S if self._in_head else BODY_S, self._look)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _can_read(self) -> bool:
        """Whether nothing but the client keeps more from coming."""
        return not self.flow.read_paused and not (self._in_body and self.cycle.waiting_for_100_continue)

    def _look(self) -> None:
        self._timer = None
        if self._could_read and self._can_read() and (self._in_head or self._new_body < LEAST_BODY):
            self._refuse_slow()
        self._new_body = 0
        self._set_timer()

    def _refuse_slow(self) -> None:
        if not self._is_heard:
            self.transport.close()  # browsers open connections that they may never need
            return
        what = "headers" if self._in_head else "body"
        self._refuse(408, "http_error", f"the {what} of the request came too slowly: send it again")

    def _refuse_head(self) -> None:
        most = f"{MOST_HEADERS} headers and {MOST_HEAD:,} bytes"
        self._refuse(431, "http_error", f"what is sent around the body is over the {most} that it may be")

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self._is_over or self.transport.is_closing():
            return
        is_owed = self.cycle is not None and not self.cycle.response_complete
        if is_owed and (self.pipeline or not self._in_body):
            # Answers to earlier requests go first; the last of them ends the connection.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not self._in_body or not self.cycle.response_started:
            self.transport.write(_answer(status, error_body(message, status, code)))
        self._end()

    def _end(self) -> None:
        """Who still sends hears the answer first: to close on bytes that nobody has read resets the connection."""
        self._is_over = True
        self._drop_timer()
        if self._in_body:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def _answer(status: int, body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    head = f"content-type: application/json\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
    return STATUS_LINE[status] + head.encode() + text
