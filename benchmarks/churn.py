"""Clients that never leave a server alone: deltas come, answer, are merged, pinned, replaced and deleted.

Each client has names of its own, so that every error is one that it asked for. Knows nothing of what a server does with
its memory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import httpx2

Draw = Callable[[int, int], Path]  # of a client and a number: a delta file that nobody has seen before
SHARED = ("shared-0", "shared-1", "shared-2")  # deltas that all clients use and none changes
MOST_FAILURES = 20  # that are told; a server that is gone fails everything
TOKENS = 8
FEW = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
MANY = {"max_tokens": 400, "temperature": 0.8, "ignore_eos": True}  # more than anybody waits for


class Unasked(Exception):
    """The server answered something else than it should have."""


@dataclass
class Tally:
    """What all clients have done: requests by kind, and what went wrong. For many threads."""

    requests: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def count(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1

    def fail(self, what: str) -> None:
        with self._lock:
            if len(self.failures) < MOST_FAILURES:
                self.failures.append(what)

    @property
    def total(self) -> int:
        return self.requests.total()


class Churn:
    """One client. `run` goes on until `stopping` is set; a round that failed is not the last."""

    def __init__(self, url: str, number: int, draw: Draw, tally: Tally) -> None:
        self._number, self._draw, self._tally = number, draw, tally
        self._client = httpx2.Client(base_url=url, timeout=120)
        self._drawn = 0

    def run(self, stopping: Event) -> None:
        rounds = 0
        with closing(self._client):
            while not stopping.is_set():
                rounds += 1
                try:
                    self.round(rounds)
                except (Unasked, httpx2.HTTPError) as error:
                    self._tally.fail(f"client {self._number}, round {rounds}: {type(error).__name__}: {error}")
                    stopping.wait(1)

    def round(self, number: int) -> None:
        """The life of one delta. Raises Unasked."""
        name, merge = f"own-{self._number}-{number}", f"merge-{self._number}-{number}"
        first, second, _ = SHARED
        self.upload(name)
        self.complete(name)
        self.stream(f"{name} - 0.5*{first}")
        self.hang_up(name)
        self.expect("pin", 200, "POST", f"/v1/deltas/{name}/pin")
        self.expect("merge", 201, "POST", "/v1/merges", json={"name": merge, "recipe": f"{name} + 0.3*{second}"})
        self.complete(merge)
        self.expect("delete", 409, "DELETE", f"/v1/deltas/{name}", code="delta_in_use")
        self.upload(name)
        self.complete(f"0.8*{name}")
        self.complete(f"ties({name}, {first}, {second}; density=0.3)")
        self.complete(name, path="patched")
        self.complete("base")
        self.expect("unpin", 200, "POST", f"/v1/deltas/{name}@1/unpin")
        self.expect("delete merge", 200, "DELETE", f"/v1/merges/{merge}")
        self.expect("delete", 200, "DELETE", f"/v1/deltas/{name}")
        self.expect("complete", 404, "POST", "/v1/completions", json={"model": name, "prompt": "1"}, code="not_found")
        self.expect("pin", 404, "POST", f"/v1/deltas/{name}/pin", code="not_found")

    def upload(self, name: str) -> None:
        self._drawn += 1
        file = self._draw(self._number, self._drawn)
        self.expect("upload", 201, "POST", "/v1/deltas", params={"name": name}, content=file.read_bytes())

    def complete(self, model: str, **more: object) -> None:
        answer = self.expect("complete", 200, "POST", "/v1/completions", json=self._body(model, FEW, more))
        if answer["usage"]["completion_tokens"] != TOKENS:
            raise Unasked(f"{answer['usage']} instead of {TOKENS} tokens")

    def stream(self, model: str) -> None:
        """To its end."""
        self._tally.count("stream")
        body = self._body(model, FEW, {"stream": True})
        with self._client.stream("POST", "/v1/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        if response.status_code != 200 or lines[-1] != "data: [DONE]":
            raise Unasked(f"a stream ended with {response.status_code} {lines[-1:]}")

    def hang_up(self, model: str) -> None:
        """After the first token, of many."""
        self._tally.count("hang up")
        body = self._body(model, MANY, {"stream": True})
        with self._client.stream("POST", "/v1/completions", json=body) as response:
            first = next(response.iter_lines(), "")
        if response.status_code != 200 or not first.startswith("data: {"):
            raise Unasked(f"a stream began with {response.status_code} {first!r}")

    def expect(
        self, kind: str, status: int, method: str, path: str, *, code: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """The answer to a request that must have this status, and where that is an error this code. Raises Unasked."""
        self._tally.count(kind)
        response = self._client.request(method, path, **options)
        if response.status_code != status or (code is not None and response.json()["error"]["code"] != code):
            wanted = f"{status} {code or ''}".strip()
            raise Unasked(f"{method} {path}: {response.status_code} {response.text[:300]} instead of {wanted}")
        found: dict[str, Any] = response.json()
        return found

    def _body(self, model: str, params: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        prompt = " ".join(str(7 * self._drawn % 1000 + word) for word in range(24))
        return {"model": model, "prompt": prompt, **params, **more}


def churned(url: str, clients: int, draw: Draw, tally: Tally, stopping: Event) -> Sequence[Thread]:
    """Clients at work, each in a thread, on a server that has `SHARED` now."""
    with httpx2.Client(base_url=url, timeout=120) as client:
        for number, name in enumerate(SHARED):
            content = draw(clients, number).read_bytes()
            client.post("/v1/deltas", params={"name": name}, content=content).raise_for_status()
    threads = [Thread(target=Churn(url, number, draw, tally).run, args=(stopping,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    return threads


def wait(threads: Sequence[Thread], seconds: float) -> bool:
    """Whether all are over by then."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
