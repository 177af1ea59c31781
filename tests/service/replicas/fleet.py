"""Real replicas in this process, behind a real front: what Ray does between them is all that is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
from tests.waiting import until

from patchbay_server.listen import Server, bind
from patchbay_server.replicas.affinity import Candidate, Held, Wanted, outcome_of, rank
from patchbay_server.replicas.front import Chosen, Front, make_front
from patchbay_server.replicas.replica import Replica
from patchbay_server.settings import Settings
from patchbay_server.stores.opened import open_store

LOOPBACK = "127.0.0.1"


@dataclass(slots=True)
class Here:
    """A `Fleet`. `sent`: the name of each replica that was chosen, in order."""

    replicas: dict[str, Replica]
    held: Held = field(default_factory=Held)
    sent: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def choose(self, wanted: Wanted) -> AsyncIterator[Chosen]:
        candidates = []
        for name, replica in self.replicas.items():
            load = int((await replica.record_autoscaling_stats())["under_way"])
            stats = await replica.record_routing_stats()
            self.held.said(name, stats["deltas"])
            candidates.append(Candidate(name, self.held.of(name), load, stats["capacity"]))
        first = rank(candidates, wanted.deltas)[0]
        wanted.outcome = outcome_of(first, candidates, wanted.deltas)
        self.held.sent(first.name, wanted.deltas)
        self.sent.append(first.name)
        yield Chosen(first.name, await self.replicas[first.name].url())

    async def urls(self) -> list[str]:
        return [await replica.url() for replica in self.replicas.values()]

    async def metrics(self) -> Mapping[str, str]:
        return dict([await replica.named_metrics() for replica in self.replicas.values()])

    async def forget_deleted(self) -> None:
        for replica in self.replicas.values():
            await replica.forget_deleted()

    async def drain(self) -> None:
        for replica in self.replicas.values():
            await replica.drain()

    async def stop(self) -> None:
        for replica in self.replicas.values():
            await replica.stop()


@dataclass(frozen=True, slots=True)
class Fronted:
    client: httpx2.Client
    fleet: Here
    front: Front
    server: Server


@contextmanager
def fronted(base: Path, store: Path, *names: str, **options: Any) -> Iterator[Fronted]:
    """Replicas of these names on one store, and the front over a socket."""
    settings = Settings(base=str(base), store=store, check_seconds=0, **options)
    with ExitStack() as stack:
        fleet = Here({name: stack.enter_context(closing(Replica(settings, LOOPBACK, name))) for name in names})
        hub = stack.enter_context(closing(open_store(settings)))
        app, front = make_front(settings, hub, fleet, base.name)
        listener = bind(LOOPBACK, 0)
        server = Server(app, (front.drain,), front.stop)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            host, port = listener.getsockname()
            client = stack.enter_context(httpx2.Client(base_url=f"http://{host}:{port}", timeout=60))
            yield Fronted(client, fleet, front, server)
        finally:
            server.should_exit = True
            thread.join(60)
