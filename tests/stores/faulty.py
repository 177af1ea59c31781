"""A TCP proxy that does to a connection what networks do: it waits, cuts, swallows, tears and crawls, as it is told."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

Way = Literal["up", "down"]  # to the server, to the client
Kind = Literal["delay", "throttle", "mute", "reset", "close", "half-close", "refuse", "flip"]
PIECE = 65536


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the bytes of one way, once `after` of them have passed on a connection.

    `seconds`: of a delay. `rate`: bytes a second of a throttle. `times`: how many connections it hits; None is all.
    """

    kind: Kind
    way: Way = "down"
    after: int = 0
    seconds: float = 0.0
    rate: int = 0
    times: int | None = None


FAULTS: dict[str, Fault] = {
    "answers come late": Fault("delay", seconds=0.1),
    "questions come late": Fault("delay", "up", seconds=0.1),
    "answers crawl": Fault("throttle", rate=200_000),
    "questions crawl": Fault("throttle", "up", rate=200_000),
    "the server says nothing": Fault("mute"),
    "the server hears nothing": Fault("mute", "up"),
    "the server falls silent in an answer": Fault("mute", after=3),
    "the server falls deaf in a question": Fault("mute", "up", after=20),
    "every connection is refused": Fault("refuse"),
    "one connection is refused": Fault("refuse", times=1),
    "a reset before the answer": Fault("reset", times=1),
    "a reset in the answer": Fault("reset", after=3, times=1),
    "a reset in the question": Fault("reset", "up", after=20, times=1),
    "every answer is reset": Fault("reset"),
    "every answer is reset in the middle": Fault("reset", after=3),
    "one answer is cut short": Fault("close", after=3, times=1),
    "every answer is cut short": Fault("close", after=3),
    "every question is cut short": Fault("close", "up", after=20),
    "the server ends its side": Fault("half-close", after=3),
    "the client's side is ended": Fault("half-close", "up", after=20),
}
"""Twenty. Those that hit one connection must not be seen by who reads."""


@dataclass(slots=True)
class Proxy:
    """Between clients and `server`; listens on `port` of 127.0.0.1. `fault` may be set from any thread, at any time."""

    server: tuple[str, int]
    port: int = 0
    fault: Fault | None = None
    hits: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def inject(self, fault: Fault | None) -> None:
        self.hits, self.fault = 0, fault
        if fault is not None and fault.kind == "refuse" or fault is None:
            self._loop.call_soon_threadsafe(self._reset_all)

    async def serve(self, ready: threading.Event, ended: asyncio.Event) -> None:
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as listening:
            self.port = listening.sockets[0].getsockname()[1]
            ready.set()
            await ended.wait()
            self._reset_all()
            connections = asyncio.all_tasks() - {asyncio.current_task()}
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    def _reset_all(self) -> None:
        for writer in self._open:
            reset(writer)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault is not None and self.fault.kind == "refuse" and self._hits():
            reset(writer)
            return
        with suppress(OSError, asyncio.CancelledError):
            server_reader, server_writer = await asyncio.open_connection(*self.server)
            ends = {writer, server_writer}
            self._open |= ends
            try:
                await asyncio.gather(
                    self._pump("up", reader, server_writer, ends), self._pump("down", server_reader, writer, ends)
                )
            finally:
                self._open -= ends
                for end in ends:
                    end.close()

    def _hits(self) -> bool:
        """Counts one connection, if the fault may hit one more."""
        fault = self.fault
        if fault is None or (fault.times is not None and self.hits >= fault.times):
            return False
        self.hits += 1
        return True

    async def _pump(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: set[asyncio.StreamWriter]
    ) -> None:
        passed, hit, last = 0, False, self.fault
        with suppress(OSError):
            while data := await reader.read(PIECE):
                fault = self.fault
                if fault is not last:  # a new one: what passed before it does not count
                    passed, hit, last = 0, False, fault
                if fault is None or fault.way != way or fault.kind == "refuse":
                    await send(writer, data)
                    continue
                whole = max(0, fault.after - passed)
                await send(writer, data[:whole])
                passed += len(data)
                if data[whole:]:
                    hit = hit or self._hits()
                    if not await self._harm(fault if hit else None, data[whole:], writer, ends):
                        return
            writer.write_eof()

    async def _harm(
        self, fault: Fault | None, data: bytes, writer: asyncio.StreamWriter, ends: set[asyncio.StreamWriter]
    ) -> bool:
        """Whether more may come."""
        match fault.kind if fault else None:
            case "delay":
                assert fault is not None
                await asyncio.sleep(fault.seconds)
                await send(writer, data)
            case "throttle":
                assert fault is not None
                for start in range(0, len(data), 4096):
                    await asyncio.sleep(4096 / fault.rate)
                    await send(writer, data[start : start + 4096])
            case "flip":
                await send(writer, bytes([data[0] ^ 1]) + data[1:])
            case "mute":
                pass
            case "reset":
                for end in ends:
                    reset(end)
                return False
            case "close":
                for end in ends:
                    end.close()
                return False
            case "half-close":
                writer.write_eof()
                return False
            case _:
                await send(writer, data)
        return True


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def faulty(url: str) -> Iterator[Proxy]:
    """A proxy before the server of this URL."""
    host, _, port = url.partition("://")[2].partition("/")[0].rpartition(":")
    proxy, ready = Proxy((host, int(port))), threading.Event()
    ended = asyncio.Event()
    thread = threading.Thread(target=lambda: proxy._loop.run_until_complete(proxy.serve(ready, ended)))
    thread.start()
    assert ready.wait(60)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(ended.set)
        thread.join()
        proxy._loop.close()
