"""Lines of the log from replicas to the stderr of the process that started them, whole. Unix only.

A replica's own stderr is a file of Ray's. A datagram is a line: two that are written at once never mix.
"""

from __future__ import annotations

import io
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Thread

END_S = 1.0
MAX_LINE = 1 << 17  # bytes; what is longer is cut


class LogSocket(io.TextIOBase):
    """A stream whose every `write` is sent as one. Raises OSError where nobody listens, or too slowly for `timeout`."""

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(timeout)
        self._socket.connect(path)

    def write(self, text: str) -> int:
        self._socket.send(text.encode()[:MAX_LINE])
        return len(text)

    def close(self) -> None:
        self._socket.close()
        super().close()


@contextmanager
def listened() -> Iterator[str]:
    """The path of a socket; what comes there goes to stderr."""
    with tempfile.TemporaryDirectory(prefix="patchbay-") as folder, closing(_bound(f"{folder}/log")) as listener:
        thread = Thread(target=_copy, args=[listener], name="replica-log", daemon=True)
        thread.start()
        try:
            yield f"{folder}/log"
        finally:
            with suppress(OSError):  # nobody reads stderr, and all that can wait does
                LogSocket(f"{folder}/log", END_S).write("")  # the end: closing would not wake who waits
            thread.join(END_S)


def _bound(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(path)
    Path(path).chmod(0o600)
    return listener


def _copy(listener: socket.socket) -> None:
    with suppress(OSError, ValueError):  # it was closed, or stderr was
        while line := listener.recv(MAX_LINE):
            sys.stderr.write(line.decode(errors="replace"))
            sys.stderr.flush()
